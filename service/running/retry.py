"""`retry-quarantined`: a partial run taken up again from its folder alone, the shards that were
given up first.
"""

from __future__ import annotations

import os
from typing import Any

from integrand.schemas.errors import DataError
from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.pools.choice import make_pool
from integrand.service.progress import Listener, Notice
from integrand.service.running.finish import finish
from integrand.service.running.folder import OpenRun, open_stored
from integrand.service.running.jobs import printed_unless
from integrand.service.running.kinds import kind_of_run
from integrand.service.running.ledger import Ledger, read_ledger
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.manifest import PARTIAL, load_record
from integrand.workers.storage.store import Store


def retry_quarantined(
    uri: str | os.PathLike[str] | Uri,
    *,
    name: str | None = None,
    operator: Operator = Operator(),
    cluster: Cluster = Cluster("ray"),
    listen: Listener | None = None,
) -> RunManifest | None:
    """Release every quarantined shard and run what is missing: the manifest, complete or not; None
    if none was given up.

    Attempts stay on record, and those before the release count no more. The plan, its model and its
    code are the stored ones: IntegrityError if they are not what was planned. Other arguments as
    for `run_job`.

    name   which job, where `uri` is an output root that holds several
    """
    store = Store(operator.access)
    place = resolve_run(uri, store=store, name=name)
    run = open_stored(kind_of_run(store, place), store, place)
    with printed_unless(listen) as listener:
        manifest: RunManifest | None = _retry(run, operator, cluster, listener)
    return manifest


def _retry(
    run: OpenRun[Any, Any, Any], operator: Operator, cluster: Cluster, listen: Listener
) -> Any:
    partial = load_record(run.kind.manifest, run.store, run.uri.child(PARTIAL))
    ledger = read_ledger(run.store, run.uri, run.plan)
    # a partial run without any was left while it was retried
    if not ledger.quarantined and partial is None:
        return None
    code = run.kind.stored_code(run, operator.trusted)
    setup = run.kind.make_setup(run, code, operator, allow_mixed=False)
    _check_there(run, ledger)
    count = len(ledger.quarantined)
    listen(Notice(f"run {run.plan.run_id}: {count} quarantined shards are tried again"))
    for shard in sorted(ledger.quarantined):
        ledger.release(shard)
    allowed = operator.allow_unauthenticated_ray
    workers = make_pool(cluster, run.plan.spec.compute, allow_unauthenticated=allowed)
    try:
        return finish(run, setup, workers, listen, partial.date if partial else None)
    finally:
        workers.close()


def _check_there(run: OpenRun[Any, Any, Any], ledger: Ledger) -> None:
    """DataError, before anything is released, if what the tasks are made from is not where it was
    planned.
    """
    places = run.kind.read_from(run.plan, ledger.quarantined.keys())
    for place in dict.fromkeys(places):
        if not run.store.exists(run.store.parse(place)):
            raise DataError(
                place,
                expected="what the run reads, where it was planned",
                seen="nothing there",
                next_step="put it back",
            )
