"""Clean rows through the method, in pieces where the model raises on some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from integrand.schemas.redaction import redact
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.batching import targets_at_once
from integrand.workers.engine.memory import memory_budget
from integrand.workers.engine.results import Explained, numpy_dtype
from integrand.workers.engine.row_results import RowResults
from integrand.workers.isolation import Raised, isolate
from integrand.workers.methods.adaptive import until_reasons
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import planned_candidates
from integrand.workers.shards.job import Job


@dataclass(frozen=True, eq=False)
class Attributed:
    """Results of rows that the model got, `[rows × targets]`, and what their step batches were.

    padded  gradient evaluations that only filled step batches up
    halved  rows of the smallest step batch where memory ran out; None where it did not
    """

    rows: RowResults
    padded: int = 0
    halved: int | None = None


def attribute_clean(
    job: Job, rows: RowTensors, batch_rows: int, tick: Callable[[], None]
) -> Attributed:
    """Results of all rows in order; `failed` where the model raises on a row alone. The target of
    `rows` is `[rows, targets, depth]`, or None for scalar outputs.
    """
    if not rows.rows:
        return Attributed(_nothing(0, rows))
    asked = method_of(job.plan.spec.accuracy, job.plan.spec.method)
    among = planned_candidates(job.plan)
    method = until_reasons(asked, among)
    share = job.plan.spec.compute.gpus_per_worker or 1.0
    kept = memory_budget(rows.device, share=share).kept
    at_once = targets_at_once(batch_rows, rows.elements, kept)
    one_call = partial(
        explain,
        job.prepared,
        method=method,
        batch_rows=batch_rows,
        smaller=job.plan.numerics.smaller_batches,
        tick=tick,
        candidates=among,
    )

    def attempt(part: slice) -> Attributed:
        calls = _calls(rows.take(part), at_once)
        found = [one_call(call) for call in calls]
        return side_by_side(found, batch_rows)

    def failed(error: Raised) -> Attributed:
        return Attributed(_failed(rows, error))

    with torch.inference_mode(False):
        return joined(isolate(attempt, failed, slice(0, rows.rows)))


def _calls(rows: RowTensors, at_once: int) -> Iterator[RowTensors]:
    """The same rows for some of their targets after the other."""
    if rows.target is None:
        yield rows
        return
    for targets in torch.split(rows.target, at_once, 1):
        yield replace(rows, target=targets)


def side_by_side(calls: Sequence[Explained], planned: int) -> Attributed:
    """Calls about the same rows for a target after the other, as one."""
    rows = RowResults.concat([call.results for call in calls], axis=1)
    smallest = min(call.batch_rows for call in calls)
    return Attributed(
        rows.flat(),
        padded=sum(call.padded for call in calls),
        halved=smallest if smallest < planned else None,
    )


def joined(parts: Sequence[Attributed]) -> Attributed:
    """The rows of all parts below each other."""
    halved = [part.halved for part in parts if part.halved is not None]
    return Attributed(
        RowResults.concat([part.rows for part in parts]),
        padded=sum(part.padded for part in parts),
        halved=min(halved, default=None),
    )


def _failed(rows: RowTensors, error: Raised) -> RowResults:
    """One row that the model raises on."""
    targets = 1 if rows.target is None else rows.target.shape[1]
    said = redact(str(error))[:300]
    failed = _nothing(targets, rows)
    failed.status.fill(RowStatus.failed)
    failed.reason.fill(f"the model raised {type(error).__name__}: {said}")
    return failed


def _nothing(count: int, rows: RowTensors) -> RowResults:
    shapes = [tuple(x.shape[1:]) for x in rows.inputs]
    dtypes = [numpy_dtype(x) for x in rows.inputs]
    if rows.reporting is not None:
        shapes = list(rows.reporting.shapes)
        dtypes = [np.result_type(*dtypes)] * len(shapes)
    return RowResults.empty((count,), shapes, dtypes)
