"""Compiled loops of the exact integral (`integral.py` derives them). numba: import this module
only on use.

Strict IEEE arithmetic in a fixed order, one thread, each row alone: the same bits on every run,
whatever rows are beside it. Nothing is cached on disk, since an installation may be read-only: the
first use compiles, in 2 to 3 s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LANES = 32
"""Second-layer units are visited in chunks of this many, so that each inner loop has a constant
length (and becomes vector instructions) and a chunk without a crossing costs no division. 16 to 128
were tried; 32 was fastest.
"""

_CONSTANT, _SLOPE, _ON, _OFFSET, _RATE, _HIGH, _LOW = range(7)


class First(NamedTuple):
    """The first layer along the line, [rows, units] each: z₁ = start + α·slope, σ' is `before`
    until `alpha`, then `after`.

    A unit without a kink inside (0, 1) has alpha 1. `order` sorts each row's units by alpha.
    """

    start: Floats
    slope: Floats
    alpha: Floats
    before: Floats
    after: Floats
    order: NDArray[np.int64]


class Second(NamedTuple):
    """The second layer at α = 0⁺, [rows, chunks, LANES] each: z₂ = start + α·slope; ∂f/∂z₂ is
    `high` where z₂ > 0, else `low`.
    """

    start: Floats
    slope: Floats
    high: Floats
    low: Floats


@njit(error_model="numpy")
def sweep(first: First, second: Second, columns: Floats, total: Floats, partial: Floats) -> None:
    """Walk every row from kink to kink.

    columns  W₂ transposed, [first-layer units, chunks, LANES]: the column of a unit is contiguous
    total    out: C(1), [rows, chunks, LANES]
    partial  out: (before − after)·W₂[:, j]·C(α_j), [rows, first-layer units]; 0 where unit j has no
             kink
    """
    chunks = columns.shape[1]
    units = np.empty((chunks, 7, LANES))
    sums = np.empty(LANES)
    for row in range(len(first.alpha)):
        for c in range(chunks):
            _begin(
                units[c],
                second.start[row, c],
                second.slope[row, c],
                second.high[row, c],
                second.low[row, c],
            )
        behind = 0.0
        for j in first.order[row]:
            here = first.alpha[row, j]
            if not here < 1.0:
                break
            step = first.after[row, j] - first.before[row, j]
            rise, turn = step * first.start[row, j], step * first.slope[row, j]
            sums[:] = 0.0
            for c in range(chunks):
                if _count_crossings(units[c], here):
                    _cross(units[c], behind, here)
                _turn(units[c], columns[j, c], here, rise, turn, sums)
            partial[row, j] = -step * sums.sum()
            behind = here
        for c in range(chunks):
            _cross(units[c], behind, 1.0)
            for i in range(LANES):
                total[row, c, i] = units[c, _OFFSET, i] + units[c, _RATE, i]


# Inlined by numba, not by LLVM: only then are these loops free of calls and vectorised (3 times
# faster).


@njit(error_model="numpy", inline="always")
def _begin(units: Floats, start: Floats, slope: Floats, high: Floats, low: Floats) -> None:
    for i in range(LANES):
        on = start[i] > 0.0
        units[_CONSTANT, i] = start[i]
        units[_SLOPE, i] = slope[i]
        units[_HIGH, i] = high[i]
        units[_LOW, i] = low[i]
        units[_ON, i] = 1.0 if on else 0.0
        units[_OFFSET, i] = 0.0
        units[_RATE, i] = high[i] if on else low[i]


@njit(error_model="numpy", inline="always")
def _count_crossings(units: Floats, here: float) -> int:
    found = 0
    for i in range(LANES):
        on = 1.0 if units[_CONSTANT, i] + here * units[_SLOPE, i] > 0.0 else 0.0
        found += on != units[_ON, i]
    return found


@njit(error_model="numpy", inline="always")
def _cross(units: Floats, behind: float, here: float) -> None:
    """Bring C = offset + α·rate up to `here`. A unit that did not cross has the same rate: its
    offset gains exactly 0.
    """
    for i in range(LANES):
        constant = units[_CONSTANT, i]
        slope = units[_SLOPE, i]
        high = units[_HIGH, i]
        low = units[_LOW, i]
        on = constant + here * slope > 0.0
        at = -constant / slope
        at = at if at > behind else behind  # also where slope is 0 and `at` is NaN
        at = at if at < here else here
        rate = high if on else low
        units[_OFFSET, i] += (units[_RATE, i] - rate) * at
        units[_RATE, i] = rate
        units[_ON, i] = 1.0 if on else 0.0


@njit(error_model="numpy", inline="always")
def _turn(
    units: Floats, column: Floats, here: float, rise: float, turn: float, sums: Floats
) -> None:
    """Add column·C(here) to `sums`, lane by lane, and the rank-1 update to z₂."""
    for i in range(LANES):
        weight = column[i]
        sums[i] += weight * (units[_OFFSET, i] + here * units[_RATE, i])
        units[_CONSTANT, i] += rise * weight
        units[_SLOPE, i] += turn * weight
