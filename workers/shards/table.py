"""A table of source rows becomes results: wrong rows, repeated ones and those that the model raises
on in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.redaction import redact
from integrand.schemas.tables import RowStatus
from integrand.workers.baselines.kinds import baseline_tensors
from integrand.workers.data.tensors import Bucket, Rows, length_buckets, to_rows
from integrand.workers.engine.batching import rows_of_length, targets_at_once
from integrand.workers.engine.results import beside
from integrand.workers.isolation import isolate
from integrand.workers.methods.attribution import Attribution, attribute
from integrand.workers.models.embeddings import IdsModel
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
    device = [_placed(job, ts) for ts in (part[0].inputs, part[1], part[0].forward_args)]
    table = row_targets(job, part[0], device, per_row, tick)
    found = _attributions_of(job, *device, table, tick)
    results = _scatter(job, ids, reasons, clean, copied, table, found)
    results = _lose(job, rows, results, lost) if lost else results
    lengths = tuple(
        rows.inputs[i].sum(1).long().numpy().repeat(per_row) if shape.varying else None
        for i, shape in enumerate(job.plan.inputs)
    )
    return replace(results, lengths=lengths, duplicates=len(clean) - len(first))


def _lose(job: Job, rows: Rows, results: Results, lost: Mapping[int, str]) -> Results:
    """The results with the culprits' rows as `failed`; a target that is known without the model
    stays.
    """
    per_row, target = job.plan.targets_per_row, results.target
    status, reason = list(results.status), list(results.reason)
    for row, why in lost.items():
        places = slice(row * per_row, (row + 1) * per_row)
        status[places], reason[places] = [RowStatus.failed] * per_row, [why] * per_row
    if rows.target is not None:
        known = [
            int(chosen) if row in lost else None for row, chosen in enumerate(rows.target.tolist())
        ]
        target = pc.coalesce(target, pa.array(known, target.type))
    return replace(results, status=status, reason=reason, target=target)


def _placed(job: Job, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A shard's rows on the worker's device, copied once and from pinned memory: step batches are
    made of them there.
    """
    if job.device == "cpu":
        return tensors
    return tuple(t.pin_memory().to(job.device, non_blocking=True) for t in tensors)


