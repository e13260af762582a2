"""A table of source rows becomes results: wrong rows, repeated ones and those that the model raises
on in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import chain
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.baselines.kinds import baseline_tensors
from integrand.workers.data.tensors import Bucket, Rows, length_buckets, to_rows
from integrand.workers.engine.batching import rows_of_length
from integrand.workers.engine.row_results import RowResults
from integrand.workers.isolation import isolate
from integrand.workers.models.embeddings import IdsModel
from integrand.workers.shards.attempts import attribute_clean
from integrand.workers.shards.distinct import distinct_rows
from integrand.workers.shards.job import Job
from integrand.workers.shards.results import Results, merge
from integrand.workers.shards.targets import refuse_targets, row_targets, target_column

_LOOKUP_ROWS = 256
"""Rows whose ids are looked at in one pass before anything is computed."""


def attribute_table(
    job: Job,
    table: pa.Table,
    ids: pa.Array,
    tick: Callable[[], None],
    culprits: Mapping[int, str] = MappingProxyType({}),
) -> Results:
    """Results of all rows and targets in order, computed for one padded length of ids after the
    other.

    `culprits` are rows that are not run, with the reason why they have `failed`.
    """
    found, per_row = [], job.plan.targets_per_row
    for bucket in length_buckets(table, job.plan.spec, job.plan.inputs):
        rows = to_rows(bucket.of(table), job.plan.spec, bucket.shapes)
        places = (bucket.rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
        kept_out = {
            i: culprits[row] for i, row in enumerate(bucket.rows.tolist()) if row in culprits
        }
        same_length, its_ids = _of_length(job, bucket), ids.take(pa.array(bucket.rows))
        found.append((places, attribute_rows(same_length, rows, its_ids, tick, kept_out)))
    return merge(found)


def _of_length(job: Job, bucket: Bucket) -> Job:
    """The job as it is for rows of one padded length: its step batches take what memory was
    planned, whatever shards.
    """
    planned, length = (
        sum(s.shape[0] for s in shapes if s.varying) for shapes in (job.plan.inputs, bucket.shapes)
    )
    size = job.plan.numerics.batch_rows
    if length and job.plan.spec.compute.batch_rows == "auto":
        size = rows_of_length(size, planned, length)
    numerics = job.plan.numerics.model_copy(update={"batch_rows": size})
    return replace(
        job, plan=job.plan.model_copy(update={"inputs": bucket.shapes, "numerics": numerics})
    )


def attribute_rows(
    job: Job,
    rows: Rows,
    ids: pa.Array,
    tick: Callable[[], None],
    culprits: Mapping[int, str] = MappingProxyType({}),
) -> Results:
    """Attributions of every row and target, bad rows and culprits in their places: rows × targets
    results in order.
    """
    spec, per_row = job.plan.spec, job.plan.targets_per_row
    baselines = baseline_tensors(spec, job.plan.inputs, rows, job.means)
    reasons = list(rows.reasons)
    refuse_targets(job, rows, reasons)
    lost = {i: reason for i, reason in culprits.items() if reasons[i] is None}
    _refuse_ids(job, rows, reasons, lost)
    clean = torch.tensor(
        [i for i, reason in enumerate(reasons) if reason is None and i not in lost],
        dtype=torch.int64,
    )
    first, copied = distinct_rows(rows, baselines, clean)
    part = _take(rows, first), tuple(b if b.shape[0] == 1 else b[first] for b in baselines)
    xs, bs, args = (_placed(job, ts) for ts in (part[0].inputs, part[1], part[0].forward_args))
    table = row_targets(job, part[0], [xs, bs, args], per_row, tick)
    found = attribute_clean(job, xs, bs, args, table, tick)
    results = RowResults.empty(
        (len(reasons) * per_row,),
        inputs=[shape.shape for shape in job.plan.inputs],
        dtypes=[job.plan.numerics.precision for _ in job.plan.inputs],
    )
    results.reason[:] = np.repeat(np.array(reasons, object), per_row)
    places, origin = _output_rows(clean, per_row), _output_rows(copied, per_row)
    results.put(places, found.rows.take(origin))
    _set_lost(results, lost, per_row)
    copies = (
        table if table is None else table.flatten(0, 1)[torch.from_numpy(origin).to(table.device)]
    )
    target = target_column(job, copies, places, results.status.tolist())
    return Results(
        row_id=ids.take(pa.array(np.arange(len(reasons)).repeat(per_row))),
        target=_with_lost(target, rows, lost),
        rows=results,
        lengths=_lengths(job, rows),
        padded=found.padded,
        duplicates=len(clean) - len(first),
        halved=found.halved,
    )


def _output_rows(rows: Tensor, per_row: int) -> NDArray[np.int64]:
    """Numbers of the output rows of input rows, all targets of one after the other."""
    return (rows.numpy()[:, None] * per_row + np.arange(per_row)).reshape(-1)


def _set_lost(results: RowResults, lost: Mapping[int, str], per_row: int) -> None:
    """Write the culprits' rows as `failed`."""
    for row, reason in lost.items():
        places = slice(row * per_row, (row + 1) * per_row)
        results.status[places] = RowStatus.failed
        results.reason[places] = reason


def _with_lost(target: pa.Array, rows: Rows, lost: Mapping[int, str]) -> pa.Array:
    """The target column with the culprits' own targets, where they are known without the model."""
    if rows.target is None or not lost:
        return target
    chosen = rows.target.tolist()
    known = [int(chosen[row]) if row in lost else None for row in range(len(chosen))]
    return pc.coalesce(target, pa.array(known, target.type))


def _lengths(job: Job, rows: Rows) -> tuple[NDArray[np.int64] | None, ...]:
    """For inputs of varying length how much of each output row is its own."""
    pairs = zip(rows.inputs, job.plan.inputs, strict=True)
    per_row = job.plan.targets_per_row
    return tuple(
        x.sum(1).long().numpy().repeat(per_row) if shape.varying else None for x, shape in pairs
    )


def _placed(job: Job, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A shard's rows on the worker's device, copied once and from pinned memory: step batches are
    made of them there.
    """
    if job.device == "cpu":
        return tensors
    return tuple(t.pin_memory().to(job.device, non_blocking=True) for t in tensors)


def _refuse_ids(job: Job, rows: Rows, reasons: list[str | None], lost: Collection[int]) -> None:
    """Reasons for rows with ids that the model does not know; one that it raises on is `failed`
    later.
    """
    if not isinstance(job.forward, IdsModel):
        return
    clean = torch.tensor(
        [i for i, reason in enumerate(reasons) if reason is None and i not in lost]
    )
    model = job.forward
    arguments = (
        [t[clean].to(job.device) for t in (*rows.inputs, *rows.forward_args)] if len(clean) else []
    )

    def attempt(part: slice) -> list[str | None]:
        return model.unknown_ids(*(a[part] for a in arguments))

    def failed(error: Exception) -> list[str | None]:
        return [None]

    for start in range(0, len(clean), _LOOKUP_ROWS):
        part = slice(start, min(start + _LOOKUP_ROWS, len(clean)))
        found = chain.from_iterable(isolate(attempt, failed, part))
        for i, reason in zip(clean[part].tolist(), found, strict=True):
            reasons[i] = reason


def _take(rows: Rows, index: Tensor) -> Rows:
    return replace(
        rows,
        inputs=tuple(x[index] for x in rows.inputs),
        forward_args=tuple(a[index] for a in rows.forward_args),
        target=None if rows.target is None else rows.target[index],
        reasons=[rows.reasons[i] for i in index.tolist()],
    )
