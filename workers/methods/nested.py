"""Nested levels: 7, 15, 31 and 63 nodes of Patterson's rule, certified by their spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import GradientStore, Stage
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import attributions, in_parts, masked
from integrand.workers.methods.pieces import Pieces
from integrand.workers.methods.verdicts import Criteria, Flags, Judged, Next, judged
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import (
    SmoothEstimate,
    SpectralLevel,
    cancellation,
    estimate_smooth,
    spectral_levels,
)

SEEN = 31
"""Nodes after which a spectrum without decay is taken for kinks: fewer do not tell them from fast
oscillation.
"""
WIDE = 1 << 16
"""Elements of a row from which on 31 gradients are kept of it at most, not 63."""


def affordable_levels(most: int, elements: int) -> tuple[SpectralLevel, ...]:
    """Nested levels within the evaluations, and within the gradients that may be kept of a row."""
    kept = 31 if elements >= WIDE else 63
    affordable = min(most, kept)
    return tuple(level for level in spectral_levels() if level.count <= affordable)


class Nested:
    """Tracks on the nested rule, level by level.

    least_grid  evaluations that a grid takes until it may certify
    """

    follow: tuple[Next, ...] = (Next.DONE, Next.FINER, Next.CUT, Next.GRID, Next.END)

    def __init__(
        self,
        evaluator: Evaluator,
        criteria: Criteria,
        pieces: Pieces,
        levels: Sequence[SpectralLevel],
        least_grid: int,
    ) -> None:
        self.evaluator, self.criteria, self.pieces = evaluator, criteria, pieces
        self.tracks = criteria.tracks
        self.levels = levels
        self.least_grid = least_grid
        problem = evaluator.problem
        self.gradients = GradientStore(
            self.tracks.slots, levels[-1].count, problem.elements, problem.dtype, problem.device
        )

    def start(self, slots: Integers) -> None:
        """Nothing is to be forgotten: a level writes every column before it is read."""

    def stage(self, index: int) -> Stage:
        columns = np.arange(self._before(index), self.levels[index].count)
        nodes = patterson().nodes[columns]
        return Stage(nodes, columns, self.gradients)

    def judge(self, index: int, slots: Integers) -> Iterator[Judged]:
        numbers = self.levels[index].count * self.evaluator.problem.elements
        for part in in_parts(slots, numbers):
            yield self._judge(index, part)

    def _judge(self, index: int, slots: Integers) -> Judged:
        estimate = self._estimate(index, slots)
        known = judged(slots, estimate.attributions, estimate.deviation)
        settled = self.criteria.settled(known)
        known.next[settled] = Next.DONE
        open_ = np.flatnonzero(~settled)
        if len(open_):
            converging = estimate.converging[open_]
            known.next[open_] = self._next(index, slots[open_], converging)
        deviation = np.where(settled, estimate.deviation, estimate.likely)
        return replace(known, deviation=deviation)

    def _estimate(self, index: int, slots: Integers) -> SmoothEstimate:
        tracks = self.tracks
        level = self.levels[index]
        new = self._new(index)
        tracks.spent[slots] += new
        difference = tracks.difference(slots)
        gradients = masked(self.gradients.read(slots, level.count), difference)
        combined = level.functionals @ gradients
        found = attributions(self.evaluator, tracks, slots, combined, difference, new)
        slopes = (gradients @ difference[:, :, None])[:, :, 0]
        values = self._values(index, slots)
        ends = tracks.f_start[slots], tracks.f_end[slots]
        estimate = estimate_smooth(level, found, slopes, values, *ends)
        cancelled = cancellation(estimate.attributions)
        tracks.gaps[slots] = level.count + 1 + 2 * cancelled
        seen = tracks.integrand[slots]
        tracks.integrand[slots] = np.maximum(seen, estimate.integrand)
        return estimate

    def _next(self, index: int, slots: Integers, converging: Flags) -> Integers:
        """More nodes where they converge; else pieces, else a grid; what cannot be afforded ends
        here.
        """
        room = self.pieces.room(slots)
        grids = room >= self.least_grid
        early = self.levels[index].count < SEEN
        pays = early | converging | ~grids
        finer = self._fits(index + 1, room) & pays
        other = ~finer
        cut = np.zeros(len(slots), bool)
        cut[other] = self._divided(index, slots[other], converging[other])
        return np.select([finer, cut, grids], [Next.FINER, Next.CUT, Next.GRID], Next.END)

    def _fits(self, index: int, room: Integers) -> Flags:
        """Whether there is such a level, and room for it."""
        if index == len(self.levels):
            return np.zeros(len(room), bool)
        return room >= self._new(index)

    def _divided(self, index: int, slots: Integers, converging: Flags) -> list[bool]:
        level = self.levels[index]
        values = self._values(index, slots)
        tracks = zip(slots.tolist(), values, converging.tolist(), strict=True)
        return [self.pieces.divide(level, *track) for track in tracks]

    def _values(self, index: int, slots: Integers) -> Floats:
        """f at the level's nodes, [slots, nodes]."""
        count = self.levels[index].count
        return self.gradients.values[slots, :count]

    def _new(self, index: int) -> int:
        """Nodes that a level adds."""
        return self.levels[index].count - self._before(index)

    def _before(self, index: int) -> int:
        return self.levels[index - 1].count if index else 0
