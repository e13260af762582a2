"""Which candidates push most, and what the estimated error leaves certain of that.

The rule. Attributions a of a row are known up to ‖a − a*‖₁ ≤ d. Then two of them are off by d at
most together, |δ_i| + |δ_j| ≤ d: so i ranks before j for certain if a_i − a_j > d, and the sign of
a_i is certain if |a_i| > d. Sums over disjoint sets of features are off by no more in total, so the
same holds of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """The candidates that push most, in order; `width` is k, or their number if that is less.

    order      candidates by rank, `[rows, width]` int64; earlier ones first among equals
    given      which of these push at all, `[rows, width]`: the first ones of each row
    separated  whether each pushes more than the next one, and pushes, for certain
    certain    whether the set of those given is the true one, `[rows]`
    """

    order: NDArray[np.int64]
    given: Flags
    separated: Flags
    certain: Flags


def rank(pushes: Floats, moved: Flags, deviation: Floats, k: int) -> Ranking:
    """The k candidates of each row that push most.

    pushes     what each is estimated to contribute towards the side asked for, `[rows, candidates]`
    moved      where that may be off at all: not where all of a candidate is as in the baseline
    deviation  estimated L1 error of a row's pushes, `[rows]`; nothing is certain where it is NaN
    """
    order = np.argsort(-pushes, axis=1, kind="stable")
    falling = np.take_along_axis(pushes, order, axis=1)
    ahead = falling - _following(falling)
    width = min(k, pushes.shape[1])
    given = falling[:, :width] > 0
    return Ranking(
        order=order[:, :width],
        given=given,
        separated=given & (ahead[:, :width] > deviation[:, None]),
        certain=margins(falling, np.take_along_axis(moved, order, axis=1), k) > deviation,
    )


def margins(falling: Floats, moved: Flags, k: int) -> Floats:
    """The largest deviation at which the set of reasons is still uncertain, `[rows]`; of pushes in
    falling order.

    Where k push, the last of them must stay ahead of the next and above zero. Where fewer do, none
    of all may change its side.
    """
    sides = np.where(moved, np.abs(falling), np.inf)
    smallest = np.min(sides, axis=1, initial=np.inf)
    if falling.shape[1] < k:
        return np.asarray(smallest)
    last = (falling - _following(falling))[:, k - 1]
    return np.where(falling[:, k - 1] > 0, last, smallest)


def _following(falling: Floats) -> Floats:
    """What comes after each, or zero where that pushes the other way."""
    none = np.zeros((len(falling), 1))
    after = np.concatenate([falling[:, 1:], none], axis=1)
    return np.asarray(np.maximum(after, 0.0))
