"""Grids for kinked integrands: they grow until they are certified, or the evaluations are spent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import Floats, Samples
from integrand.workers.engine.parts import NARROW_PART, in_parts, part_rows
from integrand.workers.engine.tracks import Some, Tracks, attributions, masked, on_device
from integrand.workers.methods.criteria import Criteria, Judged, Next, judged
from integrand.workers.methods.pieces import Pieces
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
CHUNK = 32
"""Nodes of a stage whose gradients are there at once: sums are all that is kept of them."""


def least_grid(most: int) -> int:
    """Evaluations of the first grid that may certify; more than `most` if there is none."""
    for stage in grid_stages(most):
        if stage.cells >= JUDGED:
            return stage.count
    return most + 1


@dataclass(frozen=True, eq=False)
class Addition:
    """How some nodes of a stage go into the sums.

    matrix    [added, nodes] float64, on the device: the nodes of each sum
    columns   [added]: where these are added
    replaced  columns that hold one gradient, and not what was there before
    """

    matrix: Tensor
    columns: tuple[int, ...]
    replaced: tuple[int, ...]


@cache
def _addition(stage: GridStage, start: int, stop: int, device: torch.device) -> Addition:
    """Of nodes [start, stop) of a stage."""
    nodes: dict[int, list[int]] = {}
    for node, column in enumerate(stage.columns[start:stop].tolist()):
        nodes.setdefault(column, []).append(node)
    replaced = []
    for edge, column in zip(stage.edges, (FIRST_EDGE, LAST_EDGE), strict=True):
        if edge is not None and start <= edge < stop:
            nodes[column] = [edge - start]
            replaced.append(column)
    matrix = torch.zeros(len(nodes), min(stop, len(stage.nodes)) - start, dtype=torch.float64)
    for row, summed in enumerate(nodes.values()):
        matrix[row, summed] = 1.0
    return Addition(matrix.to(device), tuple(nodes), tuple(replaced))


@dataclass(frozen=True, eq=False)
class Sums:
    """What is kept of tracks on a grid.

    sums     [tracks, COLUMNS, elements] float64
    carried  [tracks] deviation × cells of the last stage
    doubled  [tracks] deviation when the grid was last full; NaN before
    """

    sums: Tensor
    carried: Tensor
    doubled: Tensor

    def take(self, which: Some) -> Sums:
        index = on_device(which, self.carried.device)
        return Sums(self.sums[index], self.carried[index], self.doubled[index])


class Grids:
    """Tracks on a grid, stage by stage."""

    def __init__(self, evaluator: Evaluator, criteria: Criteria, pieces: Pieces) -> None:
        self.evaluator, self.criteria, self.pieces = evaluator, criteria, pieces
        self.device = evaluator.problem.device
        self.stages = grid_stages(criteria.accuracy.max_evaluations, self.device)

    def chunks(self, index: int) -> list[Floats]:
        """Nodes of a stage, and how they are evaluated after each other."""
        nodes = self.stages[index].nodes
        return [nodes[start : start + CHUNK] for start in range(0, len(nodes), CHUNK)]

    def absorb(
        self, index: int, chunk: int, tracks: Tracks, kept: Sums | None, samples: Samples
    ) -> Sums:
        """The sums with the gradients of one chunk of a stage's nodes in them."""
        start = chunk * CHUNK
        added = _addition(self.stages[index], start, start + CHUNK, self.device)
        found = self._found(added, samples)
        kept = kept or self._start(len(tracks))
        if chunk == 0 and self.stages[index].fold:
            kept = replace(kept, sums=class_sums(kept.sums))
        # in place, now that nothing can run out of memory any more
        for place, column in enumerate(added.columns):
            own = kept.sums[:, column]
            if column in added.replaced:
                own.copy_(found[:, place])
            else:
                own.add_(found[:, place])
        return kept

    def judge(self, index: int, tracks: Tracks, kept: Sums) -> tuple[Judged, Sums]:
        stage = self.stages[index]
        elements = self.evaluator.problem.features.elements
        numbers = (COLUMNS + 3 * len(stage.readings)) * elements
        most = NARROW_PART.on(self.device)
        size = part_rows(self.evaluator, numbers, most)
        parts, alone = [], []
        for part, count in in_parts(len(tracks), size):
            found, deviation = self._judge(index, tracks.take(part), kept.take(part))
            parts.append(found.take(slice(count)))
            alone.append(deviation[:count])
        deviation = torch.cat(alone)
        doubled = deviation if stage.full else kept.doubled
        return Judged.join(parts), Sums(kept.sums, deviation * stage.cells, doubled)

    def _found(self, added: Addition, samples: Samples) -> Tensor:
        """What is added to each sum, [tracks, added, elements] float64."""
        _, nodes, elements = samples.gradients.shape
        most = self.evaluator.problem.batch_rows // nodes
        size = part_rows(self.evaluator, (nodes + 2 * len(added.columns)) * elements, most)
        found = []
        for part, count in in_parts(len(samples.gradients), size):
            gradients = samples.gradients[on_device(part, self.device)]
            sums = added.matrix @ gradients.double()
            found.append(sums[:count])
        return torch.cat(found)

    def _start(self, count: int) -> Sums:
        elements = self.evaluator.problem.elements
        sums = torch.zeros(count, COLUMNS, elements, dtype=torch.float64, device=self.device)
        return Sums(sums, sums.new_zeros(count), sums.new_full((count,), torch.nan))

    def _judge(self, index: int, tracks: Tracks, kept: Sums) -> tuple[Judged, Tensor]:
        """What is known of some tracks, and the deviation that this stage alone says."""
        stage = self.stages[index]
        alone = self._alone(stage, tracks, kept)
        remembered = MEMORY * kept.carried / stage.cells
        known = replace(alone, deviation=torch.maximum(alone.deviation, remembered))
        settled = self.criteria.settled(tracks, known, certify=stage.cells >= JUDGED)
        needed = torch.where(settled, 0, self._needed(stage, tracks, alone, kept.doubled))
        finer = self._fits(index + 1, tracks) & (needed == 0)
        onwards = torch.where(finer, int(Next.FINER), int(Next.END))
        following = torch.where(settled, int(Next.DONE), onwards)
        return replace(known, needed=needed, next=following), alone.deviation

    def _alone(self, stage: GridStage, tracks: Tracks, kept: Sums) -> Judged:
        """What this stage alone says of the tracks."""
        difference = tracks.difference(self.evaluator.problem)
        combined = stage.readings @ masked(kept.sums, difference)
        found, first = attributions(self.evaluator, tracks, combined, difference)
        estimate = estimate_kinked(stage, found, tracks.f_end - tracks.f_start)
        one = torch.ones_like(estimate.deviation)
        known = judged(estimate, first, gaps=one, integrand=tracks.integrand)
        return self.criteria.of_reported(tracks, known)

    def _fits(self, index: int, tracks: Tracks) -> Tensor:
        """Whether there is such a stage, and room for it."""
        room = self.pieces.room(tracks)
        if index == len(self.stages):
            return torch.zeros_like(room, dtype=torch.bool)
        return room >= len(self.stages[index].nodes)

    def _needed(self, stage: GridStage, tracks: Tracks, known: Judged, doubled: Tensor) -> Tensor:
        """Evaluations that the tolerance, or within it the reasons, would take, where that is out
        of reach; 0 elsewhere.

        The order of convergence is the one seen over the last doubling of the grid, and at least 1.
        """
        accuracy = self.criteria.accuracy
        if not stage.full or stage.cells < 2 * JUDGED or accuracy.on_unreachable != "stop":
            return torch.zeros_like(known.needed)
        order = (doubled / known.deviation).log2().nan_to_num(nan=1.0).clamp(min=1.0)
        goal = self.criteria.goal(tracks, known)
        ratio = (known.deviation / goal).nan_to_num(nan=1.0).clamp(min=1.0)
        foreseen = (stage.count * ratio ** (1 / order)).clamp(max=1e15)
        resolved = known.deviation < RESOLVED * known.size
        hopeless = resolved & (foreseen > HOPELESS * accuracy.max_evaluations)
        return torch.where(hopeless, foreseen, 0.0).long()
