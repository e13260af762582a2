"""`retry-quarantined`: a partial run taken up again from its folder alone, the shards that were
given up first.
"""

from __future__ import annotations

import os

from rich.console import Console

from integrand.schemas.errors import DataError
from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.planning.planner import planned_code
from integrand.service.pools.choice import PoolKind, make_pool
from integrand.service.running.jobs import OpenRun, check_build, finish
from integrand.service.running.runner import Ledger, read_ledger
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.manifest import load_partial, load_plan, without_shards
from integrand.service.terminal import Terminal
from integrand.workers.models.code import check_trust
from integrand.workers.shards.worker import Setup
from integrand.workers.storage.store import Access, Store


def retry_quarantined(
    uri: str | os.PathLike[str] | Uri,
    *,
    name: str | None = None,
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
    pool: PoolKind = "ray",
    address: str | None = None,
    allow_unauthenticated_ray: bool = False,
    console: Console | None = None,
) -> RunManifest | None:
    """Release every quarantined shard and run what is missing: the manifest, complete or not; None
    if none was given up.

    Attempts stay on record, and those before the release count no more. The plan, its model and its
    code are the stored ones: IntegrityError if they are not what was planned. Other arguments as
    for `run_job`.

    name   which job, where `uri` is an output root that holds several
    """
    store, shown = Store(access), console or Terminal(soft_wrap=True)
    run = _open(store, resolve_run(uri, store=store, name=name))
    partial = load_partial(store, run.uri)
    ledger = read_ledger(store, run.uri, run.plan)
    # a partial run without any was left while it was retried
    if not ledger.quarantined and partial is None:
        return None
    check_trust(run.plan.spec.model, trusted)
    check_build(run.plan, allow_mixed=False)
    setup = Setup(
        plan=run.planned,
        plan_sha256=run.plan_sha256,
        run=run.uri,
        access=access,
        trusted=trusted,
        code=planned_code(store, run.plan),
    )
    _check_there(run, ledger)
    shown.print(
        f"run {run.plan.run_id}: {len(ledger.quarantined)} quarantined shards are tried again",
        highlight=False,
    )
    for shard in sorted(ledger.quarantined):
        ledger.release(shard)
    workers = make_pool(
        pool, address, run.plan.spec.compute, allow_unauthenticated_ray=allow_unauthenticated_ray
    )
    try:
        return finish(run, setup, workers, shown, partial.logical_date if partial else None)
    finally:
        workers.close()


def _check_there(run: OpenRun, ledger: Ledger) -> None:
    """DataError, before anything is released, if what the shards are made from is not where it was
    planned.
    """
    files = [
        run.plan.files[s.file].uri
        for shard in run.plan.shards
        if shard.id in ledger.quarantined
        for s in shard.slices
    ]
    for place in dict.fromkeys([*(a.uri for a in run.plan.artefacts), *files]):
        if not run.store.exists(run.store.parse(place)):
            raise DataError(
                place,
                expected="what the run reads, where it was planned",
                seen="nothing there",
                next_step="put it back",
            )


def _open(store: Store, uri: Uri) -> OpenRun:
    """The run as it is stored, under the compute and the limits that it was planned with."""
    plan, plan_sha256 = load_plan(store, uri)
    root = Uri(uri.scheme, uri.path.rsplit("/", 1)[0])
    return OpenRun(store, uri, plan, plan_sha256, root, without_shards(plan))
