"""A plain rule for every row: one accumulator per track, no certificate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import GradientStore, Loop, Stage, TrackGroup, Verdicts
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import Tracks, attributions, live_rows, masked
from integrand.workers.methods.paths import PathMethod
from integrand.workers.quadrature.rules import QuadratureRule, plain_rule

STATUSES = np.array([RowStatus.nonfinite, RowStatus.unchecked], object)


class FixedMethod(PathMethod[FixedSteps]):
    """The same nodes for every row."""

    @property
    def most_evaluations(self) -> int:
        return len(plain_rule(self.accuracy).nodes)

    def integrate(
        self, evaluator: Evaluator, rows: Tensor, f_input: Floats, f_baseline: Floats
    ) -> Iterator[Verdicts]:
        rule = plain_rule(self.accuracy)
        return integrate_fixed(evaluator, rule, rows, f_input, f_baseline)


def integrate_fixed(
    evaluator: Evaluator, rule: QuadratureRule, rows: Tensor, f_input: Floats, f_baseline: Floats
) -> Iterator[Verdicts]:
    """Verdicts in order of completion. `rows` [n] are row numbers of the problem; f_* [n, targets]
    belong to them.
    """
    problem = evaluator.problem
    count = len(rule.nodes)
    live = live_rows(problem.batch_rows, count)
    tracks = Tracks(problem, rows, f_input, f_baseline, live)
    store = GradientStore(tracks.slots, 1, problem.elements, torch.float64, problem.device)
    stage = Stage(rule.nodes, np.zeros(count, np.int64), store, rule.weights[-1])
    finished: list[Verdicts] = []

    def judge(slots: Integers) -> None:
        difference = tracks.difference(slots)
        sums = masked(store.read(slots, 1), difference)
        found = attributions(evaluator, tracks, slots, sums, difference, count)
        finished.append(_verdicts(tracks, slots, found[:, 0], count))
        store.clear(slots)
        tracks.release(slots)

    def admit(room: int) -> TrackGroup | None:
        new = -(-room // count)
        return tracks.admit(new, stage, judge)

    for _ in Loop(evaluator, admit).run():
        yield from finished
        finished.clear()


def _verdicts(tracks: Tracks, slots: Integers, found: Floats, count: int) -> Verdicts:
    total = found.sum(1)
    statuses = STATUSES[np.isfinite(total).astype(np.int64)]
    zeros = np.zeros(len(slots), np.int64)
    return Verdicts(
        rows=tracks.row[slots],
        targets=tracks.target[slots],
        statuses=statuses,
        attributions=found,
        gap=total - tracks.change[slots],
        error=np.full(len(slots), np.nan),
        evaluations=zeros + count,
        needed=zeros,
    )
