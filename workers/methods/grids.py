"""Grids for kinked integrands: they grow until they are certified, or the evaluations are spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import GradientStore, Stage
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import attributions, in_parts, masked
from integrand.workers.methods.pieces import Pieces
from integrand.workers.methods.verdicts import Criteria, Flags, Judged, Next, judged
from integrand.workers.quadrature.kinked import (
    COLUMNS,
    FIRST_EDGE,
    JUDGED,
    LAST_EDGE,
    MEMORY,
    GridStage,
    class_sums,
    estimate_kinked,
    grid_stages,
)

HOPELESS, RESOLVED = 2.0, 0.5
"""A track whose error falls like 1/n is given up when it would need this many times the evaluations
it may spend; not while its estimated error is larger than this, since fast oscillation may still be
resolved.
"""


def least_grid(most: int) -> int:
    """Evaluations of the first grid that may certify; more than `most` if there is none."""
    for stage in grid_stages(most):
        if stage.cells >= JUDGED:
            return stage.count
    return most + 1


class Grids:
    """Tracks on a grid, stage by stage.

    carried  [slots] deviation × cells of the last stage
    doubled  [slots] deviation when the grid was last full; NaN before
    """

    follow: tuple[Next, ...] = (Next.DONE, Next.END, Next.FINER)

    def __init__(self, evaluator: Evaluator, criteria: Criteria, pieces: Pieces) -> None:
        self.evaluator, self.criteria, self.pieces = evaluator, criteria, pieces
        self.tracks = criteria.tracks
        self.stages = grid_stages(criteria.accuracy.max_evaluations)
        self.carried = np.zeros(self.tracks.slots)
        self.doubled = np.full(self.tracks.slots, np.nan)
        problem = evaluator.problem
        self.sums = GradientStore(
            self.tracks.slots, COLUMNS, problem.elements, torch.float64, problem.device
        )

    def start(self, slots: Integers) -> None:
        self.sums.clear(slots)
        self.carried[slots] = 0
        self.doubled[slots] = np.nan

    def stage(self, index: int) -> Stage:
        stage = self.stages[index]
        edges = []
        for node, column in zip(stage.edges, (FIRST_EDGE, LAST_EDGE), strict=True):
            if node is not None:
                edges.append((node, column))
        return Stage(
            nodes=stage.nodes,
            columns=stage.columns,
            store=self.sums,
            weights=np.ones(len(stage.nodes)),
            edges=tuple(edges),
        )

    def judge(self, index: int, slots: Integers) -> Iterator[Judged]:
        numbers = 2 * COLUMNS * self.evaluator.problem.elements
        for part in in_parts(slots, numbers):
            yield self._judge(index, part)

    def _judge(self, index: int, slots: Integers) -> Judged:
        stage, tracks = self.stages[index], self.tracks
        tracks.spent[slots] += len(stage.nodes)
        tracks.gaps[slots] = 1
        difference = tracks.difference(slots)
        sums = masked(self.sums.read(slots, COLUMNS), difference)
        alone = self._estimate(stage, slots, sums, difference)
        remembered = MEMORY * self.carried[slots] / stage.cells
        careful = np.maximum(alone.deviation, remembered)
        self.carried[slots] = alone.deviation * stage.cells
        known = replace(alone, deviation=careful)
        settled = self.criteria.settled(known, certify=stage.cells >= JUDGED)
        known.next[settled] = Next.DONE
        open_ = np.flatnonzero(~settled)
        known.needed[open_] = self._needed(stage, alone.take(open_))
        within_reach = known.needed[open_] == 0
        finer = open_[self._fits(index + 1, slots[open_]) & within_reach]
        known.next[finer] = Next.FINER
        if len(finer) and self.stages[index + 1].fold:
            folded = class_sums(sums[finer])
            self.sums.write(slots[finer], folded)
        return known

    def _estimate(
        self, stage: GridStage, slots: Integers, sums: Floats, difference: Floats
    ) -> Judged:
        """What this stage alone says of the tracks."""
        tracks = self.tracks
        combined = np.vstack([stage.weights, stage.contrasts]) @ sums
        new = len(stage.nodes)
        found = attributions(self.evaluator, tracks, slots, combined, difference, new)
        integral = found[:, 0]
        change = tracks.f_end[slots] - tracks.f_start[slots]
        gap = integral.sum(1) - change
        deviation = estimate_kinked(stage, found, gap)
        return judged(slots, integral, deviation)

    def _fits(self, index: int, slots: Integers) -> Flags:
        """Whether there is such a stage, and room for it."""
        if index == len(self.stages):
            return np.zeros(len(slots), bool)
        new = len(self.stages[index].nodes)
        return self.pieces.room(slots) >= new

    def _needed(self, stage: GridStage, known: Judged) -> Integers:
        """Evaluations that the tolerance would take, where that is out of reach; 0 elsewhere.

        The order of convergence is the one seen over the last doubling of the grid, and at least 1.
        """
        needed = np.zeros(len(known.slots), np.int64)
        if not stage.full:
            return needed
        accuracy = self.criteria.accuracy
        before = self.doubled[known.slots]
        with np.errstate(divide="ignore", invalid="ignore"):
            allowed = self.criteria.allowed(known)
            order = np.fmax(np.log2(before / known.deviation), 1.0)
            ratio = np.fmax(known.deviation / allowed, 1.0)
            foreseen = np.minimum(stage.count * ratio ** (1 / order), 1e15)
        self.doubled[known.slots] = known.deviation
        late = stage.cells >= 2 * JUDGED and accuracy.on_unreachable == "stop"
        resolved = known.deviation < RESOLVED * known.size
        beyond = foreseen > HOPELESS * accuracy.max_evaluations
        hopeless = late & resolved & beyond
        needed[hopeless] = foreseen[hopeless]
        return needed
