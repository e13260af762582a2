"""What is missing of a run is run, and what storage then holds is folded into its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from integrand.schemas.records import (
    JobPlan,
)
from integrand.schemas.sidecars import (
    Pointer,
)
from integrand.service.pools.base import Pool
from integrand.service.progress import Listener, Notice, Tally
from integrand.service.running.folder import OpenRun
from integrand.service.running.kind import OneManifest, OnePlan, OneTotals
from integrand.service.running.ledger import Ledger, read_ledger
from integrand.service.running.runner import Dispatch
from integrand.service.running.sidecars import Sidecars
from integrand.service.runs.footers import Held
from integrand.service.runs.manifest import (
    MANIFEST,
    conclude,
    load_record,
    point_latest,
    write_manifest,
)
from integrand.workers.failpoints import reach
from integrand.workers.task_workers import WorkerSetup

STALL_S, STALL_BATCHES = 60.0, 20


def finish(
    run: OpenRun[OnePlan, OneTotals, OneManifest],
    setup: WorkerSetup,
    pool: Pool,
    listen: Listener,
    logical_date: str | None,
) -> OneManifest:
    """Dispatch what is missing, then fold the stored footers."""
    done = load_record(run.kind.manifest, run.store, run.uri.child(MANIFEST))
    if done is not None:
        listen(Notice(f"run {run.plan.run_id} is complete already: nothing to do"))
        conclude(run.store, run.uri)  # a driver may have died just before it did
        _point(run, logical_date or done.date)
        return done
    date = logical_date or _now()
    held = run.kind.held(run)
    ledger = read_ledger(run.store, run.uri, run.plan)
    if held.shards:
        there = f"{len(held.shards)} of {len(run.plan.shards)}"
        listen(Notice(f"resuming run {run.plan.run_id}: {there} shards are done"))
    missing = run.shards.keys() - held.shards - ledger.quarantined.keys()
    if missing:
        pool.start(setup, run.plan.spec.compute, len(missing), _stall_s(run.plan))
        held = _dispatch(run, ledger, held, pool, listen)
    return _seal(run, ledger, held, date)


def _dispatch(
    run: OpenRun[OnePlan, OneTotals, OneManifest],
    ledger: Ledger,
    held: Held[OneTotals],
    pool: Pool,
    listen: Listener,
) -> Held[OneTotals]:
    """Run what is missing; what storage then holds."""

    def write_block(tasks: Sequence[str]) -> None:
        run.kind.write_block(run, tasks)

    with Sidecars(run, write_block, held.loose) as sidecars:

        def tell(tally: Tally) -> None:
            listen(tally)
            sidecars.beat(tally)

        dispatch = Dispatch(run.kind, pool, run.plan, ledger, held, tell, sidecars.committed)
        done = dispatch.run()
    return run.kind.held(run, done)


def _seal(
    run: OpenRun[OnePlan, OneTotals, OneManifest],
    ledger: Ledger,
    held: Held[OneTotals],
    date: str,
) -> OneManifest:
    """Fold what storage holds into the manifest; point `_latest` at a complete run."""
    given_up = tuple(q for _, q in sorted(ledger.quarantined.items()))
    manifest = run.kind.fold(run, held, given_up, created=_now(), logical_date=date)
    reach("run.folded")
    write_manifest(run.store, run.uri, manifest)
    reach("manifest.created")
    if manifest.complete:
        _point(run, date)
    return manifest


def _point(run: OpenRun[Any, Any, Any], date: str) -> None:
    plan = run.plan
    pointer = Pointer(run_id=plan.run_id, logical_date=date, written=_now())
    point_latest(run.store, run.root, plan.spec.name, pointer)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stall_s(plan: JobPlan[Any]) -> float:
    compute = plan.spec.compute
    if compute.stall_s is not None:
        return float(compute.stall_s)
    # a worker compiles in its first step batch
    compiling = compute.start_s if plan.numerics.compile else 0.0
    return float(max(STALL_S, STALL_BATCHES * plan.projection.batch_seconds) + compiling)
