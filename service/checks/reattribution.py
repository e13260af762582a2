"""A few rows of a run attributed again, by what a worker would use, and held against what is
stored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.ids import FOOTER_KEY, shard_object
from integrand.schemas.records import Shard, ShardFooter, Slice, environment
from integrand.schemas.tables import RowStatus
from integrand.schemas.uris import Uri
from integrand.service.checks.findings import Finding, Remark, Unchecked, reason
from integrand.service.planning.survey import pinned, planned_code
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import without_shards
from integrand.workers.data.decoding import open_parquet
from integrand.workers.data.reading import row_ids
from integrand.workers.data.values import plain_value
from integrand.workers.engine.row_results import NUMBERS
from integrand.workers.models.code import check_trust
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import attributed, results_of
from integrand.workers.shards.results import Results
from integrand.workers.shards.shard import read_shard
from integrand.workers.shards.table import attribute_table
from integrand.workers.shards.worker import Setup, load_job

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Relative L1 distance, added to both error estimates, where bits may differ: other kernels round
otherwise.
"""
_NEXT = (
    "find out what differs between the worker's environment and this one, or run again with --fresh"
)


@dataclass(frozen=True)
class Again:
    """Rows that were attributed again, `bitwise` of them compared in every bit."""

    rows: int
    bitwise: int
    remarks: tuple[Remark, ...]


def reattribute(
    folder: RunFolder, shards: Sequence[str], sample: int, seed: int, trusted: tuple[str, ...]
) -> Again:
    """Attribute `sample` rows of these shards again, drawn with `seed`; rows that `failed` are left
    alone.
    """
    if folder.plan.numerics.device == "cuda" and not torch.cuda.is_available():
        return _unchecked("the run was made on CUDA, and there is no CUDA device here")
    drawn = _drawn(folder, shards, sample, seed)
    with pinned(folder.plan.numerics.threads):
        try:
            job = _job(folder, trusted)
            compared = [_compared(job, folder, shard, rows) for shard, rows in drawn]
        except (SpecError, DataError, IntegrityError) as error:
            return _unchecked(reason(error))
    return Again(
        sum(c.rows for c in compared),
        sum(c.bitwise for c in compared),
        tuple(r for c in compared for r in c.remarks),
    )


def _unchecked(why: str) -> Again:
    return Again(0, 0, (Unchecked("a sample of rows attributed again", why),))


def _job(folder: RunFolder, trusted: tuple[str, ...]) -> Job:
    check_trust(folder.plan.spec.model, trusted)
    code = planned_code(folder.store, folder.plan)
    setup = Setup(
        plan=without_shards(folder.plan),
        plan_sha256=folder.plan_sha256,
        run=folder.uri,
        access=folder.store.access,
        trusted=trusted,
        code=code,
        allow_mixed=True,
    )
    return load_job(setup)


def _drawn(
    folder: RunFolder, shards: Sequence[str], sample: int, seed: int
) -> Iterator[tuple[Shard, list[int]]]:
    """Rows of the shards, each as likely as any other, by shard and in order."""
    known = [folder.shards[s] for s in shards]
    total = sum(s.rows for s in known)
    chosen = sorted(random.Random(seed).sample(range(total), min(sample, total)))
    first = 0
    for shard in known:
        rows = [row - first for row in chosen if first <= row < first + shard.rows]
        first += shard.rows
        if rows:
            yield shard, rows


