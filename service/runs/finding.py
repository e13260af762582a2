"""Which run folder a URI means: the folder itself, or a run under an output root."""

from __future__ import annotations

import os

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Uri
from integrand.service.runs.manifest import (
    LATEST,
    PLAN,
    load_head,
    read_pointer,
)
from integrand.workers.storage.store import Store


def resolve_run(
    uri: str | os.PathLike[str] | Uri, *, store: Store | None = None, name: str | None = None
) -> Uri:
    """The run folder that `uri` means: itself, or the latest run under an output root.

    A root whose runs are all unfinished has no pointer: then its one run, if there is only one.
    SpecError if there is none, or if several jobs or runs share the root and `name` does not tell
    which.
    """
    store = store or Store()
    root = store.parse(str(uri), base=os.getcwd())
    if store.exists(root.child(PLAN)):
        return root
    named = _pointed(store, root)
    if name is None and len(named) > 1:
        raise _unclear(root, "the name of one job", named)
    chosen = name or (named[0] if named else None)
    pointer = read_pointer(store, root, chosen) if chosen else None
    return root.child(pointer.run_id) if pointer else _only_run(store, root, name)


def _pointed(store: Store, root: Uri) -> list[str]:
    """Names of the jobs that have a complete run under this root."""
    entries = store.list(root.child(LATEST), depth=1)
    names = [entry.uri.name for entry in entries]
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def _only_run(store: Store, root: Uri, name: str | None) -> Uri:
    plans = [e.uri for e in store.list(root, depth=2) if e.uri.name == PLAN]
    runs = [Uri(plan.scheme, plan.path.removesuffix(f"/{PLAN}")) for plan in plans]
    if name is not None:
        runs = [run for run in runs if load_head(store, run).spec.name == name]
    if len(runs) != 1:
        known = [str(run) for run in runs] or _pointed(store, root)
        expected = f"a run of `{name}`" if name else "a run folder or an output root"
        raise _unclear(root, expected, known)
    return runs[0]


def _unclear(root: Uri, expected: str, candidates: list[str]) -> SpecError:
    return SpecError(
        str(root),
        expected=expected,
        seen=", ".join(candidates) or "no run here",
        next_step="name one of them" if candidates else "check the path",
    )
