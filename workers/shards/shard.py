"""One shard's whole life: read, attribute, encode, commit."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyarrow as pa

from integrand.schemas.records import Shard, ShardFooter
from integrand.schemas.tasks import Trial
from integrand.workers.data.decoded import decoded
from integrand.workers.data.reading import read_slices, row_ids
from integrand.workers.failpoints import reach
from integrand.workers.shards.commit import commit
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_table
from integrand.workers.shards.parquet import encode
from integrand.workers.shards.results import Results
from integrand.workers.shards.table import attribute_table


def read_shard(job: Job, shard: Shard, tick: Callable[[], None] = lambda: None) -> pa.Table:
    """The shard's source columns, encoded inputs decoded; safe to call ahead of time from another
    thread.
    """
    plan = job.plan
    table = read_slices(job.store, plan.files, shard.slices, plan.source_columns, tick)
    return decoded(job.store, plan.spec, table, tick)


def run_shard(
    job: Job,
    task: Shard | Trial[Shard],
    table: pa.Table,
    read_s: float,
    tick: Callable[[], None],
) -> ShardFooter:
    """Attribute the rows of `table`, commit the object and return its footer. The culprits of a
    Trial end as `failed`.

    If another attempt has committed already, its footer is checked and returned. Raises
    IntegrityError if the object there belongs to something else.
    """
    started = time.perf_counter()
    shard, culprits = _without_culprits(task)
    results = attribute_table(job, table, _ids(job, shard, table), tick, culprits)
    reach("shard.computed")
    computed = time.perf_counter()
    output = results_table(job.plan, results)
    tabulated = time.perf_counter()
    seconds = {"read": read_s, "compute": computed - started, "table": tabulated - computed}
    footer = _footer(job, shard, results, seconds)
    tick()
    data = encode(output, footer)
    reach("shard.encoded")
    return commit(job, shard, data, footer, tick)


def _without_culprits(task: Shard | Trial[Shard]) -> tuple[Shard, dict[int, str]]:
    """The shard of a task, and its rows that are not run, with their reasons."""
    if isinstance(task, Trial):
        return task.task, {culprit.row: culprit.reason for culprit in task.culprits}
    return task, {}


def _footer(job: Job, shard: Shard, results: Results, seconds: dict[str, float]) -> ShardFooter:
    return shard_footer(
        job.plan,
        job.plan_sha256,
        shard,
        results,
        seconds=seconds,
        versions=job.versions,
        same_build=job.same_build,
    )


def try_rows(job: Job, trial: Trial[Shard], table: pa.Table, tick: Callable[[], None]) -> None:
    """Attribute the rows of a trial and commit nothing: whoever asks wants to know whether the
    worker lives on.
    """
    start, stop = trial.only or (0, trial.rows)
    count = stop - start
    if count > 0:
        ids = _ids(job, trial.task, table).slice(start, count)
        some = table.slice(start, count)
        attribute_table(job, some, ids, tick)


def _ids(job: Job, shard: Shard, table: pa.Table) -> pa.Array:
    column = job.plan.spec.source.row_id
    ids = row_ids(job.plan.files, shard.slices, table, column)
    # files may differ: int32 here, int64 there
    return ids.cast(job.row_id_type) if job.row_id_type else ids
