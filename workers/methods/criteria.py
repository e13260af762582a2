"""When a track is done: what the tolerance allows it, what rounding leaves, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.reason_margins import ReasonSums
from integrand.workers.engine.rounding import PROBING
from integrand.workers.engine.tracks import Some, Tracks, on_device
from integrand.workers.engine.verdicts import Verdicts, coded

STATUSES = (
    RowStatus.nonfinite,
    RowStatus.ok,
    RowStatus.at_precision_floor,
    RowStatus.not_converged,
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

BELOW = 1 - 1e-9
"""A deviation must be below what would make reasons uncertain, and not at it."""


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
    """What a judge knows of some tracks, or of their pieces: tensors [tracks], float64 but for the
    last three.

    attributions  [tracks, elements]
    gradients     ∫ ∂f/∂x dα, [tracks, elements]; [tracks, 0] where nobody asks for it
    deviation     estimated ‖a − a*‖₁
    size, total   ‖attributions‖₁ and their sum
    reported      ‖·‖₁ of the numbers that are reported: `size`, unless these are sums of elements
    gaps          how many values of f the estimate compares
    integrand     size of what may cancel in the integral, as far as seen
    needed        evaluations that the tolerance would take, where that is out of reach; else 0
    window        [tracks, 2]: between which of a level's places f moves, where that is known
    next          where each one goes: `Next`
    """

    attributions: Tensor
    gradients: Tensor
    deviation: Tensor
    size: Tensor
    total: Tensor
    reported: Tensor
    gaps: Tensor
    integrand: Tensor
    needed: Tensor
    window: Tensor
    next: Tensor

    def take(self, which: Some) -> Judged:
        index = on_device(which, self.next.device)
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        return Judged(**chosen)

    @staticmethod
    def join(parts: Sequence[Judged]) -> Judged:
        if len(parts) == 1:
            return parts[0]
        columns = {}
        for f in fields(Judged):
            columns[f.name] = torch.cat([getattr(part, f.name) for part in parts])
        return Judged(**columns)


class Estimate(Protocol):
    """What a rule says of tracks: see `Judged`."""

    @property
    def attributions(self) -> Tensor: ...
    @property
    def size(self) -> Tensor: ...
    @property
    def total(self) -> Tensor: ...
    @property
    def deviation(self) -> Tensor: ...


def judged(estimate: Estimate, gradients: Tensor, *, gaps: Tensor, integrand: Tensor) -> Judged:
    """Tracks that end here, as long as nothing else is said, and whose features are reported."""
    none = torch.zeros_like(estimate.deviation, dtype=torch.int64)
    return Judged(
        # a view of all functionals would keep them
        attributions=estimate.attributions.contiguous(),
        gradients=gradients,
        deviation=estimate.deviation,
        size=estimate.size,
        total=estimate.total,
        reported=estimate.size,
        gaps=gaps,
        integrand=integrand,
        needed=none,
        window=none[:, None].expand(-1, 2),
        next=torch.full_like(none, Next.END),
    )


@dataclass(frozen=True, eq=False)
class Criteria:
    """What tracks are held to: the tolerance, and where `sums` may be reasons, that these are
    certain.
    """

    accuracy: Adaptive
    problem: Problem
    sums: ReasonSums | None = None

    def of_reported(self, tracks: Tracks, known: Judged) -> Judged:
        """The same with the size of what is reported: sums of elements may cancel inside."""
        if not self._summed:
            return known
        sums = self.problem.reported(tracks.rows, known.attributions)
        return replace(known, reported=sums.abs().sum(1))

    def allowed(self, tracks: Tracks, known: Judged) -> Tensor:
        """The deviation that is allowed each track, or its piece."""
        within = self._within(tracks, known)
        if self.sums is None:
            return within
        apart = self._apart(self.sums, tracks, known)
        return torch.where(tracks.depth > 0, within, torch.minimum(within, apart))

    def goal(self, tracks: Tracks, known: Judged) -> Tensor:
        """The deviation that tracks are on their way to: within the tolerance first."""
        allowed = self.allowed(tracks, known)
        return torch.where(self.good_enough(tracks, known), allowed, self._within(tracks, known))

    def good_enough(self, tracks: Tracks, known: Judged) -> Tensor:
        """Whether the tolerance is met, so that only reasons may be wanting."""
        if self.sums is None:
            return torch.zeros_like(known.deviation, dtype=torch.bool)
        return known.deviation <= self._within(tracks, known)

    def settled(self, tracks: Tracks, known: Judged, *, certify: bool = True) -> Tensor:
        """Whether the deviation is allowed, or is what rounding leaves, or nothing is finite."""
        settled = ~self._finite(tracks, known) | self.at_floor(tracks, known)
        if certify:
            settled |= known.deviation <= self.allowed(tracks, known)
        return settled

    def at_floor(self, tracks: Tracks, known: Judged) -> Tensor:
        """Whether rounding alone may cause the deviation: of f, once for every gap seen, or of an
        integrand that cancels.
        """
        carried = tracks.magnitude + known.integrand + known.size
        gaps = 1 + known.gaps / 16
        unit: Tensor | float = FLOOR * self.problem.epsilon
        if self._measured:
            unit = HALF_FLOOR * tracks.rounding
        return known.deviation <= gaps * unit * carried

    def verdicts(self, tracks: Tracks, known: Judged) -> Verdicts:
        """Verdicts of whole paths."""
        probed = PROBING if self._measured else 0
        relative = torch.where(known.deviation == 0, 0.0, known.deviation / known.reported)
        return Verdicts(
            rows=tracks.rows,
            targets=tracks.targets,
            status=self._status(tracks, known),
            attributions=known.attributions,
            gap=known.total - tracks.change,
            error=relative + self._rounding(tracks, known),
            evaluations=tracks.spent + probed,
            needed=known.needed,
            gradients=known.gradients,
        )

    def _status(self, tracks: Tracks, known: Judged) -> Tensor:
        tolerance = self._tolerance(tracks)
        allowed = self._less_cancelled(tracks, known, tolerance * known.reported)
        within = (known.deviation <= allowed) & (tolerance > 0)
        floor = torch.where(self.at_floor(tracks, known), 2, 3)
        places = torch.where(within, 1, floor)
        return coded(STATUSES, torch.where(self._finite(tracks, known), places, 0))

    def _within(self, tracks: Tracks, known: Judged) -> Tensor:
        """The deviation that the tolerance allows."""
        # |f(x) − f(x')| is no more than the size of any sums of attributions
        of_piece = SHARE * torch.maximum(known.reported, tracks.change.abs())
        size = torch.where(tracks.depth > 0, of_piece, known.reported)
        return self._less_cancelled(tracks, known, self._tolerance(tracks) * size)

    def _apart(self, sums: ReasonSums, tracks: Tracks, known: Judged) -> Tensor:
        """The deviation up to which the reasons of whole paths are certain, whose error estimates
        have rounding in them too.
        """
        still = self.problem.features.difference(tracks.rows) == 0
        margin = sums.margin(known.attributions, still)
        rounding = self._rounding(tracks, known) * known.size
        apart = BELOW * (margin - rounding).clamp(min=0)
        if not self._summed:
            return apart
        # an error is relative to the sums, and taken as one relative to the features
        return torch.where(known.size > 0, apart * (known.reported / known.size), apart)

    def _finite(self, tracks: Tracks, known: Judged) -> Tensor:
        return torch.isfinite(known.total + tracks.change)

    def _tolerance(self, tracks: Tracks) -> Tensor:
        """What the tolerance leaves for the quadrature: under autocast, rounding has its share."""
        return self.accuracy.tolerance - tracks.rounding

    def _rounding(self, tracks: Tracks, known: Judged) -> Tensor:
        """Relative error of what is reported by rounding alone."""
        own = self._of_features(tracks, known)
        if not self._summed:
            return own
        return torch.where(known.size > 0, own * (known.size / known.reported), own)

    def _of_features(self, tracks: Tracks, known: Judged) -> Tensor:
        """Relative error of attributions of features by rounding alone."""
        if self._measured:
            return tracks.rounding
        return torch.where(known.size > 0, ROUNDING * self.problem.epsilon, 0.0)

    def _less_cancelled(self, tracks: Tracks, known: Judged, allowed: Tensor) -> Tensor:
        """What is left for the quadrature where features cancel in sums: their rounding is relative
        to the features.
        """
        if not self._summed:
            return allowed
        rounded = self._of_features(tracks, known) * (known.size - known.reported)
        return (allowed - rounded).clamp(min=0)

    @property
    def _summed(self) -> bool:
        reporting = self.problem.reporting
        return reporting is not None and reporting.members is not None

    @property
    def _measured(self) -> bool:
        return self.problem.rounding is not None