def distinct_rows(rows: Rows, baselines: Sequence[Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of clean rows that are equal in every bit the model gets, and which of
    these a row repeats.

    clean [n] row numbers → [distinct] row numbers, and [n] places among them. Rows are told apart
    by a 128-bit digest.
    """
    tensors = [*rows.inputs, *(b for b in baselines if b.shape[0] > 1), *rows.forward_args]
    tensors += [] if rows.target is None else [rows.target]
    arrays = [np.ascontiguousarray(t.numpy()).reshape(len(t), -1).view(np.uint8) for t in tensors]
    places: dict[bytes, int] = {}
    first: list[int] = []
    copied: list[int] = []
    for row in clean.tolist():
        digest = blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[row])
        place = places.setdefault(digest.digest(), len(places))
        first += [row] if place == len(first) else []
        copied.append(place)
    return torch.tensor(first, dtype=torch.int64), torch.tensor(copied, dtype=torch.int64)


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

    for start in range(0, len(clean), _LOOKUP_ROWS):
        part = slice(start, min(start + _LOOKUP_ROWS, len(clean)))
        found = chain.from_iterable(isolate(attempt, lambda error: [None], part))
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


def _attributions_of(
    job: Job,
    xs: tuple[Tensor, ...],
    bs: tuple[Tensor, ...],
    args: tuple[Tensor, ...],
    table: Tensor | None,
    tick: Callable[[], None],
) -> list[Attribution]:
    """Attributions `[rows, targets, ...]` of all rows in order, in pieces where the model raises on
    some of them.
    """
    count = xs[0].shape[0]
    if not count:
        return []
    batch_rows, elements = job.plan.numerics.batch_rows, sum(x[0].numel() for x in xs)
    groups = [None] if table is None else table.unbind(1)
    at_once = targets_at_once(batch_rows, elements)

    def attempt(rows: slice) -> Attribution:
        found = [
            attribute(
                job.prepared,
                tuple(x[rows] for x in xs),
                baselines=tuple(b if b.shape[0] == 1 else b[rows] for b in bs),
                target=(
                    None if table is None else [t[rows] for t in groups[start : start + at_once]]
                ),
                forward_args=tuple(a[rows] for a in args),
                accuracy=job.plan.spec.accuracy,
                batch_rows=batch_rows,
                tick=tick,
                checked=True,
            )
            for start in range(0, len(groups), at_once)
        ]
        return beside(found) if len(found) > 1 else found[0]

    return isolate(attempt, lambda error: _failed(xs, len(groups), error), slice(0, count))


def _failed(xs: tuple[Tensor, ...], targets: int, error: Exception) -> Attribution:
    reason = f"the model raised {type(error).__name__}: {redact(str(error))[:300]}"
    nan = torch.full((1, targets), float("nan"), dtype=torch.float64)
    values = tuple(torch.full((1, targets, *x.shape[1:]), float("nan"), dtype=x.dtype) for x in xs)
    none = torch.zeros((1, targets), dtype=torch.int32)
    return Attribution(
        values, nan, nan, nan, nan, none, (RowStatus.failed,) * targets, (reason,) * targets
    )


def _scatter(
    job: Job,
    ids: pa.Array,
    reasons: list[str | None],
    clean: Tensor,
    copied: Tensor,
    table: Tensor | None,
    parts: list[Attribution],
) -> Results:
    """Results in row order: the clean rows' attributions, or those of the row they repeat, and
    bad_input elsewhere.
    """
    rows, per_row = len(reasons), job.plan.targets_per_row
    out = rows * per_row
    places, origin = (
        (i[:, None] * per_row + torch.arange(per_row)).flatten().numpy() for i in (clean, copied)
    )
    status, reason = [RowStatus.bad_input] * out, [r for r in reasons for _ in range(per_row)]
    statuses, told = [s for p in parts for s in p.status], [r for p in parts for r in p.reason]
    for place, i in zip(places, origin, strict=True):
        status[place], reason[place] = statuses[i], told[i]

    def scattered(name: str) -> NDArray[np.float64]:
        full = np.full(out, np.nan)
        full[places] = _joined([getattr(p, name).flatten() for p in parts])[origin]
        return full

    evaluations = np.zeros(out, np.int32)
    evaluations[places] = _joined([p.evaluations.flatten() for p in parts])[origin]
    table = (
        table if table is None else table.flatten(0, 1)[torch.from_numpy(origin).to(table.device)]
    )
    return Results(
        ids.take(pa.array(np.arange(rows).repeat(per_row))),
        target_column(job, table, places, status),
        status,
        reason,
        scattered("f_input"),
        scattered("f_baseline"),
        scattered("gap"),
        scattered("error_estimate"),
        evaluations,
        _attributions(job, parts, places, origin, out),
        padded=sum(p.padded for p in parts),
        halved=_halved(job, parts),
    )


def _halved(job: Job, parts: list[Attribution]) -> int | None:
    """Rows of the smallest step batch where memory ran out; None where it did not."""
    planned = job.plan.numerics.batch_rows
    return min((p.batch_rows for p in parts if 0 < p.batch_rows < planned), default=None)


def _joined(parts: list[Tensor]) -> NDArray[np.generic]:
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _attributions(
    job: Job,
    parts: list[Attribution],
    places: NDArray[np.int64],
    origin: NDArray[np.int64],
    out: int,
) -> tuple[np.ndarray, ...]:
    made = []
    for i, shape in enumerate(job.plan.inputs):
        full = np.full((out, *shape.shape), np.nan, np.dtype(job.plan.numerics.precision))
        if parts:
            found = torch.cat([p.attributions[i].reshape(-1, *shape.shape).cpu() for p in parts])
            full[places] = found.numpy()[origin]
        made.append(full)
    return tuple(made)
