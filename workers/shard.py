"""One shard's whole life: read, attribute, encode, commit. The commit is one conditional create."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from threading import Event, Thread
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from integrand.schemas.errors import IntegrandError, IntegrityError
from integrand.schemas.ids import FOOTER_KEY, shard_object
from integrand.schemas.records import Plan, Shard, ShardFooter, Trial
from integrand.schemas.redaction import redact
from integrand.schemas.specs import ArgmaxTarget, ColumnTarget, IndexTarget, TopKTarget
from integrand.schemas.tables import RowStatus
from integrand.schemas.uris import Uri
from integrand.workers.attribution import Attribution, attribute
from integrand.workers.baselines import baseline_tensors
from integrand.workers.batching import rows_of_length, targets_at_once
from integrand.workers.embeddings import IdsModel
from integrand.workers.encoding import Results, encode, merge, results_table, shard_footer, target_array
from integrand.workers.engine import Evaluator, Problem
from integrand.workers.failpoints import reach
from integrand.workers.outputs import Forward
from integrand.workers.prepared import Prepared
from integrand.workers.reading import read_slices, row_ids
from integrand.workers.report import beside
from integrand.workers.rows import Bucket, Rows, length_buckets, to_rows
from integrand.workers.store import Store

Found = TypeVar("Found")
_LOOKUP_ROWS = 256
"""Rows whose ids are looked at in one pass before anything is computed."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every shard of a run shares: the plan, the loaded model and where things go."""

    plan: Plan
    plan_sha256: str
    store: Store
    run: Uri
    forward: Forward
    prepared: Prepared
    means: tuple[np.ndarray, ...] | None
    device: str
    versions: dict[str, str]
    row_id_type: pa.DataType | None = None
    same_build: bool = True


def read_shard(job: Job, shard: Shard, tick: Callable[[], None] = lambda: None) -> pa.Table:
    """The shard's source columns; safe to call ahead of time from another thread."""
    return read_slices(job.store, job.plan.files, shard.slices, job.plan.source_columns, tick)


def run_shard(job: Job, shard: Shard, table: pa.Table, read_s: float, tick: Callable[[], None]) -> ShardFooter:
    """Attribute the rows of `table`, commit the object and return its footer. The culprits of a Trial end as `failed`.

    If another attempt has committed already, its footer is checked and returned. Raises IntegrityError if the object
    there belongs to something else.
    """
    started = time.perf_counter()
    culprits = {c.row: c.reason for c in shard.culprits} if isinstance(shard, Trial) else {}
    results = attribute_table(job, table, _ids(job, shard, table), tick, culprits)
    reach("shard.computed")
    computed = time.perf_counter()
    output = results_table(job.plan, results)
    seconds = {"read": read_s, "compute": computed - started, "table": time.perf_counter() - computed}
    footer = shard_footer(job.plan, job.plan_sha256, shard, results, seconds=seconds, versions=job.versions,
                          same_build=job.same_build)  # fmt: skip
    tick()
    data = encode(output, footer)
    reach("shard.encoded")
    with _waiting(tick):
        return commit(job, shard, data, footer)


@contextmanager
def _waiting(tick: Callable[[], None]) -> Iterator[None]:
    """Tick every second: the store has deadlines of its own, and waiting for it within them is no stall."""
    done = Event()

    def beat() -> None:
        while not done.wait(1.0):
            tick()

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def try_rows(job: Job, trial: Trial, table: pa.Table, tick: Callable[[], None]) -> None:
    """Attribute the rows of a trial and commit nothing: whoever asks wants to know whether the worker lives on."""
    start, stop = trial.only or (0, trial.rows)
    if stop > start:
        ids = _ids(job, trial, table)
        attribute_table(job, table.slice(start, stop - start), ids.slice(start, stop - start), tick)


def _ids(job: Job, shard: Shard, table: pa.Table) -> pa.Array:
    ids = row_ids(job.plan.files, shard.slices, table, job.plan.spec.source.row_id)
    return ids.cast(job.row_id_type) if job.row_id_type else ids  # files may differ: int32 here, int64 there


def commit(job: Job, shard: Shard, data: bytes, footer: ShardFooter) -> ShardFooter:
    """Create the shard's object if it is absent; whoever created it, the footer of what is there now."""
    place = job.run.child(shard_object(shard.id))
    try:
        job.store.create(place, data, scratch=job.run.child("_tmp"))
    except FileExistsError:
        return check_committed(job, shard, place)
    reach("shard.committed")
    return footer


