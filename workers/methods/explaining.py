"""Rows explained by a method: the inner door, for tensors that are known to fit the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.results import Explained, Report
from integrand.workers.methods.base import Method
from integrand.workers.models.row_tensors import RowTensors


def explain(
    prepared: Prepared,
    rows: RowTensors,
    method: Method[Any],
    *,
    batch_rows: int,
    smaller: tuple[int, ...] = (),
    tick: Callable[[], None] = lambda: None,
) -> Explained:
    """Results of rows. The model is as it shall run: nothing is tried of it here.

    The target of `rows` is `[rows, targets, depth]`, or None for scalar outputs; `smaller` are step
    batches that may be taken for less than `batch_rows`; `tick` is called after each step batch.
    """
    problem = Problem(prepared.forward, rows, batch_rows, tick, smaller=smaller)
    evaluator = Evaluator(replace(problem, step=prepared.step, reduced=prepared.reduced))
    report = Report(problem)
    clean = report.set_bad_inputs()
    if len(clean):
        verdicts = method.explain(evaluator, prepared, clean, report.settle)
        report.take(verdicts)
    return report.finished(method.reason, padded=evaluator.padded, batch_rows=evaluator.capacity)
