"""The kinds of jobs, by the word that specs and stored plans name them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from integrand.schemas.errors import DataError
from integrand.schemas.uris import Uri
from integrand.service.running.attribution import Attribution
from integrand.service.running.kind import JobKind
from integrand.service.runs.manifest import load_head
from integrand.workers.storage.store import Store

ATTRIBUTION = Attribution()
KINDS: Mapping[str, JobKind[Any, Any, Any]] = {"attribute": ATTRIBUTION}


def kind_of_run(store: Store, run: Uri) -> JobKind[Any, Any, Any]:
    """The kind of job that a run folder is of. DataError for one that is not known here."""
    kind = load_head(store, run).spec.kind
    if kind not in KINDS:
        raise DataError(
            str(run),
            expected=f"a job of kind {', '.join(KINDS)}",
            seen=f"kind {kind}",
            next_step="upgrade integrand to run it",
        )
    return KINDS[kind]
