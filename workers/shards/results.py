"""What became of a shard's output rows, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.tables import WITHOUT_ATTRIBUTION, RowStatus

Floats = NDArray[np.float64]
NUMBERS = ("f_input", "f_baseline", "gap", "error_estimate", "evaluations")


@dataclass(frozen=True, eq=False)
class Results:
    """Everything known of a shard's output rows, in order; float arrays hold NaN where there is no
    value.

    `lengths` tells, for inputs of varying length, how much of a row's attributions is the row's
    own; None for others.
    """

    row_id: pa.Array
    target: pa.Array
    status: list[RowStatus]
    reason: list[str | None]
    f_input: Floats
    f_baseline: Floats
    gap: Floats
    error_estimate: Floats
    evaluations: NDArray[np.int32]
    attributions: tuple[NDArray[np.floating], ...]
    lengths: tuple[NDArray[np.int64] | None, ...] = ()
    padded: int = 0
    duplicates: int = 0
    halved: int | None = None

    @property
    def attributed(self) -> NDArray[np.bool_]:
        return np.array([s not in WITHOUT_ATTRIBUTION for s in self.status], bool)

    def values(self, row: int) -> list[NDArray[np.floating]]:
        """Each input's attributions of one row, flat and without padding."""
        flat = [a[row].reshape(-1) for a in self.attributions]
        return [a if n is None else a[: n[row]] for a, n in zip_longest(flat, self.lengths)]


def merge(parts: Sequence[tuple[NDArray[np.int64], Results]]) -> Results:
    """Results of parts of a shard as one, given the numbers of each part's output rows."""
    if len(parts) == 1:
        return parts[0][1]
    found = [results for _, results in parts]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))

    def ordered(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(r, name) for r in found])[order]

    status, reason = (
        [value for r in found for value in getattr(r, name)] for name in ("status", "reason")
    )
    return Results(
        pa.concat_arrays([r.row_id for r in found]).take(order),
        pa.concat_arrays([r.target for r in found]).take(order),
        [status[i] for i in order],
        [reason[i] for i in order],
        *map(ordered, NUMBERS),
        tuple(
            _widened(list(same))[order]
            for same in zip(*(r.attributions for r in found), strict=True)
        ),
        tuple(
            None if same[0] is None else np.concatenate(same)[order]
            for same in zip(*(r.lengths for r in found), strict=True)
        ),
        sum(r.padded for r in found),
        sum(r.duplicates for r in found),
        min((r.halved for r in found if r.halved is not None), default=None),
    )


def _widened(parts: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    """The rows of all parts, zeros behind those of shorter ones."""
    widest = tuple(np.max([p.shape[1:] for p in parts], axis=0))
    made = np.zeros((sum(len(p) for p in parts), *widest), parts[0].dtype)
    start = 0
    for part in parts:
        made[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return made
