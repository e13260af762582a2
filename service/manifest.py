"""What a run holds, folded from what is stored: footers to RunManifest, and the pointer to the latest run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.ids import FOOTER_KEY, fold_digests, shard_object
from integrand.schemas.records import (
    Determinism,
    Plan,
    Pointer,
    Quantiles,
    Quarantined,
    Record,
    RunManifest,
    ShardFooter,
    dump,
    histogram_quantiles,
    merge_counts,
)
from integrand.schemas.uris import Uri
from integrand.workers.store import Entry, Store

PLAN, MANIFEST, PARTIAL, LATEST = "_plan.json", "_manifest.json", "_partial.json", "_latest"
_PART = re.compile(r"part-(\d+)\.parquet")
_TAIL = 1 << 16
_THREADS = 16
_REDO = "move the object away and run again: its shard is then redone"
AnyRecord = TypeVar("AnyRecord", bound=Record)


def load_plan(store: Store, run: Uri) -> tuple[Plan, str]:
    """The run's plan and the sha256 of its stored bytes. SpecError if `run` is not a run folder."""
    return parse_plan(read_plan(store, run), run)


def read_plan(store: Store, run: Uri) -> bytes:
    """The plan as it is stored. SpecError if `run` is not a run folder."""
    try:
        return store.read(run.child(PLAN))
    except FileNotFoundError:
        raise SpecError(str(run), expected="a run folder", seen=f"no {PLAN}",
                        next_step="name the run folder or its output root") from None  # fmt: skip


def parse_plan(stored: bytes, run: Uri) -> tuple[Plan, str]:
    """The plan in these bytes, and their sha256."""
    return _parsed(Plan, stored, run.child(PLAN)), hashlib.sha256(stored).hexdigest()


def load_manifest(store: Store, run: Uri) -> RunManifest | None:
    """The manifest of a complete run; None while rows are missing."""
    return _load(RunManifest, store, run.child(MANIFEST))


def read_quarantined(store: Store, run: Uri) -> tuple[Quarantined, ...]:
    """Every shard ever given up, by id; some may have been committed since."""
    entries = store.list(run.child("_quarantine"), depth=1)
    found = (_load(Quarantined, store, e.uri) for e in entries if e.uri.name.endswith(".json"))
    return tuple(q for q in found if q is not None)


# --- footers -----------------------------------------------------------------------------------------------


def read_footer(store: Store, run: Uri, shard_id: str) -> ShardFooter | None:
    """What a committed shard says of itself; None if it is not there. IntegrityError for a foreign object."""
    try:
        return _footer(store, store.info(run.child(shard_object(shard_id))), shard_id)
    except FileNotFoundError:
        return None


def read_footers(store: Store, run: Uri, ids: Collection[str] | None = None) -> dict[str, ShardFooter]:
    """Footers of the committed shards, of all or of those in `ids`, by shard id.

    Lists `data/` once and reads the end of each object. IntegrityError if a Parquet object there is not a
    shard's: readers that go by the folder would take its rows for the run's.
    """
    asked = None if ids is None else set(ids)
    present = {_shard_of(entry): entry for entry in store.list(run.child("data"))}
    wanted = sorted(s for s in present if s is not None and (asked is None or s in asked))
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(wanted, threads.map(lambda s: _footer(store, present[s], s), wanted), strict=True))


def _shard_of(entry: Entry) -> str | None:
    name = _PART.fullmatch(entry.uri.name)
    if name is None and entry.uri.name.endswith(".parquet"):
        raise IntegrityError(str(entry.uri), expected="only part-<shard>.parquet below data/",
                             seen=entry.uri.name, next_step="move the foreign object away")  # fmt: skip
    return name[1] if name else None


