"""The plan against itself: its run id, and the rows that its shards take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from integrand.schemas.records import Plan
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked
from integrand.service.planning.runid import stored_run_id

_RESTORE = "restore the plan that was written"


def _remarks(run: Evidence) -> Iterator[Remark]:
    yield from _run_id_remarks(run.folder.plan)
    yield from _shard_remarks(run.folder.plan)


CHECK = Check(
    "plan", "the run id is the digest of the plan, whose shards are every row once", _remarks
)


def _run_id_remarks(plan: Plan) -> Iterator[Remark]:
    seen = stored_run_id(plan)
    if seen is None:
        yield Unchecked(
            "the run id",
            "the plan was written by a version that did not store the digest of its code",
        )
    elif seen != plan.run_id:
        yield Finding("_plan.json run_id", plan.run_id, f"{seen} of what it plans", _RESTORE)


def _shard_remarks(plan: Plan) -> Iterator[Remark]:
    ids = {shard.id for shard in plan.shards}
    if len(ids) < len(plan.shards):
        yield Finding("_plan.json shards", "different ids", "some twice", _RESTORE)
    taken: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for shard in plan.shards:
        for rows in shard.slices:
            taken[rows.file].append((rows.start, rows.stop))
    for i, file in enumerate(plan.files):
        cuts = sorted(taken[i])
        starts = [start for start, _ in cuts]
        stops = [stop for _, stop in cuts]
        if [0, *stops] != [*starts, file.rows]:
            yield Finding(
                f"_plan.json shards of {file.path}",
                f"rows 0 to {file.rows}, each once",
                f"{cuts[:4]}…",
                _RESTORE,
            )
