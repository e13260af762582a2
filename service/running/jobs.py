"""The verbs of a job: plan it, run it to its end or pick it up again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from rich.console import Console

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import Plan, Pointer, RunManifest, dump
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.uris import Uri
from integrand.service import progress
from integrand.service.planning.planner import Request, make_plan
from integrand.service.pools.base import Mapper, Pool
from integrand.service.pools.choice import PoolKind, Undecided, make_planning_pool
from integrand.service.pools.local import LocalPool
from integrand.service.progress import Tally
from integrand.service.running.runner import Dispatch, Ledger, read_ledger
from integrand.service.running.sidecars import Sidecars
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import (
    conclude,
    fold,
    instant,
    load_manifest,
    load_plan,
    point_latest,
    without_shards,
    write_manifest,
)
from integrand.service.runs.totals import Committed, read_committed
from integrand.service.terminal import Terminal
from integrand.workers.data.row_ids import check_row_ids
from integrand.workers.failpoints import reach
from integrand.workers.models.code import CodeBundle
from integrand.workers.shards.worker import Setup
from integrand.workers.storage.store import Access, Store

STALL_S, STALL_BATCHES = 60.0, 20


def plan_job(
    spec: AttributeSpec,
    *,
    base: str = "/",
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
    salt: str = "",
    ingest: bool = False,
) -> Plan:
    """Resolve and check a job without running it. Raises SpecError or DataError for what cannot
    work.

    base     folder that relative paths of the spec start from
    trusted  module prefixes whose model code may run here
    salt     any text: the same job under another salt is another run
    ingest   split text sources and count statistics now, instead of estimating
    """
    return make_plan(Request(spec, base, Store(access), trusted, salt, ingest), LocalPool())[0]


def run_job(
    spec: AttributeSpec,
    *,
    base: str = "/",
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
    pool: PoolKind = "auto",
    address: str | None = None,
    salt: str = "",
    allow_mixed: bool = False,
    allow_unauthenticated_ray: bool = False,
    logical_date: str | None = None,
    console: Console | None = None,
) -> RunManifest:
    """Plan a job, run what is missing of it, and return its manifest, complete or not.

    pool          `ray` actors; `local`: one worker in this process; `auto`: this process for small
                  jobs without a cluster
    address       of a Ray cluster; None starts one on this machine
    allow_mixed   resume on another torch build, at determinism level `tolerance`
    allow_unauthenticated_ray  use a cluster off loopback although it takes anybody's calls
    logical_date  ISO date that the `_latest` pointer is ordered by; now by default
    """
    if logical_date is not None:
        instant(logical_date)
    request = Request(spec, base, Store(access), trusted, salt)
    planner = make_planning_pool(
        pool, address, spec.compute, allow_unauthenticated_ray=allow_unauthenticated_ray
    )
    shown = console or Terminal(soft_wrap=True)
    try:
        begin = _plan_run(request, planner, shown)
        run = open_folder(request, begin.plan.run_id, begin.plan)
        check_build(run.plan, allow_mixed)
        setup = Setup(
            plan=run.planned,
            plan_sha256=run.plan_sha256,
            run=run.uri,
            access=access,
            trusted=trusted,
            code=begin.code,
            allow_mixed=allow_mixed,
        )
        manifest = finish(run, setup, _settle(planner, begin, shown), shown, logical_date)
    finally:
        planner.close()
    return manifest


@dataclass(frozen=True, eq=False)
class Begin:
    """A run as planned today, without its shards, and the code it ships; whether its folder was
    there before.
    """

    plan: Plan
    code: CodeBundle
    begun: bool


def _plan_run(request: Request, pool: Mapper, console: Console) -> Begin:
    """Make the plan and its run folder. The stored shards count from then on: twice 100,000 would
    take much memory.
    """
    planned, code = make_plan(request, pool)
    _announce(planned, console)
    begun = create_folder(request, planned, console)
    return Begin(planned.model_copy(update={"shards": ()}), code, begun)


def _settle(pool: Pool | Undecided, begin: Begin, console: Console) -> Pool:
    """The pool that the run gets, and a word where that is this process."""
    if not isinstance(pool, Undecided):
        return pool
    chosen = pool.settle(_work_s(begin.plan), begun=begin.begun)
    if isinstance(chosen, LocalPool):
        console.print(
            "it runs in this process, faster than Ray starts; if the model takes the process along,"
            " the same command goes on with Ray"
        )
    return chosen


def _work_s(plan: Plan) -> float:
    """Projected seconds in one process."""
    return plan.projection.seconds * plan.spec.compute.worker_range.max


def _announce(plan: Plan, console: Console) -> None:
    console.print(
        f"run {plan.run_id}: {plan.rows:,} rows in {len(plan.shards):,} shards, about "
        f"{progress.duration(plan.projection.seconds)} of work",
        highlight=False,
    )
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


@dataclass(frozen=True, eq=False)
class OpenRun(RunFolder):
    """A run folder that is being worked on, its output root, and its stored plan as workers
    get it.
    """

    root: Uri
    planned: bytes


def create_folder(request: Request, planned: Plan, console: Console) -> bool:
    """The run folder of a plan, created with it unless the run was begun before; whether it was."""
    store = request.store
    uri = store.parse(request.spec.output.uri, request.base).child(planned.run_id)
    begun = store.exists(uri.child("_plan.json"))
    if not begun:
        if planned.spec.source.row_id is not None:
            check_row_ids(store, planned.files, planned.spec.source.row_id)
        try:
            store.create(uri.child("_plan.json"), dump(planned), scratch=uri.child("_tmp"))
        except FileExistsError:  # another driver was first with the same run: its plan counts
            console.print(f"run {planned.run_id} was planned by another driver")
    reach("plan.created")
    return begun


def open_folder(request: Request, run_id: str, fresh: Plan | None = None) -> OpenRun:
    """A run folder as it was left, with the shards that were cut when it was created.

    fresh   the same run as it is planned today, with or without shards: what is no part of its
            identity is taken from it
    """
    root = request.store.parse(request.spec.output.uri, request.base)
    uri = root.child(run_id)
    plan, plan_sha256 = load_plan(request.store, uri)
    if plan.run_id != run_id:
        raise IntegrityError(
            str(uri),
            expected=f"the plan of run {run_id}",
            seen=plan.run_id,
            next_step="move the folder away",
        )
    plan = _as_asked(plan, fresh) if fresh else plan
    return OpenRun(request.store, uri, plan, plan_sha256, root, without_shards(plan))


def _as_asked(plan: Plan, fresh: Plan) -> Plan:
    """A stored plan under today's name, workers, attempts, deadlines and limits, and with what it
    reads where it lies today: these are no part of its identity.
    """
    today = {
        name: getattr(fresh.spec, name)
        for name in ("name", "compute", "limits", "source", "model", "output")
    }
    files = tuple(
        known.model_copy(update={"uri": file.uri})
        for known, file in zip(plan.files, fresh.files, strict=True)
    )
    return plan.model_copy(
        update={
            "spec": plan.spec.model_copy(update=today),
            "files": files,
            "artefacts": fresh.artefacts,
            "statistics": fresh.prepasses,
        }
    )


def check_build(plan: Plan, allow_mixed: bool) -> None:
    """IntegrityError on another torch build than the plan's, unless that may lower the level of
    determinism.
    """
    planned = plan.numerics.torch_build
    if planned != torch.__version__ and not allow_mixed:
        raise IntegrityError(
            "torch build",
            expected=f"{planned}, with which this run began",
            seen=torch.__version__,
            next_step="use that build, or --allow-mixed (level `tolerance`), or --fresh SALT",
        )


def finish(
    run: OpenRun, setup: Setup, pool: Pool, console: Console, logical_date: str | None
) -> RunManifest:
    """Dispatch what is missing, then fold the stored footers."""
    done = load_manifest(run.store, run.uri)
    if done is not None:
        console.print(f"run {run.plan.run_id} is complete already: nothing to do")
        conclude(run.store, run.uri)  # a driver may have died just before it did
        _point(run, logical_date or done.logical_date or done.created)
        return done
    date = logical_date or _now()
    committed = read_committed(run)
    ledger = read_ledger(run.store, run.uri, run.plan)
    missing = [
        s
        for s in run.plan.shards
        if s.id not in committed.shards and s.id not in ledger.quarantined
    ]
    if committed.shards:
        there = f"{len(committed.shards)} of {len(run.plan.shards)}"
        console.print(f"resuming run {run.plan.run_id}: {there} shards are done")
    if missing:
        pool.start(setup, run.plan.spec.compute, len(missing), _stall_s(run.plan))
        committed = _dispatch(run, ledger, committed, pool, console)
    return _seal(run, ledger, committed, date)


def _dispatch(
    run: OpenRun, ledger: Ledger, committed: Committed, pool: Pool, console: Console
) -> Committed:
    """Run what is missing; what storage then holds."""
    with Sidecars(run, committed.loose) as sidecars, progress.watch(console) as show:

        def tell(tally: Tally) -> None:
            show(tally)
            sidecars.beat(tally)

        done = Dispatch(pool, run.plan, ledger, committed, tell, sidecars.committed).run()
    return read_committed(run, done)


def _seal(run: OpenRun, ledger: Ledger, committed: Committed, date: str) -> RunManifest:
    """Fold what storage holds into the manifest; point `_latest` at a complete run."""
    given_up = tuple(q for _, q in sorted(ledger.quarantined.items()))
    manifest = fold(
        run.plan, run.plan_sha256, committed, given_up, created=_now(), logical_date=date
    )
    reach("run.folded")
    write_manifest(run.store, run.uri, manifest)
    reach("manifest.created")
    if manifest.complete:
        _point(run, date)
    return manifest


def _point(run: OpenRun, date: str) -> None:
    pointer = Pointer(run_id=run.plan.run_id, logical_date=date, written=_now())
    point_latest(run.store, run.root, run.plan.spec.name, pointer)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stall_s(plan: Plan) -> float:
    compute = plan.spec.compute
    # a worker compiles in its first step batch
    compiling = compute.start_s if plan.numerics.compile else 0.0
    return (
        compute.stall_s or max(STALL_S, STALL_BATCHES * plan.projection.batch_seconds) + compiling
    )


def limits_exceeded(spec: AttributeSpec, manifest: RunManifest) -> list[str]:
    """Which of the spec's limits a run is above, in words."""
    limits, total = spec.limits, max(1, manifest.rows_out)
    shares = [
        (
            "max_bad_share",
            limits.max_bad_share,
            manifest.count("bad_input", "nonfinite", "failed") / total,
        ),
        (
            "max_uncertified_share",
            limits.max_uncertified_share,
            manifest.count("not_converged") / total,
        ),
        ("max_quarantined", limits.max_quarantined, len(manifest.quarantined)),
    ]
    return [
        f"limits.{name}: {seen:.4g} is above {most:g}"
        for name, most, seen in shares
        if most is not None and seen > most
    ]
