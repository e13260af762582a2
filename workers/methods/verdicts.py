"""When a track is done: what the tolerance allows it, what rounding leaves, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.autocast import PROBING
from integrand.workers.engine.loop import Statuses, Verdicts
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import Tracks

Flags = NDArray[np.bool_]

STATUSES: Statuses = np.array(
    [RowStatus.nonfinite, RowStatus.ok, RowStatus.at_precision_floor, RowStatus.not_converged],
    object,
)
FLOOR = 16.0
"""Rounding errors, in units of machine epsilon, that f at both ends and the sum may carry; below it
nothing is certified.
"""
ROUNDING = 4.0
"""Rounding of gradients, in units of machine epsilon, that every error estimate includes."""
HALF_FLOOR = 0.17
"""The same under autocast, in units of the rounding error measured: f at both ends is float32
there.
"""
SHARE = 0.5
"""Part of the tolerance that a piece may use, relative to its own attributions or to f(x) − f(x'),
whichever is larger.
"""


class Next(IntEnum):
    """Where a track goes from a judgement."""

    DONE = 0
    """Certified, or at what rounding leaves, or not finite."""
    FINER = 1
    """More nodes of the same rule."""
    CUT = 2
    """Its pieces, one after the other."""
    GRID = 3
    """A grid."""
    END = 4
    """A verdict without a certificate: nothing that may help can be afforded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What a judge knows of some tracks, or of their pieces: arrays [tracks].

    attributions  [tracks, elements]
    deviation     estimated ‖a − a*‖₁
    size, total   ‖attributions‖₁ and their sum
    needed        evaluations that the tolerance would take, where that is out of reach; else 0
    next          where each one goes: `Next`
    """

    slots: Integers
    attributions: Floats
    deviation: Floats
    size: Floats
    total: Floats
    needed: Integers
    next: Integers

    def take(self, which: Flags | Integers) -> Judged:
        chosen = {name: column[which] for name, column in vars(self).items()}
        return Judged(**chosen)


def judged(slots: Integers, attributions: Floats, deviation: Floats) -> Judged:
    """Tracks that end here, as long as nothing else is said."""
    return Judged(
        slots=slots,
        attributions=attributions,
        deviation=deviation,
        size=np.abs(attributions).sum(1),
        total=attributions.sum(1),
        needed=np.zeros(len(slots), np.int64),
        next=np.full(len(slots), Next.END, np.int64),
    )


@dataclass(frozen=True, eq=False)
class Criteria:
    """What tracks are held to. `cut` [slots] are those in pieces."""

    accuracy: Adaptive
    tracks: Tracks
    cut: Flags

    def allowed(self, known: Judged) -> Floats:
        """The deviation that the tolerance allows each track, or its piece."""
        slots = known.slots
        change = np.abs(self.tracks.change[slots])
        of_piece = SHARE * np.maximum(known.size, change)
        size = np.where(self.cut[slots], of_piece, known.size)
        return self._tolerance(slots) * size

    def settled(self, known: Judged, *, certify: bool = True) -> Flags:
        """Whether the deviation is allowed, or is what rounding leaves, or nothing is finite."""
        settled = ~self._finite(known) | self.at_floor(known)
        if certify:
            settled |= known.deviation <= self.allowed(known)
        return settled

    def at_floor(self, known: Judged) -> Flags:
        """Whether rounding alone may cause the deviation: of f, once for every gap seen, or of an
        integrand that cancels.
        """
        tracks = self.tracks
        slots = known.slots
        carried = tracks.magnitude[slots] + tracks.integrand[slots] + known.size
        gaps = 1 + tracks.gaps[slots] / 16
        unit: Floats | float = FLOOR * tracks.problem.epsilon
        measured = self._measured(slots)
        if measured is not None:
            unit = HALF_FLOOR * measured
        return np.asarray(known.deviation <= gaps * unit * carried)

    def verdicts(self, known: Judged) -> Verdicts:
        """Verdicts of whole paths."""
        tracks, slots = self.tracks, known.slots
        probed = 0 if tracks.problem.rounding is None else PROBING
        error = _ratio(known.deviation, known.size) + self._rounding(known)
        return Verdicts(
            rows=tracks.row[slots],
            targets=tracks.target[slots],
            statuses=self._statuses(known),
            attributions=known.attributions,
            gap=known.total - tracks.change[slots],
            error=error,
            evaluations=tracks.spent[slots] + probed,
            needed=known.needed,
        )

    def _statuses(self, known: Judged) -> Statuses:
        tolerance = self._tolerance(known.slots)
        within = known.deviation <= tolerance * known.size
        ok = within & (tolerance > 0)
        nonfinite = ~self._finite(known)
        at_floor = self.at_floor(known)
        places = np.select([nonfinite, ok, at_floor], [0, 1, 2], 3)
        return np.asarray(STATUSES[places])

    def _finite(self, known: Judged) -> Flags:
        change = self.tracks.change[known.slots]
        return np.isfinite(known.total + change)

    def _tolerance(self, slots: Integers) -> Floats | float:
        """What the tolerance leaves for the quadrature: under autocast, rounding has its share."""
        measured = self._measured(slots)
        if measured is None:
            return self.accuracy.tolerance
        return self.accuracy.tolerance - measured

    def _rounding(self, known: Judged) -> Floats:
        """Relative error of attributions by rounding alone."""
        measured = self._measured(known.slots)
        if measured is not None:
            return measured
        return np.where(known.size > 0, ROUNDING * self.tracks.problem.epsilon, 0.0)

    def _measured(self, slots: Integers) -> Floats | None:
        """Relative rounding error of tracks under autocast."""
        tracks = self.tracks
        rounding = tracks.problem.rounding
        if rounding is None:
            return None
        return rounding[tracks.row[slots], tracks.target[slots]]


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; 0/0 is 0 (nothing to be wrong about), anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part == 0, 0.0, part / whole)
