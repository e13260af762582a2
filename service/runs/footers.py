"""Footers of committed shards: the end of each object, read in parallel and held against
the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar, overload

import pyarrow as pa
from pydantic import ValidationError

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import FOOTER_KEY, shard_object
from integrand.schemas.records import JobPlan, Plan, Shard, ShardFooter, TaskFooter
from integrand.schemas.stats import Member
from integrand.schemas.uris import Uri
from integrand.workers.data.decoding import open_parquet
from integrand.workers.storage.store import Entry, Store

THREADS = 16
_PART = re.compile(r"part-(\d+)\.parquet")
_TAIL = 1 << 16
_BATCH = 8 * THREADS
_REDO = "move the object away and run again: its shard is then redone"
Item = TypeVar("Item")
SomePlan = TypeVar("SomePlan", bound=JobPlan[Any], covariant=True)
SomeTotals = TypeVar("SomeTotals", covariant=True)
SomeFooter = TypeVar("SomeFooter", bound=TaskFooter)


class Totals(Protocol):
    """What tasks of some kind hold together."""

    @property
    def rows_in(self) -> int: ...


class Held(Protocol[SomeTotals]):
    """The committed tasks of a run: which they are, what they hold together, and which of them no
    block covers.
    """

    @property
    def shards(self) -> Set[str]: ...

    @property
    def stats(self) -> SomeTotals: ...

    @property
    def loose(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class Folder(Generic[SomePlan]):
    """A run folder with its plan, and the sha256 of the plan's stored bytes."""

    store: Store
    uri: Uri
    plan: SomePlan
    plan_sha256: str

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """The planned shards by id."""
        return {s.id: s for s in self.plan.shards}


RunFolder = Folder[Plan]
"""Of an attribution run."""


def list_shards(store: Store, run: Uri) -> dict[str, Member]:
    """The objects below `data/` by shard id, from one listing, which may be old.

    IntegrityError if a Parquet object there is not a shard's: readers that go by the folder would
    take its rows for the run's.
    """
    members = {}
    for entry in store.walk(run.child("data")):
        shard = _shard_of(run, entry)
        if shard is not None:
            members[shard] = member_of(entry, shard)
    return members


def member_of(entry: Entry, shard: str) -> Member:
    """What identifies a stored object."""
    version = entry.etag or str(entry.mtime_ns or "")
    return Member(shard, entry.size, version)


@overload
def read_footers(
    store: Store, run: Uri, ids: Iterable[str], listed: Mapping[str, Member] = ...
) -> Iterator[tuple[Member, ShardFooter]]: ...


@overload
def read_footers(
    store: Store,
    run: Uri,
    ids: Iterable[str],
    listed: Mapping[str, Member] = ...,
    *,
    kind: type[SomeFooter],
) -> Iterator[tuple[Member, SomeFooter]]: ...


def read_footers(
    store: Store,
    run: Uri,
    ids: Iterable[str],
    listed: Mapping[str, Member] = MappingProxyType({}),
    *,
    kind: type[Any] = ShardFooter,
) -> Iterator[tuple[Member, Any]]:
    """Objects and footers of these shards in this order, without those that are not there, however
    many there are.

    Reads the end of each object; those not in `listed` are looked up first. IntegrityError for a
    foreign object.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in batches(ids, _BATCH):
            ends = threads.map(lambda shard: _end(store, run, shard, listed.get(shard)), batch)
            for end in ends:
                if end is not None:
                    member, tail = end
                    yield member, _footer(kind, run, member.shard, tail)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive items, `size` at a time: what is read in parallel is not all held at once."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def check_footer(folder: RunFolder, footer: ShardFooter) -> None:
    """IntegrityError if a footer is of another plan or does not add up."""
    shard = folder.shards.get(footer.shard)
    rows = shard.rows if shard else 0
    expected = (
        folder.plan.run_id,
        folder.plan_sha256,
        rows,
        rows * folder.plan.targets_per_row,
        footer.rows_out,
    )
    seen = (
        footer.run_id,
        footer.plan_sha256,
        footer.rows_in,
        footer.rows_out,
        sum(footer.statuses.values()),
    )
    if shard is None or seen != expected:
        raise IntegrityError(
            f"run {folder.plan.run_id} shard {footer.shard}",
            expected="run, plan, rows in, out, by status: " + listed(expected),
            seen=listed(seen) if shard else "a shard that the plan does not have",
            next_step=_REDO,
        )


def _end(
    store: Store, run: Uri, shard_id: str, listed: Member | None
) -> tuple[Member, bytes] | None:
    """An object and its end, long enough to hold its Thrift footer, whose length is 8 bytes before
    the end.
    """
    place = run.child(shard_object(shard_id))
    try:
        member = listed or member_of(store.info(place), shard_id)
        tail = store.read_tail(place, member.size, _TAIL)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        return member, tail if length <= len(tail) else store.read_tail(place, member.size, length)
    except FileNotFoundError:  # never committed, or gone since it was listed
        return None


def _shard_of(run: Uri, entry: Entry) -> str | None:
    name = _PART.fullmatch(entry.uri.name)
    if entry.uri.name.endswith(".parquet") and (
        name is None or entry.uri != run.child(shard_object(name[1]))
    ):
        raise IntegrityError(
            str(entry.uri),
            expected="only part-<shard>.parquet in data/",
            seen=entry.uri.name,
            next_step="move the foreign object away",
        )
    return name[1] if name else None


def _footer(kind: type[SomeFooter], run: Uri, shard_id: str, tail: bytes) -> SomeFooter:
    place = run.child(shard_object(shard_id))
    try:
        metadata = open_parquet(pa.BufferReader(tail)).metadata
        footer = kind.model_validate_json((metadata.metadata or {})[FOOTER_KEY.encode()])
    except (pa.ArrowException, OSError, KeyError, ValidationError) as error:
        raise _not_ours(place, f"a footer of Integrand under `{FOOTER_KEY}`", str(error)) from error
    if (footer.shard, footer.rows_out) != (shard_id, metadata.num_rows):
        raise _not_ours(
            place,
            f"shard {shard_id} of {metadata.num_rows} rows",
            f"shard {footer.shard} of {footer.rows_out} rows",
        )
    return footer


def _not_ours(place: Uri, expected: str, seen: str) -> IntegrityError:
    first_line = seen.split("\n")[0]
    return IntegrityError(str(place), expected=expected, seen=first_line, next_step=_REDO)


def listed(values: Sequence[object]) -> str:
    """In one line of a message."""
    return ", ".join(str(v) for v in values)
