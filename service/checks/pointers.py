"""Pointers to this run, and this job's: they lead to a complete run, and this job's to none of an
earlier date.
"""

from __future__ import annotations

from collections.abc import Iterator

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    Pointer,
)
from integrand.schemas.uris import Uri
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked, finding_of
from integrand.service.runs.manifest import LATEST, MANIFEST, instant, read_pointer


def _remarks(run: Evidence) -> Iterator[Remark]:
    folder = run.folder
    manifest = run.manifests.complete
    parent, _ = folder.uri.path.rsplit("/", 1)
    root = Uri(folder.uri.scheme, parent)
    entries = folder.store.list(root.child(LATEST), depth=1)
    names = [e.uri.name.removesuffix(".json") for e in entries]
    for name in names:
        yield from _pointer_remarks(run, root, name)
    if manifest and manifest.name not in names:
        yield Unchecked(
            "the pointer to the latest run",
            f"there is no {LATEST}/{manifest.name}.json beside the run",
        )


CHECK = Check("pointers", "pointers lead to complete runs, this job's to none before it", _remarks)


def _pointer_remarks(run: Evidence, root: Uri, name: str) -> Iterator[Remark]:
    folder, manifest = run.folder, run.manifests.complete
    place = str(root.child(LATEST, f"{name}.json"))
    try:
        pointer = read_pointer(folder.store, root, name)
    except IntegrityError as error:
        yield finding_of(error)
        return
    if pointer is None:  # gone since it was listed
        return
    concerns = pointer.run_id == folder.plan.run_id or name == folder.plan.spec.name
    if concerns and not folder.store.exists(root.child(pointer.run_id, MANIFEST)):
        yield Finding(
            place,
            "a complete run",
            f"{pointer.run_id}, which has no {MANIFEST}",
            "delete the pointer and finish a run again",
        )
    elif manifest and name == manifest.name and _lags(pointer, manifest):
        yield Finding(
            place,
            f"run {manifest.run_id} of {manifest.logical_date}, or a later one",
            f"run {pointer.run_id} of {pointer.logical_date}",
            "run the job again: it resumes, and points",
        )


def _lags(pointer: Pointer, manifest: RunManifest) -> bool:
    own = manifest.logical_date
    return own is not None and instant(pointer.logical_date) < instant(own)
