"""A schedule that repeats itself: the same tick submitted again is the same run, and is not done
twice.
"""

from __future__ import annotations

from pathlib import Path

from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.service.runs.manifest import read_pointer
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder


def submit(job: JobFolder, tick: str) -> RunManifest:
    return run_job(
        job.spec(model=job.weighted()),
        base=str(job.path),
        operator=Operator(trusted=(job.module,)),
        cluster=Cluster("local"),
        logical_date=tick,
    )


def written(job: JobFolder, manifest: RunManifest) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in job.objects(manifest)}


def test_the_same_tick_twice_is_one_run(job: JobFolder):
    job.write_weights()
    first = submit(job, "2026-01-31")
    before = written(job, first)
    assert submit(job, "2026-01-31") == first
    assert written(job, first) == before


def test_ticks_that_are_replayed_late_do_not_move_the_pointer_back(job: JobFolder):
    """After a week off, a scheduler may submit seven ticks one by one, and in any order."""
    job.write_weights()
    for tick in ("2026-02-03", "2026-02-01", "2026-02-02"):
        submit(job, tick)
    pointer = read_pointer(Store(), Uri("file", str(job.path / "out")), "test")
    assert pointer is not None
    assert pointer.logical_date == "2026-02-03"
