"""The verbs of a job: plan it, run it to its end or pick it up again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from integrand.schemas.records import JobPlan, Plan, RunManifest
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.tables import ReasonsStatus
from integrand.service import progress
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.planning.planner import make_plan
from integrand.service.planning.request import AnyRequest, Request
from integrand.service.pools.base import Mapper, Pool
from integrand.service.pools.choice import Undecided, make_planning_pool
from integrand.service.pools.local import LocalPool
from integrand.service.progress import Listener, Notice
from integrand.service.running.finish import finish
from integrand.service.running.folder import create_folder, open_folder
from integrand.service.running.kind import JobKind, OneManifest, OnePlan
from integrand.service.running.kinds import KINDS
from integrand.service.runs.manifest import instant
from integrand.service.terminal import Terminal
from integrand.workers.models.code import CodeBundle
from integrand.workers.storage.store import Store


def plan_job(
    spec: AttributeSpec,
    *,
    base: str = "/",
    operator: Operator = Operator(),
    salt: str = "",
    ingest: bool = False,
) -> Plan:
    """Resolve and check a job without running it. Raises SpecError or DataError for what cannot
    work.

    base      folder that relative paths of the spec start from
    operator  trusted model code, and places that may be read and written
    salt      any text: the same job under another salt is another run
    ingest    split text sources and count statistics now, instead of estimating
    """
    request = Request(spec, base, Store(operator.access), operator.trusted, salt, ingest)
    plan, _ = make_plan(request, LocalPool())
    return plan


def run_job(
    spec: AttributeSpec,
    *,
    base: str = "/",
    operator: Operator = Operator(),
    cluster: Cluster = Cluster(),
    salt: str = "",
    allow_mixed: bool = False,
    logical_date: str | None = None,
    listen: Listener | None = None,
) -> RunManifest:
    """Plan a job, run what is missing of it, and return its manifest, complete or not.

    base          folder that relative paths of the spec start from
    operator      trusted model code, and places that may be read and written
    cluster       where its workers run; a small job runs in this process by default
    salt          any text: the same job under another salt is another run
    allow_mixed   resume on another torch build, at determinism level `tolerance`
    logical_date  ISO date that the `_latest` pointer is ordered by; now by default
    listen        called with notices and tallies; None prints them
    """
    kind: JobKind[Any, Any, RunManifest] = KINDS[spec.kind]
    request = Request(spec, base, Store(operator.access), operator.trusted, salt)
    running = Running(
        kind=kind,
        operator=operator,
        cluster=cluster,
        allow_mixed=allow_mixed,
        logical_date=logical_date,
    )
    with printed_unless(listen) as listener:
        return running.run(request, listener)


@contextmanager
def printed_unless(listen: Listener | None) -> Iterator[Listener]:
    """The listener itself, or one that prints."""
    if listen is not None:
        yield listen
        return
    with progress.shown_on(Terminal(soft_wrap=True)) as printer:
        yield printer


@dataclass(frozen=True, kw_only=True)
class Running(Generic[OnePlan, OneManifest]):
    """How a job of some kind is run: under whose rules, where, and as of when."""

    kind: JobKind[OnePlan, Any, OneManifest]
    operator: Operator
    cluster: Cluster
    allow_mixed: bool = False
    logical_date: str | None = None

    def run(self, request: AnyRequest[Any], listen: Listener) -> OneManifest:
        """Plan what is asked for and bring it to its end."""
        if self.logical_date is not None:
            instant(self.logical_date)
        planner = make_planning_pool(
            self.cluster,
            request.spec.compute,
            allow_unauthenticated=self.operator.allow_unauthenticated_ray,
        )
        try:
            begin = _plan_run(self.kind, request, planner, listen)
            run = open_folder(self.kind, request, begin.plan.run_id, begin.plan)
            setup = self.kind.make_setup(
                run, begin.code, self.operator, allow_mixed=self.allow_mixed
            )
            pool = _settle(planner, begin, listen)
            return finish(run, setup, pool, listen, self.logical_date)
        finally:
            planner.close()


@dataclass(frozen=True, eq=False)
class Begin(Generic[OnePlan]):
    """A run as planned today, without its tasks, and the code it ships; whether its folder was
    there before.
    """

    plan: OnePlan
    code: CodeBundle
    begun: bool


def _plan_run(
    kind: JobKind[OnePlan, Any, Any], request: AnyRequest[Any], pool: Mapper, listen: Listener
) -> Begin[OnePlan]:
    """Make the plan and its run folder. The stored tasks count from then on: twice 100,000 would
    take much memory.
    """
    planned, code = kind.make_plan(request, pool)
    _announce(planned, listen)
    begun = create_folder(kind, request, planned, listen)
    return Begin(planned.model_copy(update={"shards": ()}), code, begun)


def _settle(pool: Pool | Undecided, begin: Begin[Any], listen: Listener) -> Pool:
    """The pool that the run gets, and a word where that is this process."""
    if not isinstance(pool, Undecided):
        return pool
    chosen = pool.settle(_work_s(begin.plan), begun=begin.begun)
    if isinstance(chosen, LocalPool):
        text = (
            "it runs in this process, faster than Ray starts; if the model takes the process along,"
            " the same command goes on with Ray"
        )
        listen(Notice(text))
    return chosen


def _work_s(plan: JobPlan[Any]) -> float:
    """Projected seconds in one process."""
    return float(plan.projection.seconds * plan.spec.compute.side_by_side)


def _announce(plan: JobPlan[Any], listen: Listener) -> None:
    text = (
        f"run {plan.run_id}: {plan.rows:,} rows in {len(plan.shards):,} shards, about "
        f"{progress.duration(plan.projection.seconds)} of work"
    )
    listen(Notice(text))
    for warning in plan.warnings:
        listen(Notice(f"warning: {warning}", is_warning=True))


def limits_exceeded(spec: AttributeSpec, manifest: RunManifest) -> list[str]:
    """Which of the spec's limits a run is above, in words."""
    limits = spec.limits
    total = max(1, manifest.rows_out)
    bad = manifest.count("bad_input", "nonfinite", "failed") / total
    uncertified = manifest.count("not_converged") / total
    prohibited = manifest.reasons.get(ReasonsStatus.prohibited, 0)
    shares = [
        ("max_bad_share", limits.max_bad_share, bad),
        ("max_uncertified_share", limits.max_uncertified_share, uncertified),
        ("max_quarantined", limits.max_quarantined, len(manifest.quarantined)),
        ("max_prohibited", limits.max_prohibited, prohibited),
    ]
    return [
        f"limits.{name}: {seen:.4g} is above {most:g}"
        for name, most, seen in shares
        if most is not None and seen > most
    ]
