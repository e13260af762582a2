"""What became of a shard's output rows, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.workers.engine.row_results import Floats, RowResults


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """Everything known of a shard's output rows, in order.

    rows        what became of each, `[rows × targets]`; NaN where there is no value
    lengths     for inputs of varying length, how much of a row's attributions is the row's own;
                None for others
    sums        Σ attributions of each row, `[rows]` float64, where what is stored of them does not
                tell
    padded      gradient evaluations that only filled step batches up
    duplicates  input rows whose results were copied from equal ones
    halved      rows of the smallest step batch where memory ran out
    """

    row_id: pa.Array
    target: pa.Array
    rows: RowResults
    lengths: tuple[NDArray[np.int64] | None, ...] = ()
    sums: Floats | None = None
    padded: int = 0
    duplicates: int = 0
    halved: int | None = None

    def values(self, row: int) -> list[NDArray[np.floating[Any]]]:
        """Each input's attributions of one row, flat and without padding."""
        found = []
        for attributions, lengths in zip_longest(self.rows.attributions, self.lengths):
            flat = attributions[row].reshape(-1)
            own = flat.size if lengths is None else lengths[row]
            found.append(flat[:own])
        return found

    def take(self, index: NDArray[np.integer[Any]]) -> Results:
        """Some of the rows, in the order of `index`; what was counted is of all of them still."""
        return replace(
            self,
            row_id=self.row_id.take(pa.array(index)),
            target=self.target.take(pa.array(index)),
            rows=self.rows.take(index),
            lengths=tuple(None if own is None else own[index] for own in self.lengths),
            sums=None if self.sums is None else self.sums[index],
        )

    @classmethod
    def concat(cls, parts: Sequence[Results]) -> Results:
        """The rows of all parts below each other, none of them as it is stored yet."""
        halved = [part.halved for part in parts if part.halved is not None]
        lengths = zip(*(part.lengths for part in parts), strict=True)
        return cls(
            row_id=pa.concat_arrays([part.row_id for part in parts]),
            target=pa.concat_arrays([part.target for part in parts]),
            rows=RowResults.concat([part.rows for part in parts]),
            lengths=tuple(map(_joined, lengths)),
            padded=sum(part.padded for part in parts),
            duplicates=sum(part.duplicates for part in parts),
            halved=min(halved, default=None),
        )


def merge(parts: Sequence[tuple[NDArray[np.int64], Results]]) -> Results:
    """Results of parts of a shard as one, given the numbers of each part's output rows."""
    if len(parts) == 1:
        return parts[0][1]
    numbers = np.concatenate([rows for rows, _ in parts])
    below = Results.concat([results for _, results in parts])
    return below.take(np.argsort(numbers))


def _joined(lengths: Sequence[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """An input's lengths in all parts; None where it does not vary, which is so in all or none."""
    known = [own for own in lengths if own is not None]
    return np.concatenate(known) if known else None
