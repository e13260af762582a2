"""Nested levels: 7, 15, 31 and 63 nodes of Patterson's rule, certified by their spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import Floats, Samples
from integrand.workers.engine.parts import NARROW_PART, in_parts, part_rows, wave_rows
from integrand.workers.engine.tracks import Some, Tracks, attributions, masked, on_device
from integrand.workers.methods.criteria import Criteria, Judged, Next, judged
from integrand.workers.methods.pieces import Pieces
from integrand.workers.quadrature.noise import Noise
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import (
    SmoothEstimate,
    SpectralLevel,
    estimate_smooth,
    spectral_levels,
)

SEEN = 31
"""Nodes after which a spectrum without decay is taken for kinks: fewer do not tell them from fast
oscillation.
"""
WIDE = 1 << 16
"""Elements of a row from which on 31 gradients are kept of it at most, not 63."""


def affordable_levels(most: int, elements: int, device: torch.device) -> tuple[SpectralLevel, ...]:
    """Nested levels within the evaluations, and within the gradients that may be kept of a row."""
    kept = 31 if elements >= WIDE else 63
    affordable = min(most, kept)
    return tuple(level for level in spectral_levels(device) if level.count <= affordable)


@dataclass(frozen=True, eq=False)
class Gradients:
    """What is kept of tracks on the nested rule: gradients [tracks, nodes, elements] and f [tracks,
    nodes] at all nodes so far.
    """

    gradients: Tensor
    values: Tensor

    def take(self, which: Some) -> Gradients:
        index = on_device(which, self.values.device)
        return Gradients(self.gradients[index], self.values[index])


class Nested:
    """Tracks on the nested rule, level by level.

    least_grid  evaluations that a grid takes until it may certify
    """

    def __init__(
        self,
        evaluator: Evaluator,
        criteria: Criteria,
        pieces: Pieces,
        levels: Sequence[SpectralLevel],
        least_grid: int,
    ) -> None:
        self.evaluator, self.criteria, self.pieces = evaluator, criteria, pieces
        self.levels = levels
        self.least_grid = least_grid

    def chunks(self, index: int) -> list[Floats]:
        """Nodes of a level, all at once."""
        before = self._before(index)
        return [patterson().nodes[before : self.levels[index].count]]

    def absorb(
        self, index: int, chunk: int, tracks: Tracks, kept: Gradients | None, samples: Samples
    ) -> Gradients:
        if kept is None:
            return Gradients(samples.gradients, samples.values)
        return Gradients(
            torch.cat([kept.gradients, samples.gradients], 1),
            torch.cat([kept.values, samples.values], 1),
        )

    def judge(self, index: int, tracks: Tracks, kept: Gradients) -> tuple[Judged, Gradients]:
        parts = []
        for part, count in in_parts(len(tracks), self.part(index)):
            found = self._judge(index, tracks.take(part), kept.take(part))
            parts.append(found.take(slice(count)))
        return Judged.join(parts), kept

    def part(self, index: int) -> int:
        """Tracks that are judged at once at a level."""
        level = self.levels[index]
        problem = self.evaluator.problem
        elements = max(problem.elements, problem.features.elements)
        narrow = NARROW_PART.on(problem.device)
        most = narrow if index else wave_rows(problem, level.count)
        return part_rows(
            self.evaluator, (level.count + 3 * len(level.functionals)) * elements, most
        )

    def path(self, index: int, tracks: Tracks, kept: Gradients) -> tuple[SpectralLevel, Tensor]:
        """A level, and f at its places, [tracks, places]."""
        level = self.levels[index]
        return level, level.along_path(kept.values, tracks.f_start, tracks.f_end)

    def _judge(self, index: int, tracks: Tracks, kept: Gradients) -> Judged:
        level, path = self.path(index, tracks, kept)
        difference = tracks.difference(self.evaluator.problem)
        gradients = masked(kept.gradients, difference).to(torch.float64, copy=True)
        combined = level.functionals @ gradients
        found, first = attributions(self.evaluator, tracks, combined, difference)
        slopes = gradients.mul_(difference[:, None]).sum(2)
        noise = None
        if self.evaluator.problem.rounding is not None:
            noise = Noise(tracks.of_gradients, tracks.of_values, tracks.rounding)
        estimate = estimate_smooth(level, found, slopes, path, noise)
        known = judged(
            estimate,
            first,
            gaps=(level.count + 1 + 2 * estimate.cancelled).floor(),
            integrand=torch.maximum(tracks.integrand, estimate.integrand),
        )
        known = self.criteria.of_reported(tracks, known)
        settled = self.criteria.settled(tracks, known)
        onwards, window = self._onwards(index, tracks, path, estimate)
        good = self.criteria.good_enough(tracks, known)
        onwards = torch.where(good, self._same_rule(index, tracks), onwards)
        return replace(
            known,
            deviation=torch.where(settled | good, estimate.deviation, estimate.likely),
            window=window,
            next=torch.where(settled, int(Next.DONE), onwards),
        )

    def _onwards(
        self, index: int, tracks: Tracks, path: Tensor, estimate: SmoothEstimate
    ) -> tuple[Tensor, Tensor]:
        """More nodes where they converge; else pieces, else a grid, which alone reads no f between
        the ends; what cannot be afforded ends here. And where pieces are cut.
        """
        level = self.levels[index]
        room = self.pieces.room(tracks)
        grids = room >= self.least_grid
        early = level.count < SEEN
        pays = (estimate.converging | early) & ~estimate.drowned
        finer = self._fits(index + 1, room) & (pays | ~grids)
        stuck = torch.where(grids, int(Next.GRID), int(Next.END))
        window = torch.zeros(len(tracks), 2, dtype=torch.int64, device=tracks.device)
        if not early or level is self.levels[-1]:
            cut, window = self.pieces.divisible(level, tracks, path, estimate.converging)
            stuck = torch.where(cut & ~estimate.drowned, int(Next.CUT), stuck)
        return torch.where(finer, int(Next.FINER), stuck), window

    def _same_rule(self, index: int, tracks: Tracks) -> Tensor:
        """More nodes of this rule or none, for tracks of which only the reasons are wanting:
        another way begins anew, and may end above the tolerance.
        """
        finer = self._fits(index + 1, self.pieces.room(tracks))
        return torch.where(finer, int(Next.FINER), int(Next.END))

    def _fits(self, index: int, room: Tensor) -> Tensor:
        """Whether there is such a level, and room for it."""
        if index == len(self.levels):
            return torch.zeros_like(room, dtype=torch.bool)
        return room >= self._new(index)

    def _new(self, index: int) -> int:
        """Nodes that a level adds."""
        return self.levels[index].count - self._before(index)

    def _before(self, index: int) -> int:
        return self.levels[index - 1].count if index else 0
