"""One shard's whole life: read, attribute, encode, commit. The commit is one conditional create."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pyarrow as pa
from pydantic import ValidationError

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import FOOTER_KEY, shard_object
from integrand.schemas.records import Shard, ShardFooter
from integrand.schemas.tasks import Trial
from integrand.schemas.uris import Uri
from integrand.workers.data.decoding import open_parquet
from integrand.workers.data.reading import read_slices, row_ids
from integrand.workers.failpoints import reach
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_table
from integrand.workers.shards.parquet import encode
from integrand.workers.shards.results import Results
from integrand.workers.shards.table import attribute_table


def read_shard(job: Job, shard: Shard, tick: Callable[[], None] = lambda: None) -> pa.Table:
    """The shard's source columns; safe to call ahead of time from another thread."""
    return read_slices(job.store, job.plan.files, shard.slices, job.plan.source_columns, tick)


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
    with _waiting(tick):
        return commit(job, shard, data, footer)


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


@contextmanager
def _waiting(tick: Callable[[], None]) -> Iterator[None]:
    """Tick every second: the store has deadlines of its own, and waiting for it within them is no
    stall.
    """
    done = Event()

    def beat() -> None:
        while not done.wait(1.0):
            tick()

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def try_rows(job: Job, trial: Trial[Shard], table: pa.Table, tick: Callable[[], None]) -> None:
    """Attribute the rows of a trial and commit nothing: whoever asks wants to know whether the
    worker lives on.
    """
    start, stop = trial.only or (0, trial.rows)
    if stop > start:
        ids = _ids(job, trial.task, table)
        attribute_table(job, table.slice(start, stop - start), ids.slice(start, stop - start), tick)


def _ids(job: Job, shard: Shard, table: pa.Table) -> pa.Array:
    ids = row_ids(job.plan.files, shard.slices, table, job.plan.spec.source.row_id)
    # files may differ: int32 here, int64 there
    return ids.cast(job.row_id_type) if job.row_id_type else ids


def commit(job: Job, shard: Shard, data: bytes, footer: ShardFooter) -> ShardFooter:
    """Create the shard's object if it is absent; whoever created it, the footer of what is there
    now.
    """
    place = job.run.child(shard_object(shard.id))
    try:
        job.store.create(place, data, scratch=job.run.child("_tmp"))
    except FileExistsError:
        return check_committed(job, shard, place)
    reach("shard.committed")
    return footer


def check_committed(job: Job, shard: Shard, place: Uri) -> ShardFooter:
    """Footer of an object that was there first. An ambiguous answer to our own create ends here
    too.
    """
    footer = _stored_footer(job, place)
    wanted = (job.plan.run_id, shard.id, job.plan_sha256)
    seen = (footer.run_id, footer.shard, footer.plan_sha256) if footer else None
    if footer is None or seen != wanted:
        raise IntegrityError(
            f"object {place}",
            expected=f"shard {shard.id} of run {job.plan.run_id}",
            seen=str(seen),
            next_step="something else wrote below the run folder: move it away and run again",
        )
    return footer


def _stored_footer(job: Job, place: Uri) -> ShardFooter | None:
    """None where the object is no shard's."""
    try:
        with job.store.open(place) as file:
            return ShardFooter.model_validate_json(
                (open_parquet(file).metadata.metadata or {})[FOOTER_KEY.encode()]
            )
    except (pa.ArrowException, OSError, KeyError, ValidationError):
        return None
