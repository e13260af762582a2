"""Results as they are stored: rounded to the type of their columns, the largest of them alone, and
what that costs told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.records import Plan
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.row_results import OPTIONAL_FILLS, Floats, RowResults
from integrand.workers.shards.layouts import AT_ONCE, Values
from integrand.workers.shards.output import (
    ROUNDED,
    attribution_sums,
    block_dtype,
    blocks,
    input_sums,
    layouts,
    loses,
    stored_dtype,
)
from integrand.workers.shards.results import Results


def as_stored(plan: Plan, results: Results, tolerance: float | None) -> Results:
    """What reading the stored rows gives back. Sums are those of all attributions as they were
    computed; rows are held to `tolerance`, if to any.
    """
    if not loses(plan):
        return results
    sums = attribution_sums(plan, results)
    dtype = stored_dtype(plan)
    if dtype != plan.numerics.precision:
        results = _rounded(plan, results, dtype, tolerance)
    sums = np.where(results.rows.attributed, sums, np.nan)
    return replace(_kept(plan, results), sums=sums)


def _kept(plan: Plan, results: Results) -> Results:
    """What the store keeps of every input."""
    pairs = zip_longest(results.rows.attributions, results.lengths)
    found = []
    for layout, (values, lengths) in zip(layouts(plan), pairs, strict=True):
        found.append(layout.kept(values, lengths))
    rows = replace(results.rows, attributions=tuple(values for values, _ in found))
    return replace(results, rows=rows, lengths=tuple(lengths for _, lengths in found))


def _rounded(plan: Plan, results: Results, dtype: str, tolerance: float | None) -> Results:
    """Attributions of a narrower type. What that moves goes into the error estimate; rows that it
    takes above the tolerance are at the floor of their precision, rows that do not fit have none.
    """
    rows = results.rows
    with np.errstate(over="ignore"):
        narrow = tuple(
            values.astype(block_dtype(plan, block))
            for block, values in zip(blocks(plan), rows.attributions, strict=True)
        )
    by_role = [
        [i for i, block in enumerate(blocks(plan)) if block.role == role] for role in ROUNDED
    ]
    beyond = rows.attributed & _overflows([narrow[i] for numbers in by_role for i in numbers])
    moved = np.max([_moved(results, narrow, same) for same in by_role if same], axis=0)
    error = rows.error_estimate + moved
    lifted = np.zeros(len(error), bool)
    if tolerance is not None:
        lifted = (rows.status == RowStatus.ok) & (error > tolerance) & (moved > 0)
    status, reason = rows.status.copy(), rows.reason.copy()
    status[lifted] = RowStatus.at_precision_floor
    for row in np.flatnonzero(lifted).tolist():
        reason[row] = (
            f"error estimate {error[row]:.2g}: rounding to {dtype} alone moves the attributions by"
            f" {moved[row]:.2g} of their size; leave out output.dtype"
        )
    status[beyond] = RowStatus.nonfinite
    reason[beyond] = f"an attribution does not fit {dtype}; leave out output.dtype"
    for values in narrow:
        values[beyond] = np.nan
    changed = replace(
        rows,
        attributions=narrow,
        gap=np.where(beyond, np.nan, rows.gap),
        error_estimate=np.where(beyond, np.nan, error),
        status=status,
        reason=reason,
        optional=_without(rows, beyond),
    )
    return replace(results, rows=changed)


def _without(rows: RowResults, lost: NDArray[np.bool_]) -> Mapping[str, NDArray[Any]]:
    """The optional columns, in which lost rows have what stands there before anything is known."""
    columns = {name: column.copy() for name, column in rows.optional.items()}
    for name, column in columns.items():
        column[lost] = OPTIONAL_FILLS[name]
    return MappingProxyType(columns)


def _overflows(attributions: Sequence[Values]) -> NDArray[np.bool_]:
    """Which rows have an infinite one."""
    found = [np.isinf(values.reshape(len(values), -1)).any(1) for values in attributions]
    return np.asarray(np.any(found, axis=0))


def _moved(results: Results, narrow: Sequence[Values], which: Sequence[int]) -> Floats:
    """By how much rounding moves some blocks of each row, relative to their L1 norm; 0 where there
    is nothing to move.
    """
    size, distance = np.zeros((2, len(results.rows.status)))
    blocks_of_all = zip_longest(results.rows.attributions, narrow, results.lengths)
    for values, rounded, lengths in [each for i, each in enumerate(blocks_of_all) if i in which]:
        for rows in _parts(values):
            own = None if lengths is None else lengths[rows]
            with np.errstate(invalid="ignore"):
                apart = np.abs(rounded[rows].astype(values.dtype) - values[rows])
            distance[rows] += input_sums(apart, own)
            size[rows] += input_sums(np.abs(values[rows]), own)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(distance == 0, 0.0, distance / size)


def _parts(values: Values) -> Iterator[slice]:
    """Some rows after the other, of which float64 copies take little."""
    at_once = max(1, AT_ONCE // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), at_once):
        yield slice(start, start + at_once)
