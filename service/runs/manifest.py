"""What a run holds, told from what is stored: the RunManifest, and the pointer to the
latest run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.quantiles import histogram_quantiles
from integrand.schemas.record import Record, dump
from integrand.schemas.records import (
    JobManifest,
    JobPlan,
    Plan,
    Quarantined,
    RunManifest,
    environment,
)
from integrand.schemas.sidecars import (
    Attempt,
    PlanHead,
    Pointer,
)
from integrand.schemas.stats import COUNTERS, Stats
from integrand.schemas.uris import Uri
from integrand.service.runs.footers import THREADS, Held, listed
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Entry, Store

PLAN, MANIFEST, PARTIAL, LATEST = "_plan.json", "_manifest.json", "_partial.json", "_latest"
AnyRecord = TypeVar("AnyRecord", bound=Record)
SomePlan = TypeVar("SomePlan", bound=JobPlan[Any])


def load_plan(store: Store, run: Uri) -> tuple[Plan, str]:
    """The plan of an attribution run and the sha256 of its stored bytes. SpecError if `run` is not
    a run folder.
    """
    return parse_plan(read_plan(store, run), run)


def load_plan_of(kind: type[SomePlan], store: Store, run: Uri) -> tuple[SomePlan, str]:
    """The same of a job of another kind."""
    stored = read_plan(store, run)
    plan = parse_record(kind, stored, run.child(PLAN))
    return plan, hashlib.sha256(stored).hexdigest()


def load_head(store: Store, run: Uri) -> PlanHead:
    """What kind of job a run folder is of, and its name."""
    stored = read_plan(store, run)
    return parse_record(PlanHead, stored, run.child(PLAN))


def read_plan(store: Store, run: Uri) -> bytes:
    """The plan as it is stored. SpecError if `run` is not a run folder."""
    try:
        return store.read(run.child(PLAN))
    except FileNotFoundError:
        raise SpecError(
            str(run),
            expected="a run folder",
            seen=f"no {PLAN}",
            next_step="name the run folder or its output root",
        ) from None


def parse_plan(stored: bytes, run: Uri) -> tuple[Plan, str]:
    """The plan in these bytes, and their sha256.

    By way of Python objects, whose memory Python takes again: what pydantic parses 100,000 shards
    with stays lost.
    """
    plan = parse_record(Plan, stored, run.child(PLAN))
    return plan, hashlib.sha256(stored).hexdigest()


def load_manifest(store: Store, run: Uri) -> RunManifest | None:
    """The manifest of a complete run; None while rows are missing."""
    return load_record(RunManifest, store, run.child(MANIFEST))


def load_partial(store: Store, run: Uri) -> RunManifest | None:
    """What the last driver told of a run with quarantined shards; None where there were none, or
    all is in.
    """
    return load_record(RunManifest, store, run.child(PARTIAL))


def read_quarantined(store: Store, run: Uri) -> tuple[Quarantined, ...]:
    """Every shard ever given up, by id; some may have been committed since."""
    entries = store.list(run.child("_quarantine"), depth=1)
    load = partial(load_record, Quarantined, store)
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(load, _records(entries)))
    return tuple(q for q in found if q is not None)


def read_attempts(store: Store, run: Uri) -> Iterator[Attempt]:
    """Every failed attempt, by shard and in the order in which they were recorded."""
    places = _records(store.list(run.child("_attempts")))
    with ThreadPoolExecutor(THREADS) as threads:
        stored = threads.map(store.read, places)
        for data, place in zip(stored, places, strict=True):
            yield parse_record(Attempt, data, place)


def _records(entries: Iterable[Entry]) -> list[Uri]:
    return [entry.uri for entry in entries if entry.uri.name.endswith(".json")]


# --- manifest ----------------------------------------------------------------------------------


def fold(
    plan: Plan,
    plan_sha256: str,
    committed: Held[Stats],
    quarantined: Sequence[Quarantined] = (),
    *,
    created: str,
    logical_date: str | None = None,
) -> RunManifest:
    """The run as its committed shards tell it. Quantiles are upper bounds from the merged
    histograms.

    `created` is the time of folding, ISO 8601.
    """
    stats, lowered = committed.stats, _lowered(plan, committed.stats)
    missing = tuple(s.id for s in plan.shards if s.id not in committed.shards)
    left = set(missing)
    counted = {name: getattr(stats, name) for name in COUNTERS if name in RunManifest.model_fields}
    return RunManifest(
        run_id=plan.run_id,
        name=plan.spec.name,
        complete=not missing,
        plan_sha256=plan_sha256,
        shards_done=stats.shards,
        shards_planned=len(plan.shards),
        rows_planned=plan.rows,
        gap=histogram_quantiles(stats.gap_histogram, stats.gap_max),
        error=histogram_quantiles(stats.error_histogram, stats.error_max),
        determinism="tolerance" if lowered else "bitwise",
        determinism_reasons=lowered,
        quarantined=tuple(q for q in quarantined if q.shard in left),
        missing=missing,
        warnings=plan.warnings,
        logical_date=logical_date,
        numerics=plan.numerics,
        left_out=plan.left_out,
        half_error=plan.half_error,
        promises_completeness=plan.promises_completeness,
        created=created,
        **counted,
    )


def write_manifest(store: Store, run: Uri, manifest: JobManifest) -> None:
    """Create `_manifest.json` if the run is complete; renew `_partial.json` while shards are
    quarantined.

    IntegrityError if another manifest is there already that tells of other rows.
    """
    if not manifest.complete:
        if manifest.has_given_up:
            store.replace(run.child(PARTIAL), dump(manifest))
        return
    try:
        store.create(run.child(MANIFEST), dump(manifest), scratch=run.child("_tmp"))
    except FileExistsError:
        _check_same(run, manifest, load_record(type(manifest), store, run.child(MANIFEST)))
    conclude(store, run)


def conclude(store: Store, run: Uri) -> None:
    """Remove what a complete run has no more use for: the partial manifest, and scratch that killed
    writers left.
    """
    store.delete(run.child(PARTIAL))
    for folder in (run, run.child("_tmp"), run.child("_stats"), run.child("_quarantine")):
        store.sweep(folder)


def _lowered(plan: Plan, stats: Stats) -> tuple[str, ...]:
    """Why the run is not bitwise: it was planned so, its shards were made in unlike environments,
    or say so themselves.
    """
    environments = stats.environments
    reasons = [plan.lowered] if plan.lowered else []
    kernels = plan.numerics.kernels
    tried = environment({"torch": plan.numerics.torch_build, "processor": kernels or ""})
    if kernels and len(environments) == 1 and environments[0] != tried:
        reasons.append(
            f"its rows come from {environments[0]}, whose kernels were not tried: it was planned on"
            f" {kernels}"
        )
    if len(environments) > 1:
        listed = "; ".join(environments)
        reasons.append(f"its rows come from {len(environments)} environments: {listed}")
    reasons += stats.lowered_reasons
    unnamed = stats.lowered - len(stats.lowered_reasons)
    if unnamed > 0:
        reasons.append(f"and {unnamed} more shards")
    return tuple(reasons)


def _check_same(run: Uri, ours: JobManifest, stored: JobManifest | None) -> None:
    seen = (stored.run_id, stored.plan_sha256, stored.contents) if stored else ()
    expected = (ours.run_id, ours.plan_sha256, ours.contents)
    if seen != expected:
        raise IntegrityError(
            str(run.child(MANIFEST)),
            expected="run, plan, digest: " + listed(expected),
            seen=listed(seen) or "an object that is gone again",
            next_step="find out who else writes to this folder",
        )


# --- the latest run ----------------------------------------------------------------------------


def read_pointer(store: Store, root: Uri, name: str) -> Pointer | None:
    """`<root>/_latest/<name>.json`, or None. IntegrityError if it points out of `root`."""
    place = root.child(LATEST, f"{name}.json")
    pointer = load_record(Pointer, store, place)
    if pointer is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", pointer.run_id):
        raise IntegrityError(
            str(place),
            expected="the name of a run folder",
            seen=repr(pointer.run_id),
            next_step="delete the pointer and finish a run again",
        )
    return pointer


def point_latest(store: Store, root: Uri, name: str, pointer: Pointer) -> bool:
    """Point `name` at a complete run, unless it points at a run of later logical date. True if it
    does.
    """
    present = read_pointer(store, root, name)
    if present is not None and instant(present.logical_date) > instant(pointer.logical_date):
        return False
    store.replace(root.child(LATEST, f"{name}.json"), dump(pointer))
    reach("pointer.written")
    return True


def instant(logical_date: str) -> datetime:
    """The moment that an ISO 8601 date stands for, UTC where it does not say. Raises SpecError."""
    try:
        moment = datetime.fromisoformat(logical_date)
    except ValueError:
        raise SpecError(
            "logical date", expected="ISO 8601, such as 2026-01-31", seen=repr(logical_date)
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def load_record(kind: type[AnyRecord], store: Store, place: Uri) -> AnyRecord | None:
    """A stored record; None where there is none."""
    try:
        data = store.read(place)
    except FileNotFoundError:
        return None
    return parse_record(kind, data, place)


def parse_record(kind: type[AnyRecord], data: bytes, place: Uri) -> AnyRecord:
    """What a stored object says. IntegrityError for other bytes, DataError for those of a later
    format.
    """
    try:
        return kind.model_validate(from_json(data))
    except ValueError as error:  # a ValidationError is one
        known = (
            error.errors(include_url=False, include_input=False)
            if isinstance(error, ValidationError)
            else []
        )
        if known and known[0]["loc"] == ("format_version",):
            raise DataError(
                str(place),
                expected="format_version 1",
                seen="a folder of another format",
                next_step="upgrade integrand to read it",
            ) from None
        raise IntegrityError(
            str(place),
            expected=f"a {kind.__name__}",
            seen=str(known[0]["msg"] if known else error),
            next_step="restore it, or start a new run with --fresh",
        ) from None


def without_shards(plan: JobPlan[Any]) -> bytes:
    """A plan as workers get it: of 100,000 shards each would parse 10 MB and keep 30."""
    return dump(plan.model_copy(update={"shards": ()}))
