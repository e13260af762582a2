"""Footers added up, and the `_stats/` blocks that spare readers most of them.

A block is a cache of about 1,000 footers and is never trusted over `data/`: it counts while every
member is listed with the size and the version that it had, and is otherwise as good as absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

from pydantic_core import from_json

from integrand.schemas.errors import IntegrityError
from integrand.schemas.record import dump
from integrand.schemas.records import ShardFooter
from integrand.schemas.stats import COUNTERS, Block, Member, Stats
from integrand.service.runs.footers import (
    THREADS,
    RunFolder,
    batches,
    check_footer,
    list_shards,
    read_footers,
)
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Entry

STATS = "_stats"
BLOCK_SHARDS = 1000


def stats_of(footer: ShardFooter) -> Stats:
    """One shard's footer as a sum of one."""
    counted = {
        name: rule.of(footer) if rule.of else getattr(footer, name)
        for name, rule in COUNTERS.items()
    }
    return Stats(**counted)


def merge(parts: Iterable[Stats]) -> Stats:
    """The sum of the statistics of disjoint sets of shards: associative, commutative, `Stats()`
    neutral.
    """
    found = list(parts)
    added = {}
    for name, rule in COUNTERS.items():
        values = [getattr(stats, name) for stats in found]
        added[name] = rule.add(values)
    return Stats(**added)


def alike(one: Stats, other: Stats) -> bool:
    """Whether two sums are the same, in whatever order they were added up."""
    for name, rule in COUNTERS.items():
        if not rule.alike(getattr(one, name), getattr(other, name)):
            return False
    return True


# --- what a run holds --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Committed:
    """The committed shards of a run: which they are, what they hold together, and which of them no
    block covers.
    """

    shards: Set[str] = frozenset()
    stats: Stats = field(default_factory=Stats)
    loose: tuple[str, ...] = ()


def add_footers(folder: RunFolder, footers: Iterable[ShardFooter]) -> Committed:
    """What these shards hold; IntegrityError if a footer is of another plan, does not add up or
    comes twice.
    """
    shards: set[str] = set()
    stats = Stats()
    for batch in batches(footers, BLOCK_SHARDS):
        for footer in batch:
            check_footer(folder, footer)
            if footer.shard in shards:
                raise IntegrityError(
                    f"run {folder.plan.run_id} shard {footer.shard}",
                    expected="one footer",
                    seen="two",
                )
            shards.add(footer.shard)
        stats = merge([stats, *map(stats_of, batch)])
    return Committed(frozenset(shards), stats, tuple(sorted(shards)))


def read_committed(folder: RunFolder, seen: Collection[str] = ()) -> Committed:
    """What a run holds as storage tells it: blocks where they are valid, else footers, and one
    listing of `data/`.

    A listing may be old: shards that the caller has `seen` committed and that are not listed are
    looked up one by one, and a listed one that is gone does not count. IntegrityError for what is
    not of this plan.
    """
    listed = list_shards(folder.store, folder.uri)
    shards: set[str] = set()
    parts = []
    for block in read_blocks(folder):
        ids = _held(folder, block, listed)
        if len(ids) == len(block.members) and shards.isdisjoint(ids):
            shards.update(ids)
            parts.append(block.stats)
    unlisted = (shard for shard in seen if shard not in listed)
    loose = sorted(shard for shard in chain(listed, unlisted) if shard not in shards)
    read = read_footers(folder.store, folder.uri, loose, listed)
    rest = add_footers(folder, (footer for _, footer in read))
    shards |= rest.shards
    stats = merge([*parts, rest.stats])
    return Committed(shards, stats, rest.loose)


def _held(folder: RunFolder, block: Block, listed: Mapping[str, Member]) -> list[str]:
    """Members that are listed as the block knows them, by the plan's own copies of their ids."""
    held = []
    for member in block.members:
        shard = folder.shards.get(member.shard)
        if shard is not None and member.version and listed.get(member.shard) == member:
            held.append(shard.id)
    return held


# --- blocks ------------------------------------------------------------------------------------


def read_blocks(folder: RunFolder) -> Iterator[Block]:
    """The blocks that were written for this plan, unheld against `data/`; broken and foreign ones
    are left out.
    """
    entries = [
        e
        for e in folder.store.list(folder.uri.child(STATS), depth=1)
        if e.uri.name.endswith(".json")
    ]
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in batches(entries, THREADS):
            stored = threads.map(lambda entry: _stored(folder, entry), batch)
            found = (
                _parsed(folder, entry, data) for entry, data in zip(batch, stored, strict=True)
            )
            yield from (block for block in found if block is not None)


def read_block(folder: RunFolder, entry: Entry) -> Block | None:
    """One block of this plan; None where the bytes are not those that gave it its name, or of
    another plan.
    """
    return _parsed(folder, entry, _stored(folder, entry))


def _stored(folder: RunFolder, entry: Entry) -> bytes:
    """Nothing where it is gone."""
    try:
        return folder.store.read(entry.uri)
    except FileNotFoundError:
        return b""


def _parsed(folder: RunFolder, entry: Entry, data: bytes) -> Block | None:
    if entry.uri.name != _block_name(data):
        return None
    try:
        block = Block.model_validate(from_json(data))
    except ValueError:
        return None
    sound = (
        block.plan_sha256 == folder.plan_sha256
        and len({m.shard for m in block.members}) == block.stats.shards
    )
    return block if sound else None


def write_block(folder: RunFolder, ids: Collection[str]) -> None:
    """Fold the footers of these shards, as they are stored, into a block."""
    found = list(read_footers(folder.store, folder.uri, ids))
    members = tuple(member for member, _ in found if member.version)
    footers = [footer for _, footer in found]
    stats = add_footers(folder, footers).stats
    block = Block(plan_sha256=folder.plan_sha256, members=members, stats=stats)
    data = dump(block)
    place = folder.uri.child(STATS, _block_name(data))
    folder.store.replace(place, data)
    reach("stats.written")


def _block_name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}.json"
