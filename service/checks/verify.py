"""A run folder held against itself: plan, objects, footers, manifest and pointer, and a few rows
attributed again.

Without a sample nothing here imports torch or ray, and no model code is loaded. One shard is in
memory at a time.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import shard_object
from integrand.schemas.records import Plan, Pointer, Quarantined, RunManifest
from integrand.schemas.stats import Block, Stats
from integrand.schemas.uris import Uri
from integrand.service.checks.findings import Finding, Remark, Unchecked, finding_of
from integrand.service.checks.recount import Recounter, decoded
from integrand.service.planning.runid import stored_run_id
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.footers import RunFolder, member_of, read_footers
from integrand.service.runs.manifest import (
    LATEST,
    MANIFEST,
    fold,
    instant,
    load_manifest,
    load_partial,
    parse_plan,
    read_attempts,
    read_plan,
    read_pointer,
    read_quarantined,
)
from integrand.service.runs.totals import (
    STATS,
    Committed,
    add_footers,
    merge,
    read_block,
    stats_of,
)
from integrand.workers.data.row_ids import hash_ids
from integrand.workers.data.values import plain_values
from integrand.workers.storage.store import Access, Entry, Store

SAMPLE = 16
_AT_FOLDING = {"name", "created", "logical_date"}
"""What a manifest knows of its driver, not of the footers."""
_RUN_AGAIN = "run the job again: it resumes"


@dataclass(frozen=True)
class Verification:
    """What a verification found. It holds if there is no finding; `unchecked` may hold or not.

    shards, rows   whose objects were read, and their output rows
    sampled        rows that were attributed again, `bitwise` of them compared in every bit
    """

    run: str
    state: Literal["complete", "partial", "unfinished"]
    shards: int
    rows: int
    sampled: int
    bitwise: int
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    @property
    def holds(self) -> bool:
        return not self.findings


def verify_run(
    uri: str | os.PathLike[str] | Uri,
    *,
    name: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
) -> Verification:
    """Check a run folder against what it says of itself. Raises SpecError where there is none, else
    reports.

    name      which job, where `uri` is an output root that holds several
    sample    input rows to attribute again, drawn with `seed`; 0: none, and nothing is loaded
    trusted   module prefixes whose model code may run here
    """
    store = Store(access)
    run = resolve_run(uri, store=store, name=name)
    stored = read_plan(store, run)
    try:
        plan, plan_sha256 = parse_plan(stored, run)
    except IntegrityError as error:
        rest = Unchecked("everything else", "the plan cannot be read")
        return Verification(str(run), "unfinished", 0, 0, 0, 0, (finding_of(error),), (rest,))
    return _verified(RunFolder(store, run, plan, plan_sha256), sample, seed, trusted)


def _verified(folder: RunFolder, sample: int, seed: int, trusted: tuple[str, ...]) -> Verification:
    # before the listing: the run may be finished meanwhile
    manifest, partial, broken = _manifests(folder)
    entries, foreign = _listed(folder)
    counted = _recounted(folder, entries)
    given_up, unknown = _quarantined(folder)
    released, unreadable = _released(folder)
    told = manifest or _as_released(partial, released - {q.shard for q in given_up})
    again = None
    if sample:
        from integrand.service.checks.reattribution import (
            reattribute,  # torch and the model are loaded for a sample alone
        )

        again = reattribute(folder, counted.sound, sample, seed, trusted)
    remarks: list[Remark] = [
        *_plan_remarks(folder.plan),
        *foreign,
        *counted.remarks,
        *_repeated(folder, counted),
        *broken,
        *_manifest_remarks(folder, counted, told, given_up),
        *unknown,
        *unreadable,
        *_block_remarks(folder, entries),
        *_pointer_remarks(folder, manifest),
        *(again.remarks if again else ()),
    ]
    return Verification(
        str(folder.uri),
        "complete" if manifest else "partial" if partial else "unfinished",
        len(counted.shards),
        counted.stats.rows_out,
        again.rows if again else 0,
        again.bitwise if again else 0,
        tuple(r for r in remarks if isinstance(r, Finding)),
        tuple(dict.fromkeys(r for r in remarks if isinstance(r, Unchecked))),
    )


# --- the plan ----------------------------------------------------------------------------------


def _plan_remarks(plan: Plan) -> Iterator[Remark]:
    """The run id is the digest of what the plan holds, and its shards are every row of every file
    once.
    """
    seen = stored_run_id(plan)
    if seen is None:
        yield Unchecked(
            "the run id",
            "the plan was written by a version that did not store the digest of its code",
        )
    elif seen != plan.run_id:
        yield Finding(
            "_plan.json run_id",
            plan.run_id,
            f"{seen} of what it plans",
            "restore the plan that was written",
        )
    if len({s.id for s in plan.shards}) < len(plan.shards):
        yield Finding(
            "_plan.json shards", "different ids", "some twice", "restore the plan that was written"
        )
    taken: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for rows in (rows for shard in plan.shards for rows in shard.slices):
        taken[rows.file].append((rows.start, rows.stop))
    for i, file in enumerate(plan.files):
        cuts = sorted(taken[i])
        whole = [0, *(stop for _, stop in cuts)] == [*(start for start, _ in cuts), file.rows]
        if not whole:
            yield Finding(
                f"_plan.json shards of {file.path}",
                f"rows 0 to {file.rows}, each once",
                f"{cuts[:4]}…",
                "restore the plan that was written",
            )


# --- objects -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Counted:
    """What the objects hold, added up while they are read; `sound` are those that nothing is wrong
    with.
    """

    shards: set[str] = field(default_factory=set)
    sound: list[str] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    stats: Stats = field(default_factory=Stats)
    hashes: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)


def _listed(folder: RunFolder) -> tuple[dict[str, Entry], list[Remark]]:
    """The objects by shard, and whatever else lies below `data/`."""
    planned = {folder.uri.child(shard_object(s)): s for s in folder.shards}
    listing = folder.store.list(folder.uri.child("data"))
    foreign: list[Remark] = [
        Finding(str(e.uri), "only the planned shards below data/", e.uri.name, "move it away")
        for e in listing
        if e.uri not in planned
    ]
    return {planned[e.uri]: e for e in listing if e.uri in planned}, foreign


def _recounted(folder: RunFolder, entries: dict[str, Entry]) -> _Counted:
    counted, recounter = _Counted(), Recounter(folder)
    for shard in folder.plan.shards:
        if shard.id not in entries:
            continue
        place = entries[shard.id].uri
        try:
            data = folder.store.read(place)
        except FileNotFoundError:  # gone since it was listed
            continue
        found = recounter.recount(shard, str(place), data)
        counted.remarks += found.remarks
        if found.footer is None:
            counted.unreadable.add(shard.id)
            continue
        counted.shards.add(shard.id)
        counted.stats = merge([counted.stats, stats_of(found.footer)])
        counted.hashes[shard.id] = found.hashes
        counted.sound += [] if any(isinstance(r, Finding) for r in found.remarks) else [shard.id]
    return counted


def _repeated(folder: RunFolder, counted: _Counted) -> Iterator[Remark]:
    """An id that stands in two places; hashes only tell which ids to look at."""
    hashes, times = np.unique(
        np.concatenate([np.empty(0, np.uint64), *counted.hashes.values()]), return_counts=True
    )
    if (times == 1).all():
        return
    seen: Counter[object] = Counter()
    for shard in [shard for shard, own in counted.hashes.items() if len(own)]:
        data = folder.store.read(folder.uri.child(shard_object(shard)))
        ids = decoded(data).table["row_id"].combine_chunks()
        ids = ids[:: folder.plan.targets_per_row].drop_null()
        seen.update(plain_values(ids.filter(pa.array(np.isin(hash_ids(ids), hashes[times > 1])))))
    twice = [value for value, count in seen.items() if count > 1]
    if twice:
        yield Finding(
            f"{folder.uri}/data column row_id",
            "each row once",
            f"{len(twice)} ids more than once, for instance {twice[0]!r}",
            "see which objects are not as they were committed",
        )


# --- manifest, quarantine, caches, pointer -----------------------------------------------------


def _manifests(folder: RunFolder) -> tuple[RunManifest | None, RunManifest | None, list[Remark]]:
    try:
        return load_manifest(folder.store, folder.uri), load_partial(folder.store, folder.uri), []
    except IntegrityError as error:
        return None, None, [finding_of(error)]


def _manifest_remarks(
    folder: RunFolder,
    counted: _Counted,
    stored: RunManifest | None,
    given_up: Sequence[Quarantined],
) -> Iterator[Remark]:
    """A manifest tells what the footers amount to; that of a partial run may be older than some of
    them.
    """
    missing = [s for s in folder.shards if s not in counted.shards and s not in counted.unreadable]
    if stored is None or not stored.complete:
        if missing:
            yield Unchecked(
                f"{len(missing)} of {len(folder.shards)} shards", "they are not committed"
            )
        if stored is None or stored.shards_done < len(counted.shards):
            return
    elif missing:
        yield Finding(
            f"{folder.uri}/data",
            f"an object for each planned shard, as {MANIFEST} tells",
            f"none for {len(missing)}, the first of them {missing[0]}",
            f"move {MANIFEST} away and run again: they are redone",
        )
    if counted.unreadable or (missing and stored.complete):
        yield Unchecked("the manifest against the footers", "not every object can be read")
        return
    committed = Committed(frozenset(counted.shards), counted.stats)
    folded = fold(folder.plan, folder.plan_sha256, committed, given_up, created=stored.created)
    for name in sorted(stored.model_fields_set - _AT_FOLDING):  # later versions may tell more
        told, seen = getattr(stored, name), getattr(folded, name)
        if told != seen and not (name == "seconds" and _close(told, seen)):
            yield Finding(
                f"{folder.uri} manifest, {name}",
                f"{told}, as it tells",
                f"{seen} in the footers",
                "move the manifest away and run again: it is written anew",
            )


def _close(one: dict[str, float], other: dict[str, float]) -> bool:
    """Sums of floats, in whatever order."""
    return one.keys() == other.keys() and all(
        math.isclose(one[k], other[k], rel_tol=1e-9, abs_tol=1e-9) for k in one
    )


def _quarantined(folder: RunFolder) -> tuple[tuple[Quarantined, ...], list[Remark]]:
    """Shards that were given up; each record must be of a planned shard."""
    try:
        records = read_quarantined(folder.store, folder.uri)
    except IntegrityError as error:
        return (), [finding_of(error)]
    wrong = [
        q for q in records if q.shard not in folder.shards or folder.shards[q.shard].rows != q.rows
    ]
    return records, [
        Finding(
            f"{folder.uri}/_quarantine",
            "planned shards and their rows",
            f"shard {q.shard} of {q.rows} rows",
            "delete the record",
        )
        for q in wrong
    ]


def _released(folder: RunFolder) -> tuple[set[str], list[Remark]]:
    """Shards that a retry took out of quarantine; records of attempts that cannot be read would end
    the next driver.
    """
    try:
        return {
            a.shard for a in read_attempts(folder.store, folder.uri) if a.outcome == "released"
        }, []
    except IntegrityError as error:
        return set(), [finding_of(error)]


def _as_released(partial: RunManifest | None, released: set[str]) -> RunManifest | None:
    """A partial manifest as it were had it been written after a retry that came to nothing."""
    if partial is None:
        return None
    kept = tuple(q for q in partial.quarantined if q.shard not in released)
    return partial.model_copy(update={"quarantined": kept})


def _block_remarks(folder: RunFolder, entries: dict[str, Entry]) -> Iterator[Remark]:
    """Caches of footers tell what these tell, as far as their members are what they were."""
    for entry in [
        e
        for e in folder.store.list(folder.uri.child(STATS), depth=1)
        if e.uri.name.endswith(".json")
    ]:
        block = read_block(folder, entry)
        if block is None:
            yield Finding(
                str(entry.uri),
                "a block of footers of this plan",
                "other or broken bytes",
                "delete it",
            )
        elif all(
            m.shard in entries and member_of(entries[m.shard], m.shard) == m for m in block.members
        ):
            yield from _sum_of_block(folder, entry, block)


def _sum_of_block(folder: RunFolder, entry: Entry, block: Block) -> Iterator[Remark]:
    try:
        footers = (
            footer
            for _, footer in read_footers(
                folder.store, folder.uri, [m.shard for m in block.members]
            )
        )
        seen = add_footers(folder, footers).stats
    except IntegrityError:
        return  # said of the object already
    seconds = {"seconds": block.stats.seconds}
    if seen.model_copy(update=seconds) != block.stats or not _close(
        seen.seconds, block.stats.seconds
    ):
        yield Finding(
            str(entry.uri),
            "what its members' footers amount to",
            "another sum",
            "delete it: it is a cache",
        )


def _pointer_remarks(folder: RunFolder, manifest: RunManifest | None) -> Iterator[Remark]:
    """Pointers to this run, and this job's, lead to a complete run; this job's to none of an
    earlier date.
    """
    store, root = folder.store, Uri(folder.uri.scheme, folder.uri.path.rsplit("/", 1)[0])
    names = [e.uri.name.removesuffix(".json") for e in store.list(root.child(LATEST), depth=1)]
    for name in names:
        place = str(root.child(LATEST, f"{name}.json"))
        try:
            pointer = read_pointer(store, root, name)
        except IntegrityError as error:
            yield finding_of(error)
            continue
        concerns = pointer and (
            pointer.run_id == folder.plan.run_id or name == folder.plan.spec.name
        )
        if pointer and concerns and not store.exists(root.child(pointer.run_id, MANIFEST)):
            yield Finding(
                place,
                "a complete run",
                f"{pointer.run_id}, which has no {MANIFEST}",
                "delete the pointer and finish a run again",
            )
        elif pointer and manifest and name == manifest.name and _lags(pointer, manifest):
            yield Finding(
                place,
                f"run {manifest.run_id} of {manifest.logical_date}, or a later one",
                f"run {pointer.run_id} of {pointer.logical_date}",
                f"{_RUN_AGAIN}, and points",
            )
    if manifest and manifest.name not in names:
        yield Unchecked(
            "the pointer to the latest run",
            f"there is no {LATEST}/{manifest.name}.json beside the run",
        )


def _lags(pointer: Pointer, manifest: RunManifest) -> bool:
    own = manifest.logical_date
    return own is not None and instant(pointer.logical_date) < instant(own)