def _footer(store: Store, entry: Entry, shard_id: str) -> ShardFooter:
    try:
        metadata = pq.read_metadata(pa.BufferReader(_parquet_footer(store, entry)))
        footer = ShardFooter.model_validate_json((metadata.metadata or {})[FOOTER_KEY.encode()])
    except (pa.ArrowException, OSError, KeyError, ValidationError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _not_ours(entry, f"a footer of Integrand under `{FOOTER_KEY}`", str(error)) from error
    if (footer.shard, footer.rows_out) != (shard_id, metadata.num_rows):
        raise _not_ours(entry, f"shard {shard_id} of {metadata.num_rows} rows",
                        f"shard {footer.shard} of {footer.rows_out} rows")  # fmt: skip
    return footer


def _parquet_footer(store: Store, entry: Entry) -> bytes:
    """The object's end, long enough to hold its Thrift footer, whose length is 8 bytes before the end."""
    tail = store.read_tail(entry.uri, entry.size, _TAIL)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return tail if length <= len(tail) else store.read_tail(entry.uri, entry.size, length)


def _not_ours(entry: Entry, expected: str, seen: str) -> IntegrityError:
    return IntegrityError(str(entry.uri), expected=expected, seen=seen.split("\n")[0],
                          next_step=_REDO)  # fmt: skip


# --- manifest ----------------------------------------------------------------------------------------------


def fold(plan: Plan, plan_sha256: str, footers: Mapping[str, ShardFooter],
         quarantined: Sequence[Quarantined] = (), *,
         created: str, logical_date: str | None = None) -> RunManifest:  # fmt: skip
    """The run as its footers tell it; IntegrityError if a footer is of another plan or does not add up.

    Quantiles are upper bounds from the merged histograms. `created` is the time of folding, ISO 8601.
    """
    _check_footers(plan, plan_sha256, footers)
    done = [footers[key] for key in sorted(footers)]
    missing = tuple(s.id for s in plan.shards if s.id not in footers)
    return RunManifest(
        run_id=plan.run_id, name=plan.spec.name, complete=not missing, plan_sha256=plan_sha256,
        shards_done=len(done), shards_planned=len(plan.shards),
        rows_in=sum(f.rows_in for f in done), rows_planned=plan.rows, rows_out=sum(f.rows_out for f in done),
        statuses=merge_counts([f.statuses for f in done]),
        gap=_merged([f.gap for f in done], [f.gap_histogram for f in done]),
        error=_merged([f.error for f in done], [f.error_histogram for f in done]),
        evaluations=sum(f.evaluations for f in done), digest=fold_digests(f.digest for f in done),
        determinism=_determinism(done), quarantined=tuple(q for q in quarantined if q.shard in missing),
        missing=missing, seconds=_sum_seconds(done), warnings=plan.warnings, logical_date=logical_date,
        numerics=plan.numerics, left_out=plan.left_out, half_error=plan.half_error,
        created=created,
    )  # fmt: skip


def write_manifest(store: Store, run: Uri, manifest: RunManifest) -> None:
    """Create `_manifest.json` if the run is complete; renew `_partial.json` while shards are quarantined.

    IntegrityError if another manifest is there already that tells of other rows.
    """
    if not manifest.complete:
        if manifest.quarantined:
            store.replace(run.child(PARTIAL), dump(manifest))
        return
    try:
        store.create(run.child(MANIFEST), dump(manifest), scratch=run.child("_tmp"))
    except FileExistsError:
        _check_same(run, manifest, load_manifest(store, run))
    store.delete(run.child(PARTIAL))


def _check_footers(plan: Plan, plan_sha256: str, footers: Mapping[str, ShardFooter]) -> None:
    shards = {s.id: s for s in plan.shards}
    for key, footer in footers.items():
        shard = shards.get(key)
        rows = shard.rows if shard else 0
        expected = (key, plan.run_id, plan_sha256, rows, rows * plan.targets_per_row, footer.rows_out)
        seen = (footer.shard, footer.run_id, footer.plan_sha256, footer.rows_in, footer.rows_out,
                sum(footer.statuses.values()))  # fmt: skip
        if shard is None or seen != expected:
            raise IntegrityError(f"run {plan.run_id} shard {key}",
                                 expected="shard, run, plan, rows in, out, by status: " + _listed(expected),
                                 seen=_listed(seen) if shard else "a shard that the plan does not have",
                                 next_step=_REDO)  # fmt: skip


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(v) for v in values)


def _merged(quantiles: Sequence[Quantiles], histograms: list[dict[str, int]]) -> Quantiles:
    largest = max((q.max for q in quantiles if q.max is not None), default=None)
    return histogram_quantiles(merge_counts(histograms), largest)


def _determinism(footers: Sequence[ShardFooter]) -> Determinism:
    """bitwise only if every shard says so and one torch build made them all."""
    builds = {f.versions.get("torch") for f in footers}
    return "bitwise" if all(f.determinism == "bitwise" for f in footers) and len(builds) <= 1 else "tolerance"


def _sum_seconds(footers: Sequence[ShardFooter]) -> dict[str, float]:
    names = sorted({name for f in footers for name in f.seconds})
    return {name: sum(f.seconds.get(name, 0.0) for f in footers) for name in names}


def _check_same(run: Uri, ours: RunManifest, stored: RunManifest | None) -> None:
    seen = (stored.run_id, stored.plan_sha256, stored.digest) if stored else ()
    expected = (ours.run_id, ours.plan_sha256, ours.digest)
    if seen != expected:
        raise IntegrityError(str(run.child(MANIFEST)), expected="run, plan, digest: " + _listed(expected),
                             seen=_listed(seen) or "an object that is gone again",
                             next_step="find out who else writes to this folder")  # fmt: skip


# --- the latest run ----------------------------------------------------------------------------------------


def read_pointer(store: Store, root: Uri, name: str) -> Pointer | None:
    """`<root>/_latest/<name>.json`, or None. IntegrityError if it points out of `root`."""
    place = root.child(LATEST, f"{name}.json")
    pointer = _load(Pointer, store, place)
    if pointer is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", pointer.run_id):
        raise IntegrityError(str(place), expected="the name of a run folder", seen=repr(pointer.run_id),
                             next_step="delete the pointer and finish a run again")  # fmt: skip
    return pointer


def point_latest(store: Store, root: Uri, name: str, pointer: Pointer) -> bool:
    """Point `name` at a complete run, unless it points at a run of later logical date. True if it does."""
    present = read_pointer(store, root, name)
    if present is not None and instant(present.logical_date) > instant(pointer.logical_date):
        return False
    store.replace(root.child(LATEST, f"{name}.json"), dump(pointer))
    return True


def instant(logical_date: str) -> datetime:
    """The moment that an ISO 8601 date stands for, UTC where it does not say. Raises SpecError."""
    try:
        moment = datetime.fromisoformat(logical_date)
    except ValueError:
        raise SpecError("logical date", expected="ISO 8601, such as 2026-01-31", seen=repr(logical_date)) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _load(kind: type[AnyRecord], store: Store, place: Uri) -> AnyRecord | None:
    try:
        data = store.read(place)
    except FileNotFoundError:
        return None
    return _parsed(kind, data, place)


def _parsed(kind: type[AnyRecord], data: bytes, place: Uri) -> AnyRecord:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        if problem["loc"] == ("format_version",):
            raise DataError(str(place), expected="format_version 1", seen="a folder of another format",
                            next_step="upgrade integrand to read it") from None  # fmt: skip
        raise IntegrityError(str(place), expected=f"a {kind.__name__}", seen=str(problem["msg"]),
                             next_step="restore it, or start a new run with --fresh") from None  # fmt: skip
