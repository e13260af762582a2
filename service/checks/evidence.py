"""What a run folder holds, read once: every check is handed the same.

Without a sample nothing here imports torch or ray, and no model code is loaded. One shard is in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import shard_object
from integrand.schemas.records import Quarantined, RunManifest
from integrand.schemas.stats import Stats
from integrand.service.checks.findings import Finding, Remark
from integrand.service.checks.recount import Recount, recount
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import (
    load_manifest,
    load_partial,
    read_attempts,
    read_quarantined,
)
from integrand.service.runs.totals import merge, stats_of
from integrand.workers.storage.store import Entry

if TYPE_CHECKING:
    import numpy as np

    from integrand.service.checks.reattribution import Again


@dataclass(frozen=True, eq=False)
class Manifests:
    """The manifest of a complete run, that of a partial one, and why neither can be read."""

    complete: RunManifest | None = None
    partial: RunManifest | None = None
    error: IntegrityError | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """The objects below `data/` by the shard that is planned there, and those that none is."""

    shards: Mapping[str, Entry]
    foreign: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Counted:
    """What the objects hold, added up while they were read.

    hashes      of each readable shard, 64 bits of every row id
    unreadable  shards whose objects cannot be decoded
    sound       shards that nothing was found of
    """

    hashes: Mapping[str, NDArray[np.uint64]]
    unreadable: frozenset[str]
    sound: tuple[str, ...]
    stats: Stats
    remarks: tuple[Remark, ...]

    @property
    def shards(self) -> frozenset[str]:
        """Those that can be read."""
        return frozenset(self.hashes)


@dataclass(frozen=True, eq=False)
class Quarantine:
    """Shards that were given up, and why their records cannot be read."""

    records: tuple[Quarantined, ...] = ()
    error: IntegrityError | None = None


@dataclass(frozen=True, eq=False)
class Releases:
    """Shards that a retry took out of quarantine, and why their attempts cannot be read."""

    shards: frozenset[str] = frozenset()
    error: IntegrityError | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """A run as its folder tells of it; `again` is None where no rows were to be drawn."""

    folder: RunFolder
    manifests: Manifests
    listing: Listing
    counted: Counted
    quarantine: Quarantine
    releases: Releases
    again: Again | None


def read_evidence(folder: RunFolder, sample: int, seed: int, trusted: tuple[str, ...]) -> Evidence:
    """Read every object, and attribute `sample` rows again, drawn with `seed` from sound shards."""
    # before the listing: the run may be finished meanwhile
    manifests = _manifests(folder)
    listing = _listing(folder)
    counted = _counted(folder, listing)
    return Evidence(
        folder=folder,
        manifests=manifests,
        listing=listing,
        counted=counted,
        quarantine=_quarantine(folder),
        releases=_releases(folder),
        again=_again(folder, counted, sample, seed, trusted) if sample else None,
    )


def _manifests(folder: RunFolder) -> Manifests:
    try:
        complete = load_manifest(folder.store, folder.uri)
        return Manifests(complete, load_partial(folder.store, folder.uri))
    except IntegrityError as error:
        return Manifests(error=error)


def _listing(folder: RunFolder) -> Listing:
    planned = {folder.uri.child(shard_object(s)): s for s in folder.shards}
    entries = folder.store.list(folder.uri.child("data"))
    shards = {planned[e.uri]: e for e in entries if e.uri in planned}
    foreign = tuple(e for e in entries if e.uri not in planned)
    return Listing(shards=shards, foreign=foreign)


def _counted(folder: RunFolder, listing: Listing) -> Counted:
    hashes: dict[str, NDArray[np.uint64]] = {}
    unreadable: set[str] = set()
    sound: list[str] = []
    remarks: list[Remark] = []
    stats = Stats()
    for shard, found in _recounts(folder, listing):
        remarks += found.remarks
        if found.footer is None:
            unreadable.add(shard)
            continue
        hashes[shard] = found.hashes
        stats = merge([stats, stats_of(found.footer)])
        if not any(isinstance(r, Finding) for r in found.remarks):
            sound.append(shard)
    return Counted(hashes, frozenset(unreadable), tuple(sound), stats, tuple(remarks))


def _recounts(folder: RunFolder, listing: Listing) -> Iterator[tuple[str, Recount]]:
    for shard in folder.plan.shards:
        if shard.id not in listing.shards:
            continue
        place = listing.shards[shard.id].uri
        try:
            data = folder.store.read(place)
        except FileNotFoundError:  # gone since it was listed
            continue
        yield shard.id, recount(folder, shard, str(place), data)


def _quarantine(folder: RunFolder) -> Quarantine:
    try:
        return Quarantine(read_quarantined(folder.store, folder.uri))
    except IntegrityError as error:
        return Quarantine(error=error)


def _releases(folder: RunFolder) -> Releases:
    try:
        attempts = read_attempts(folder.store, folder.uri)
        return Releases(frozenset(a.shard for a in attempts if a.outcome == "released"))
    except IntegrityError as error:
        return Releases(error=error)


def _again(
    folder: RunFolder, counted: Counted, sample: int, seed: int, trusted: tuple[str, ...]
) -> Again:
    # torch and the model are loaded for a sample alone
    from integrand.service.checks.reattribution import reattribute

    return reattribute(folder, counted.sound, sample, seed, trusted)
