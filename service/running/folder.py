"""The folder of a run that is worked on: created with its plan, or opened as it was left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from integrand.schemas.errors import IntegrityError
from integrand.schemas.record import dump
from integrand.schemas.uris import Uri
from integrand.service.planning.request import AnyRequest
from integrand.service.progress import Listener, Notice
from integrand.service.running.kind import JobKind, OneManifest, OnePlan, OneTotals
from integrand.service.runs.footers import Folder
from integrand.service.runs.manifest import PLAN, load_plan_of
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Store


@dataclass(frozen=True, eq=False)
class OpenRun(Folder[OnePlan], Generic[OnePlan, OneTotals, OneManifest]):
    """A run folder that is being worked on, with its output root, and the kind of its job."""

    root: Uri
    kind: JobKind[OnePlan, OneTotals, OneManifest]


def create_folder(
    kind: JobKind[OnePlan, Any, Any], request: AnyRequest[Any], planned: OnePlan, listen: Listener
) -> bool:
    """The run folder of a plan, created with it unless the run was begun before; whether it was."""
    store = request.store
    uri = store.parse(request.spec.output.uri, request.base).child(planned.run_id)
    begun = store.exists(uri.child(PLAN))
    if not begun:
        kind.check_new(store, planned)
        try:
            store.create(uri.child(PLAN), dump(planned), scratch=uri.child("_tmp"))
        except FileExistsError:  # another driver was first with the same run: its plan counts
            listen(Notice(f"run {planned.run_id} was planned by another driver"))
    reach("plan.created")
    return begun


def open_folder(
    kind: JobKind[OnePlan, OneTotals, OneManifest],
    request: AnyRequest[Any],
    run_id: str,
    fresh: OnePlan | None = None,
) -> OpenRun[OnePlan, OneTotals, OneManifest]:
    """A run folder as it was left, with the tasks that were cut when it was created.

    fresh   the same run as it is planned today, with or without tasks: what is no part of its
            identity is taken from it
    """
    root = request.store.parse(request.spec.output.uri, request.base)
    uri = root.child(run_id)
    plan, plan_sha256 = load_plan_of(kind.plan, request.store, uri)
    if plan.run_id != run_id:
        raise IntegrityError(
            str(uri),
            expected=f"the plan of run {run_id}",
            seen=plan.run_id,
            next_step="move the folder away",
        )
    plan = kind.renew(plan, fresh) if fresh else plan
    return OpenRun(request.store, uri, plan, plan_sha256, root, kind)


def open_stored(
    kind: JobKind[OnePlan, OneTotals, OneManifest], store: Store, uri: Uri
) -> OpenRun[OnePlan, OneTotals, OneManifest]:
    """The run as it is stored, under the compute and the limits that it was planned with."""
    plan, plan_sha256 = load_plan_of(kind.plan, store, uri)
    parent, _ = uri.path.rsplit("/", 1)
    root = Uri(uri.scheme, parent)
    return OpenRun(store, uri, plan, plan_sha256, root, kind)
