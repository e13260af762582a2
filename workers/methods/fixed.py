"""A plain rule for every row: one sum of gradients per track, no certificate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import Floats, Samples, TrackGroup
from integrand.workers.engine.loop import Entrance, Loop
from integrand.workers.engine.parts import in_parts, part_rows, wave_rows
from integrand.workers.engine.tracks import Tracks, attributions, masked, on_device, whole_paths
from integrand.workers.engine.verdicts import Verdicts, coded
from integrand.workers.methods.paths import PathMethod
from integrand.workers.quadrature.rules import QuadratureRule, plain_rule

STATUSES = (RowStatus.nonfinite, RowStatus.unchecked)
WAVE_BYTES = 2 << 20
"""Gradients of the rows that enter at once may take so many bytes: sums are all that is kept."""
CHUNK = 64
"""Nodes whose gradients are there at once."""


class FixedMethod(PathMethod[FixedSteps]):
    """The same nodes for every row."""

    @property
    def most_evaluations(self) -> int:
        return len(plain_rule(self.accuracy).nodes)

    def integrate(
        self, evaluator: Evaluator, rows: Tensor, f_input: Tensor, f_baseline: Tensor
    ) -> Iterator[Verdicts]:
        rule = plain_rule(self.accuracy)
        return integrate_fixed(evaluator, rule, rows, f_input, f_baseline)


def integrate_fixed(
    evaluator: Evaluator, rule: QuadratureRule, rows: Tensor, f_input: Tensor, f_baseline: Tensor
) -> Iterator[Verdicts]:
    """Verdicts in order of completion. `rows` [n] are row numbers of the problem; f_* [n, targets]
    belong to them.
    """
    tracks = whole_paths(evaluator.problem, rows, f_input, f_baseline)
    weighted = _Weighted(evaluator, rule)
    first = len(weighted.nodes(0))
    entrance: Entrance[Sum] = Entrance(
        evaluator, tracks, wave=weighted.wave(first), part=weighted.part(first)
    )
    loop: Loop[Sum] = Loop(evaluator, partial(weighted.enter, entrance))
    for group in loop:
        sums = weighted.absorb(group)
        following = Sum(group.stage.chunk + 1, sums)
        if following.chunk < weighted.chunks:
            more = partial(weighted.group, group.tracks, following)
            loop.add(evaluator.within_memory(more))
        else:
            yield evaluator.within_memory(partial(weighted.verdicts, group.tracks, sums))


@dataclass(frozen=True, eq=False)
class Sum:
    """Which chunk of the nodes is evaluated, and the weighted sum of the gradients before it,
    [tracks, 1, elements] float64.
    """

    chunk: int
    before: Tensor | None


class _Weighted:
    """The weighted sums of a rule, chunk by chunk of its nodes."""

    def __init__(self, evaluator: Evaluator, rule: QuadratureRule) -> None:
        self.evaluator, self.rule = evaluator, rule
        weights = torch.from_numpy(rule.weights[-1]).to(evaluator.problem.device)
        self.weights = weights.split(CHUNK)
        self.chunks = len(self.weights)

    def nodes(self, chunk: int) -> Floats:
        return self.rule.nodes[chunk * CHUNK : (chunk + 1) * CHUNK]

    def enter(self, entrance: Entrance[Sum]) -> TrackGroup[Sum] | None:
        return entrance.next_group(lambda wave: self.group(wave, Sum(0, None)))

    def group(self, tracks: Tracks, stage: Sum) -> TrackGroup[Sum]:
        problem = self.evaluator.problem
        return TrackGroup(problem, tracks, self.nodes(stage.chunk), stage)

    def wave(self, nodes: int) -> int:
        """Rows that enter at once."""
        return wave_rows(self.evaluator.problem, nodes, WAVE_BYTES)

    def part(self, nodes: int) -> int:
        """Tracks whose gradients are summed at once."""
        elements = self.evaluator.problem.elements
        return part_rows(self.evaluator, nodes * elements, self.wave(nodes))

    def absorb(self, group: TrackGroup[Sum]) -> Tensor:
        """The sums with a complete group's samples in them, which are let go of."""
        samples = self.evaluator.within_memory(group.samples)
        return self.evaluator.within_memory(partial(self.sums, group.stage, samples))

    def sums(self, stage: Sum, samples: Samples) -> Tensor:
        """[tracks, 1, elements], with the samples of a stage in them."""
        weights = self.weights[stage.chunk][None]
        tracks, nodes, _ = samples.gradients.shape
        found = []
        for part, count in in_parts(tracks, self.part(nodes)):
            gradients = samples.gradients[on_device(part, weights.device)]
            added = weights @ gradients.double()
            found.append(added[:count])
        sums = torch.cat(found)
        return sums if stage.before is None else sums.add_(stage.before)

    def verdicts(self, tracks: Tracks, sums: Tensor) -> Verdicts:
        found, totals, means = [], [], []
        for part, count in in_parts(len(tracks), self.part(len(self.nodes(0)))):
            own = tracks.take(part)
            difference = own.difference(self.evaluator.problem)
            combined = masked(sums[on_device(part, sums.device)], difference).clone()
            values, first = attributions(self.evaluator, own, combined, difference)
            found.append(values[:count, 0])
            totals.append(values.sum(2)[:count, 0])
            means.append(first[:count])
        return self._ended(tracks, torch.cat(found), torch.cat(totals), torch.cat(means))

    def _ended(self, tracks: Tracks, found: Tensor, total: Tensor, gradients: Tensor) -> Verdicts:
        none = torch.zeros_like(tracks.spent)
        return Verdicts(
            rows=tracks.rows,
            targets=tracks.targets,
            status=coded(STATUSES, torch.isfinite(total).long()),
            attributions=found,
            gap=total - tracks.change,
            error=torch.full_like(total, np.nan),
            evaluations=none + len(self.rule.nodes),
            needed=none,
            gradients=gradients,
        )