def _compared(job: Job, folder: RunFolder, shard: Shard, rows: list[int]) -> Again:
    """Some rows of a shard as they are stored, and as they come out here."""
    place = folder.uri.child(shard_object(shard.id))
    times = job.plan.targets_per_row
    footer, table = _stored(folder, place)
    statuses = enumerate(table["status"].to_pylist())
    failed = {i // times for i, status in statuses if status == RowStatus.failed}
    chosen = [row for row in rows if row not in failed]
    if not chosen:
        return Again(0, 0, ())
    numbers = (np.array(chosen)[:, None] * times + np.arange(times)).reshape(-1)
    chosen_rows = table.take(pa.array(numbers))
    then = results_of(job.plan, chosen_rows)
    slices = tuple(_row(shard, row) for row in chosen)
    now = _attributed(job, Shard(id=shard.id, slices=slices))
    exactly = _comes_out_bitwise(job, footer)
    tolerance = TOLERANCE[job.plan.numerics.precision]
    same = (
        _same_bits if exactly else partial(_close, tolerance=tolerance, first=attributed(job.plan))
    )
    differ = [i for i in range(len(numbers)) if not same(then, now, i)]
    first = attributed(job.plan)
    remarks = tuple(_finding(str(place), then, now, i, first) for i in differ)
    bitwise = len(chosen) if exactly else 0
    return Again(len(chosen), bitwise, remarks)


def _stored(folder: RunFolder, place: Uri) -> tuple[ShardFooter, pa.Table]:
    """The footer and the rows of a shard's object."""
    with folder.store.open(place) as file, open_parquet(file) as parquet:
        stored = parquet.metadata.metadata[FOOTER_KEY.encode()]
        return ShardFooter.model_validate_json(stored), parquet.read()


def _attributed(job: Job, shard: Shard) -> Results:
    """The rows of a shard as they come out here."""
    source = read_shard(job, shard)
    plan = job.plan
    ids = row_ids(plan.files, shard.slices, source, plan.spec.source.row_id)
    return attribute_table(job, source, ids, lambda: None)


def _comes_out_bitwise(job: Job, footer: ShardFooter) -> bool:
    """Whether a shard was computed as it would be here, in every bit."""
    made_alike = footer.environment == environment(job.versions)
    promised = job.plan.lowered is None and footer.determinism == "bitwise"
    return promised and made_alike


def _row(shard: Shard, row: int) -> Slice:
    """One row of a shard, as a slice of its file."""
    for part in shard.slices:
        if row < part.rows:
            return Slice(file=part.file, start=part.start + row, stop=part.start + row + 1)
        row -= part.rows
    raise AssertionError("the row lies within the shard")


def _same_bits(then: Results, now: Results, row: int) -> bool:
    return _bits(then, row) == _bits(now, row)


def _bits(results: Results, row: int) -> list[object]:
    """All that a row is stored with, apart from its reason; any NaN is the one that a null stands
    for.
    """
    rows = results.rows
    diagnostics = [getattr(rows, name)[row] for name in NUMBERS]
    numbers = np.array(diagnostics, np.float64)
    numbers[np.isnan(numbers)] = np.nan
    target = results.target[row].as_py()
    found: list[object] = [rows.status[row], target, numbers.tobytes()]
    found += [repr(column[row]) for _, column in sorted(rows.optional.items())]
    if rows.attributed[row]:
        found += [values.tobytes() for values in results.values(row)]
    return found


def _close(then: Results, now: Results, row: int, *, tolerance: float, first: int) -> bool:
    """Attributions, the first blocks, within the tolerance and both error estimates, relative to
    their L1 norm, where bits may differ.
    """
    number = np.array([row])
    stored, found = then.rows.take(number), now.rows.take(number)
    if not (stored.attributed[0] and found.attributed[0]):
        return bool(stored.attributed[0] == found.attributed[0])
    # another output is the largest by a hair: not the same question
    if then.target[row] != now.target[row]:
        return np.allclose(stored.f_input, found.f_input, rtol=tolerance, atol=tolerance)
    one = np.concatenate(then.values(row)[:first]).astype(np.float64)
    other = np.concatenate(now.values(row)[:first]).astype(np.float64)
    estimates = np.nan_to_num([stored.error_estimate[0], found.error_estimate[0]])
    allowed = tolerance + estimates[0] + estimates[1]
    norm = max(np.abs(one).sum(), np.abs(other).sum(), np.finfo(np.float32).tiny)
    distance = np.abs(one - other).sum()
    return bool(distance <= allowed * norm)


def _finding(place: str, then: Results, now: Results, row: int, first: int) -> Finding:
    return Finding(
        f"{place} row_id {plain_value(then.row_id[row])!r} target {then.target[row].as_py()}",
        f"what the plan's model gives: {_described(now, row, first)}",
        f"{_described(then, row, first)}, as stored",
        _NEXT,
    )


def _described(results: Results, row: int, first: int) -> str:
    """A row in few words; its attributions are the first blocks."""
    rows = results.rows
    values = results.values(row)[:first]
    total = sum(float(v.sum(dtype=np.float64)) for v in values)
    size = sum(float(np.abs(v).sum(dtype=np.float64)) for v in values)
    return (
        f"{rows.status[row]}, f(x) {rows.f_input[row]!r}, sum of attributions {total!r}, of their"
        f" sizes {size!r}, {rows.evaluations[row]} evaluations"
    )
