"""Rows explained by a method: the inner door, for tensors that are known to fit the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.results import Explained, Report
from integrand.workers.methods.averaging import (
    averaged,
    below,
    cancelling,
    counted,
    rows_at_once,
    with_rows,
)
from integrand.workers.methods.base import Method
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import Candidates


def explain(
    prepared: Prepared,
    rows: RowTensors,
    method: Method[Any],
    *,
    batch_rows: int,
    smaller: tuple[int, ...] = (),
    tick: Callable[[], None] = lambda: None,
    candidates: Candidates | None = None,
) -> Explained:
    """Results of rows. The model is as it shall run: nothing is tried of it here.

    The target of `rows` is `[rows, targets, depth]`, or None for scalar outputs; `smaller` are step
    batches that may be taken for less than `batch_rows`; `tick` is called after each step batch;
    `candidates` are what may be reasons, where rows have some.
    """
    call = _Call(prepared, batch_rows, smaller, tick, candidates)
    if rows.draws == 1:
        return call.explain(rows, method)
    if not method.by_path:
        return counted(call.explain(rows, method), rows.draws)
    targets = 1 if rows.target is None else rows.target.shape[1]
    size = rows_at_once(rows.device, targets * rows.elements * rows.draws)
    return below([call.average(part, method) for part in _parts(rows, size)])


def _parts(rows: RowTensors, size: int) -> Iterator[RowTensors]:
    for start in range(0, rows.rows, size):
        yield rows.take(slice(start, start + size))


@dataclass(frozen=True, eq=False)
class _Call:
    """A model, and how its step batches run."""

    prepared: Prepared
    batch_rows: int
    smaller: tuple[int, ...]
    tick: Callable[[], None]
    candidates: Candidates | None

    def explain(self, rows: RowTensors, method: Method[Any]) -> Explained:
        """One result for each path, or for each row of a method that takes its paths together."""
        prepared = self.prepared
        problem = Problem(prepared.forward, rows, self.batch_rows, self.tick, smaller=self.smaller)
        stepping = replace(problem, step=prepared.step, reduced=prepared.reduced)
        evaluator = Evaluator(stepping)
        report = Report(problem, 1 if method.by_path else rows.draws)
        clean = report.set_bad_inputs()
        if len(clean):
            verdicts = method.explain(evaluator, prepared, clean, report.settle)
            report.take(verdicts)
        capacity = evaluator.capacity
        return report.finished(method.reason, padded=evaluator.padded, batch_rows=capacity)

    def average(self, rows: RowTensors, method: Method[Any]) -> Explained:
        """The mean over the draws of each row. Where certified draws cancel so much that their mean
        is not certain, they are taken once more, to a smaller tolerance.
        """
        found = self.explain(rows, method)
        mean = averaged(found, rows.draws, method.tolerance, self.candidates)
        if method.tolerance is None:
            return mean
        factors = cancelling(found, mean, rows.draws, method.tolerance)
        for factor in np.unique(factors[factors > 1]).tolist():
            some = np.flatnonzero(factors == factor)
            again = self.explain(rows.take(torch.from_numpy(some)), method.tighter(factor))
            better = averaged(again, rows.draws, method.tolerance, self.candidates)
            mean = with_rows(mean, some, better)
        return mean
