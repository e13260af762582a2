"""A shard's object, created once whoever tries: the commit is one conditional create."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pyarrow as pa
from pydantic import ValidationError

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import FOOTER_KEY, shard_object
from integrand.schemas.records import Shard, ShardFooter
from integrand.schemas.uris import Uri
from integrand.workers.data.decoding import open_parquet
from integrand.workers.failpoints import reach
from integrand.workers.shards.job import Job


def commit(
    job: Job, shard: Shard, data: bytes, footer: ShardFooter, tick: Callable[[], None]
) -> ShardFooter:
    """Create the shard's object if it is absent; whoever created it, the footer of what is there
    now. Raises IntegrityError if that belongs to something else.
    """
    place = job.run.child(shard_object(shard.id))
    with _ticking(tick):
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
            metadata = open_parquet(file).metadata.metadata or {}
            return ShardFooter.model_validate_json(metadata[FOOTER_KEY.encode()])
    except (pa.ArrowException, OSError, KeyError, ValidationError):
        return None


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
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
