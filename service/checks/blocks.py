"""Caches of footers: they are what their members' footers amount to, for as long as these are what
they were.
"""

from __future__ import annotations

from collections.abc import Iterator

from integrand.schemas.errors import IntegrityError
from integrand.schemas.stats import Block, Stats
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.runs.footers import member_of, read_footers
from integrand.service.runs.totals import STATS, add_footers, alike, read_block
from integrand.workers.storage.store import Entry


def _remarks(run: Evidence) -> Iterator[Remark]:
    folder = run.folder
    for entry in folder.store.list(folder.uri.child(STATS), depth=1):
        if entry.uri.name.endswith(".json"):
            yield from _block_remarks(run, entry)


CHECK = Check("blocks", "caches of footers are what these amount to", _remarks)


def _block_remarks(run: Evidence, entry: Entry) -> Iterator[Remark]:
    block = read_block(run.folder, entry)
    if block is None:
        yield Finding(
            str(entry.uri), "a block of footers of this plan", "other or broken bytes", "delete it"
        )
        return
    if not _valid(run, block):
        return
    seen = _sum(run, block)
    if seen is not None and not alike(seen, block.stats):
        yield Finding(
            str(entry.uri),
            "what its members' footers amount to",
            "another sum",
            "delete it: it is a cache",
        )


def _valid(run: Evidence, block: Block) -> bool:
    """Every member is still the object that it was."""
    there = run.listing.shards
    for member in block.members:
        entry = there.get(member.shard)
        if entry is None or member_of(entry, member.shard) != member:
            return False
    return True


def _sum(run: Evidence, block: Block) -> Stats | None:
    """None where a footer cannot be read, which is said of the object already."""
    folder, ids = run.folder, [m.shard for m in block.members]
    found = read_footers(folder.store, folder.uri, ids)
    try:
        return add_footers(folder, (footer for _, footer in found)).stats
    except IntegrityError:
        return None