def check_committed(job: Job, shard: Shard, place: Uri) -> ShardFooter:
    """Footer of an object that was there first. An ambiguous answer to our own create ends here too."""
    footer = _stored_footer(job, place)
    wanted = (job.plan.run_id, shard.id, job.plan_sha256)
    seen = (footer.run_id, footer.shard, footer.plan_sha256) if footer else None
    if footer is None or seen != wanted:
        raise IntegrityError(f"object {place}", expected=f"shard {shard.id} of run {job.plan.run_id}", seen=str(seen),
                             next_step="something else wrote below the run folder: move it away and run again")  # fmt: skip
    return footer


def _stored_footer(job: Job, place: Uri) -> ShardFooter | None:
    """None where the object is no shard's."""
    try:
        with job.store.open(place) as file:
            return ShardFooter.model_validate_json((pq.read_metadata(file).metadata or {})[FOOTER_KEY.encode()])
    except (pa.ArrowException, OSError, KeyError, ValidationError):
        return None


def attribute_table(job: Job, table: pa.Table, ids: pa.Array, tick: Callable[[], None],
                    culprits: Mapping[int, str] = MappingProxyType({})) -> Results:  # fmt: skip
    """Results of all rows and targets in order, computed for one padded length of ids after the other.

    `culprits` are rows that are not run, with the reason why they have `failed`.
    """
    found, per_row = [], job.plan.targets_per_row
    for bucket in length_buckets(table, job.plan.spec, job.plan.inputs):
        rows = to_rows(bucket.of(table), job.plan.spec, bucket.shapes)
        places = (bucket.rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
        kept_out = {i: culprits[row] for i, row in enumerate(bucket.rows.tolist()) if row in culprits}
        same_length, its_ids = _of_length(job, bucket), ids.take(pa.array(bucket.rows))
        found.append((places, attribute_rows(same_length, rows, its_ids, tick, kept_out)))
    return merge(found)


def _of_length(job: Job, bucket: Bucket) -> Job:
    """The job as it is for rows of one padded length: its step batches take what memory was planned, whatever shards."""
    planned, length = (sum(s.shape[0] for s in shapes if s.varying) for shapes in (job.plan.inputs, bucket.shapes))
    size = job.plan.numerics.batch_rows
    if length and job.plan.spec.compute.batch_rows == "auto":
        size = rows_of_length(size, planned, length)
    numerics = job.plan.numerics.model_copy(update={"batch_rows": size})
    return replace(job, plan=job.plan.model_copy(update={"inputs": bucket.shapes, "numerics": numerics}))


def attribute_rows(job: Job, rows: Rows, ids: pa.Array, tick: Callable[[], None],
                   culprits: Mapping[int, str] = MappingProxyType({})) -> Results:  # fmt: skip
    """Attributions of every row and target, bad rows and culprits in their places: rows × targets results in order."""
    spec, per_row = job.plan.spec, job.plan.targets_per_row
    baselines = baseline_tensors(spec, job.plan.inputs, rows, job.means)
    reasons = list(rows.reasons)
    _refuse_targets(job, rows, reasons)
    lost = {i: reason for i, reason in culprits.items() if reasons[i] is None}
    _refuse_ids(job, rows, reasons, lost)
    clean = torch.tensor([i for i, reason in enumerate(reasons) if reason is None and i not in lost], dtype=torch.int64)
    first, copied = distinct_rows(rows, baselines, clean)
    part = _take(rows, first), tuple(b if b.shape[0] == 1 else b[first] for b in baselines)
    device = [_placed(job, ts) for ts in (part[0].inputs, part[1], part[0].forward_args)]
    table = _targets(job, part[0], device, per_row, tick)
    found = _attributions_of(job, *device, table, tick)
    results = _scatter(job, ids, reasons, clean, copied, table, found)
    results = _lose(job, rows, results, lost) if lost else results
    lengths = tuple(rows.inputs[i].sum(1).long().numpy().repeat(per_row) if shape.varying else None
                    for i, shape in enumerate(job.plan.inputs))  # fmt: skip
    return replace(results, lengths=lengths, duplicates=len(clean) - len(first))


def _lose(job: Job, rows: Rows, results: Results, lost: Mapping[int, str]) -> Results:
    """The results with the culprits' rows as `failed`; a target that is known without the model stays."""
    per_row, target = job.plan.targets_per_row, results.target
    status, reason = list(results.status), list(results.reason)
    for row, why in lost.items():
        places = slice(row * per_row, (row + 1) * per_row)
        status[places], reason[places] = [RowStatus.failed] * per_row, [why] * per_row
    if rows.target is not None:
        known = [int(chosen) if row in lost else None for row, chosen in enumerate(rows.target.tolist())]
        target = pc.coalesce(target, pa.array(known, target.type))
    return replace(results, status=status, reason=reason, target=target)


def _placed(job: Job, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A shard's rows on the worker's device, copied once and from pinned memory: step batches are made of them there."""
    if job.device == "cpu":
        return tensors
    return tuple(t.pin_memory().to(job.device, non_blocking=True) for t in tensors)


def distinct_rows(rows: Rows, baselines: Sequence[Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of clean rows that are equal in every bit the model gets, and which of these a row repeats.

    clean [n] row numbers → [distinct] row numbers, and [n] places among them. Rows are told apart by a 128-bit digest.
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
    """Reasons for rows with ids that the model does not know; one that it raises on is `failed` later."""
    if not isinstance(job.forward, IdsModel):
        return
    clean = torch.tensor([i for i, reason in enumerate(reasons) if reason is None and i not in lost])
    model = job.forward
    arguments = [t[clean].to(job.device) for t in (*rows.inputs, *rows.forward_args)] if len(clean) else []

    def attempt(part: slice) -> list[str | None]:
        return model.unknown_ids(*(a[part] for a in arguments))

    for start in range(0, len(clean), _LOOKUP_ROWS):
        part = slice(start, min(start + _LOOKUP_ROWS, len(clean)))
        found = chain.from_iterable(_isolate(attempt, lambda error: [None], part))
        for i, reason in zip(clean[part].tolist(), found, strict=True):
            reasons[i] = reason


def _refuse_targets(job: Job, rows: Rows, reasons: list[str | None]) -> None:
    width = job.plan.numerics.outputs
    if isinstance(job.plan.spec.target, ColumnTarget) and rows.target is not None and width is not None:
        outside = (rows.target < 0) | (rows.target >= width)
        for i in outside.nonzero().flatten().tolist():
            reasons[i] = reasons[i] or f"target {int(rows.target[i])} is outside 0..{width - 1}"


def _take(rows: Rows, index: Tensor) -> Rows:
    return replace(rows, inputs=tuple(x[index] for x in rows.inputs),
                   forward_args=tuple(a[index] for a in rows.forward_args),
                   target=None if rows.target is None else rows.target[index],
                   reasons=[rows.reasons[i] for i in index.tolist()])  # fmt: skip


def _targets(
    job: Job, rows: Rows, device: list[tuple[Tensor, ...]], per_row: int, tick: Callable[[], None]
) -> Tensor | None:
    """Output indices of every row and target, `[rows, targets, depth]`, or None for scalar outputs."""
    target, count = job.plan.spec.target, rows.inputs[0].shape[0]
    if target.kind == "scalar":
        return None
    if isinstance(target, IndexTarget):
        return torch.tensor(_index(target), device=job.device).expand(count, 1, -1)
    if target.kind == "all":
        return torch.arange(per_row, device=job.device)[None, :, None].expand(count, -1, -1)
    if rows.target is not None:
        return rows.target.to(job.device)[:, None, None]
    problem = Problem(job.prepared, device[0], device[0], device[2], None, job.plan.numerics.batch_rows, tick)
    return _largest(problem, per_row) if count else torch.zeros(0, per_row, 1, dtype=torch.int64)


def _largest(problem: Problem, k: int) -> Tensor:
    """Each row's k largest outputs, `[rows, k, 1]`; the first ones for a row that the model raises on, which fails later."""
    index = torch.arange(problem.rows, device=problem.inputs[0].device)

    def attempt(rows: slice) -> Tensor:
        out = Evaluator(problem).outputs(problem.inputs, index[rows], check=False)
        return out.argmax(-1, keepdim=True) if k == 1 else out.topk(k, -1).indices

    def failed(error: Exception) -> Tensor:
        return torch.arange(k, device=index.device)[None]

    return torch.cat(_isolate(attempt, failed, slice(0, problem.rows)))[:, :, None]


def _attributions_of(job: Job, xs: tuple[Tensor, ...], bs: tuple[Tensor, ...], args: tuple[Tensor, ...],
                     table: Tensor | None, tick: Callable[[], None]) -> list[Attribution]:  # fmt: skip
    """Attributions `[rows, targets, ...]` of all rows in order, in pieces where the model raises on some of them."""
    count = xs[0].shape[0]
    if not count:
        return []
    batch_rows, elements = job.plan.numerics.batch_rows, sum(x[0].numel() for x in xs)
    groups = [None] if table is None else table.unbind(1)
    at_once = targets_at_once(batch_rows, elements)

    def attempt(rows: slice) -> Attribution:
        found = [attribute(job.prepared, tuple(x[rows] for x in xs),
                           baselines=tuple(b if b.shape[0] == 1 else b[rows] for b in bs),
                           target=None if table is None else [t[rows] for t in groups[start : start + at_once]],
                           forward_args=tuple(a[rows] for a in args), accuracy=job.plan.spec.accuracy,
                           batch_rows=batch_rows, tick=tick, checked=True)
                 for start in range(0, len(groups), at_once)]  # fmt: skip
        return beside(found) if len(found) > 1 else found[0]

    return _isolate(attempt, lambda error: _failed(xs, len(groups), error), slice(0, count))


def _isolate(attempt: Callable[[slice], Found], failed: Callable[[Exception], Found], rows: slice) -> list[Found]:
    """Attempt the rows at once; if the model raises, halve until the rows it raises on stand alone."""
    try:
        return [attempt(rows)]
    except (IntegrandError, MemoryError):
        raise
    except Exception as error:
        if "CUDA error" in str(error):  # the context is lost: only a new process can go on
            raise
        if rows.stop - rows.start == 1:
            return [failed(error)]
    middle = (rows.start + rows.stop) // 2
    return [found for part in (slice(rows.start, middle), slice(middle, rows.stop))
            for found in _isolate(attempt, failed, part)]  # fmt: skip


def _failed(xs: tuple[Tensor, ...], targets: int, error: Exception) -> Attribution:
    reason = f"the model raised {type(error).__name__}: {redact(str(error))[:300]}"
    nan = torch.full((1, targets), float("nan"), dtype=torch.float64)
    values = tuple(torch.full((1, targets, *x.shape[1:]), float("nan"), dtype=x.dtype) for x in xs)
    none = torch.zeros((1, targets), dtype=torch.int32)
    return Attribution(values, nan, nan, nan, nan, none, (RowStatus.failed,) * targets, (reason,) * targets)


def _scatter(job: Job, ids: pa.Array, reasons: list[str | None], clean: Tensor, copied: Tensor, table: Tensor | None,
             parts: list[Attribution]) -> Results:  # fmt: skip
    """Results in row order: the clean rows' attributions, or those of the row they repeat, and bad_input elsewhere."""
    rows, per_row = len(reasons), job.plan.targets_per_row
    out = rows * per_row
    places, origin = ((i[:, None] * per_row + torch.arange(per_row)).flatten().numpy() for i in (clean, copied))
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
    table = table if table is None else table.flatten(0, 1)[torch.from_numpy(origin).to(table.device)]
    return Results(ids.take(pa.array(np.arange(rows).repeat(per_row))),
                   _target_column(job, table, places, status), status, reason, scattered("f_input"),
                   scattered("f_baseline"), scattered("gap"), scattered("error_estimate"), evaluations,
                   _attributions(job, parts, places, origin, out), padded=sum(p.padded for p in parts),
                   halved=_halved(job, parts))  # fmt: skip


def _halved(job: Job, parts: list[Attribution]) -> int | None:
    """Rows of the smallest step batch where memory ran out; None where it did not."""
    planned = job.plan.numerics.batch_rows
    return min((p.batch_rows for p in parts if 0 < p.batch_rows < planned), default=None)


def _joined(parts: list[Tensor]) -> NDArray[np.generic]:
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _attributions(job: Job, parts: list[Attribution], places: NDArray[np.int64], origin: NDArray[np.int64], out: int
                  ) -> tuple[np.ndarray, ...]:  # fmt: skip
    made = []
    for i, shape in enumerate(job.plan.inputs):
        full = np.full((out, *shape.shape), np.nan, np.dtype(job.plan.numerics.precision))
        if parts:
            found = torch.cat([p.attributions[i].reshape(-1, *shape.shape).cpu() for p in parts])
            full[places] = found.numpy()[origin]
        made.append(full)
    return tuple(made)


def _index(target: IndexTarget) -> tuple[int, ...]:
    return target.index if isinstance(target.index, tuple) else (target.index,)


def _target_column(job: Job, table: Tensor | None, places: NDArray[np.int64], status: list[RowStatus]) -> pa.Array:
    """Targets by output row. An index and `all` name them in bad rows too; the others have none there."""
    out = len(status)
    if job.plan.spec.target.kind == "scalar":
        return target_array(None, np.zeros(out, bool))
    if job.plan.spec.target.kind == "all":
        per_row = job.plan.targets_per_row
        return target_array(np.tile(np.arange(per_row), out // per_row)[:, None], np.ones(out, bool))
    if isinstance(job.plan.spec.target, IndexTarget):
        return target_array(np.tile(_index(job.plan.spec.target), (out, 1)), np.ones(out, bool))
    assert table is not None
    full, present = np.zeros((out, table.shape[1]), np.int64), np.zeros(out, bool)
    full[places], present[places] = table.cpu().numpy(), True
    if isinstance(job.plan.spec.target, ArgmaxTarget | TopKTarget):
        present &= np.array(status) != RowStatus.failed
    return target_array(full, present)
