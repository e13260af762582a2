"""What footers add up to, and the blocks that cache it: rebuildable, and never believed against
`data/`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.ids import shard_object
from integrand.schemas.record import dump
from integrand.schemas.records import ShardFooter
from integrand.schemas.stats import MOST_ENVIRONMENTS, MOST_REASONS, Block, Member, Stats
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.progress import Tally
from integrand.service.running.jobs import run_job
from integrand.service.running.sidecars import PROGRESS, Sidecars
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.totals import merge, read_blocks, read_committed, stats_of, write_block
from integrand.workers.storage.store import Access, Entry, Store
from tests.plugins.jobs import JobFolder
from tests.plugins.proxy import Proxy, Rule

IDS = ("00000", "00001", "00002")
Change = Callable[[RunFolder, Uri], None]


class Watched(Store):
    """A store that counts the footers that are read from it."""

    def __init__(self, access: Access = Access()) -> None:
        super().__init__(access)
        self.footers: Counter[str] = Counter()

    def read_tail(self, uri: Uri, size: int, count: int) -> bytes:
        self.footers[uri.name] += 1
        return super().read_tail(uri, size, count)


class Dated(Store):
    """A store whose listings are those of an earlier moment."""

    def __init__(self) -> None:
        super().__init__()
        self.listings: dict[Uri, list[Entry]] = {}

    def walk(self, folder: Uri, *, depth: int | None = None) -> Iterator[Entry]:
        return iter(self.listings.setdefault(folder, list(super().walk(folder, depth=depth))))


class Failing(Store):
    """A store whose first replacements fail."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def replace(self, uri: Uri, data: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise TransientError(str(uri), expected="an answer", seen="none")
        super().replace(uri, data)


@pytest.fixture
def local(tmp_path: Path, write_run: Callable[..., Any]) -> Any:
    return write_run(Store(), Uri("file", str(tmp_path)))


def folder_of(run: Any, store: Store | None = None) -> RunFolder:
    return RunFolder(store or Store(), run.uri, run.plan, run.plan_sha256)


def sum_of(run: Any, *ids: str) -> Stats:
    return merge(stats_of(run.footers[i]) for i in ids)


# --- the sum -----------------------------------------------------------------------------------

counts = st.dictionaries(st.sampled_from(["-31", "-30", "0", "7"]), st.integers(1, 10**9))
statuses = st.dictionaries(st.sampled_from(["ok", "failed", "bad_input"]), st.integers(1, 10**9))
seconds = st.dictionaries(
    st.sampled_from(["read", "compute"]), st.integers(0, 2**20).map(lambda n: n / 1024)
)
"""Whole numbers of 1/1024 s: their sums are exact in any order."""


@st.composite
def stats(draw: st.DrawFn) -> Stats:
    """Any sum, as if of a few shards; sets as sorted and as short as `merge` leaves them."""
    number, largest = st.integers(0, 10**12), st.none() | st.floats(0, 1e300)
    names = st.sets(st.text("abc", min_size=1, max_size=3), max_size=20).map(sorted)
    return Stats(
        shards=draw(number),
        rows_in=draw(number),
        rows_out=draw(number),
        statuses=draw(statuses),
        gap_histogram=draw(counts),
        error_histogram=draw(counts),
        gap_max=draw(largest),
        error_max=draw(largest),
        reasons=draw(statuses),
        evaluations=draw(number),
        padded_evaluations=draw(number),
        duplicates=draw(number),
        digest=f"{draw(st.integers(0, 2**256 - 1)):064x}",
        seconds=draw(seconds),
        lowered=draw(number),
        environments=tuple(draw(names)[:MOST_ENVIRONMENTS]),
        lowered_reasons=tuple(draw(names)[:MOST_REASONS]),
    )


@given(a=stats(), b=stats(), c=stats())
def test_stats_are_a_commutative_monoid(a: Stats, b: Stats, c: Stats) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([c, a, b])
    assert merge([a, Stats()]) == merge([Stats(), a]) == a
    assert merge([]) == Stats()


def test_a_sum_tells_what_its_footers_tell(local: Any) -> None:
    footers = local.footers.values()
    total = sum_of(local, *IDS)
    assert (total.shards, total.rows_in, total.rows_out) == (3, 30, 30)
    assert total.statuses == dict(
        sorted(sum((Counter(f.statuses) for f in footers), Counter()).items())
    )
    assert total.gap_max == max(f.gap.max for f in footers)
    assert total.evaluations == sum(f.evaluations for f in footers)
    assert sum(total.gap_histogram.values()) == sum(sum(f.gap_histogram.values()) for f in footers)


def test_names_in_a_sum_do_not_grow_with_the_run(local: Any) -> None:
    made = [lowered(local.footers["00000"], number) for number in range(100)]
    total = merge(map(stats_of, made))
    assert (len(total.environments), len(total.lowered_reasons), total.lowered) == (
        MOST_ENVIRONMENTS,
        MOST_REASONS,
        100,
    )
    assert total.lowered_reasons[0] == "shard 00000 halved"


def lowered(footer: ShardFooter, number: int) -> ShardFooter:
    changes = {
        "shard": f"{number:05d}",
        "versions": {"torch": f"{number:03d}"},
        "determinism": "tolerance",
    }
    return footer.model_copy(update={**changes, "lowered": "halved"})


# --- blocks ------------------------------------------------------------------------------------


def test_a_block_spares_its_members_footers(
    place: tuple[Store, Uri], write_run: Callable[..., Any]
) -> None:
    run = write_run(*place)
    store = Watched(place[0].access)
    folder = folder_of(run, store)
    assert read_committed(folder).loose == IDS
    write_block(folder, IDS[:2])
    store.footers.clear()
    found = read_committed(folder)
    assert store.footers == {"part-00002.parquet": 1}
    assert (found.shards, found.stats, found.loose) == (set(IDS), sum_of(run, *IDS), IDS[2:])


def lying(folder: RunFolder, ids: tuple[str, ...] = IDS[:2]) -> Uri:
    """A block whose sum is too large by a million evaluations: whether it was believed shows."""
    write_block(folder, ids)
    entry = folder.store.list(folder.uri.child("_stats"))[0]
    block = Block.model_validate_json(folder.store.read(entry.uri))
    folder.store.delete(entry.uri)
    lie = block.stats.model_copy(update={"evaluations": block.stats.evaluations + 10**6})
    return put(folder, block.model_copy(update={"stats": lie}))


def put(folder: RunFolder, block: Block) -> Uri:
    return named(folder, dump(block))


def named(folder: RunFolder, data: bytes) -> Uri:
    place = folder.uri.child("_stats", f"{hashlib.sha256(data).hexdigest()}.json")
    folder.store.replace(place, data)
    return place


def rewritten(folder: RunFolder, place: Uri) -> None:
    """The same bytes, written anew: storage tells another version."""
    member = folder.uri.child(shard_object("00001"))
    data = folder.store.read(member)
    folder.store.delete(member)
    folder.store.create(member, data)


def flipped(folder: RunFolder, place: Uri) -> None:
    data = folder.store.read(place)
    folder.store.replace(place, data.replace(b'"evaluations": 1', b'"evaluations": 2', 1))
    assert folder.store.read(place) != data


def of_other_members(change: Callable[[Member], Member]) -> Change:
    def rewrite(folder: RunFolder, place: Uri) -> None:
        block = Block.model_validate_json(folder.store.read(place))
        folder.store.delete(place)
        put(folder, block.model_copy(update={"members": tuple(map(change, block.members))}))

    return rewrite


def of_another_plan(folder: RunFolder, place: Uri) -> None:
    block = Block.model_validate_json(folder.store.read(place))
    folder.store.delete(place)
    put(folder, block.model_copy(update={"plan_sha256": "0" * 64}))


UNSOUND: dict[str, Change] = {
    "a member was written anew": rewritten,
    "a bit of the sum is another": flipped,
    "it is cut short": lambda folder, place: folder.store.replace(
        place, folder.store.read(place)[:-9]
    ),
    "it is no JSON": lambda folder, place: folder.store.replace(place, b"\xff"),
    "it is something else of a sound name": lambda folder, place: (
        folder.store.delete(place),
        named(folder, b"{}"),
    )[0],
    "it is of another plan": of_another_plan,
    "a member had another size": of_other_members(lambda m: replace(m, size=m.size + 1)),
    "a member had another version": of_other_members(lambda m: replace(m, version=m.version + "0")),
    "a member is of no shard": of_other_members(lambda m: replace(m, shard=f"9{m.shard}")),
    "a member comes twice": of_other_members(lambda m: replace(m, shard="00000")),
}


def test_a_sound_block_is_believed(local: Any) -> None:
    """What the lies of the tests below would tell if they were."""
    folder = folder_of(local)
    lying(folder)
    assert read_committed(folder).stats.evaluations == sum_of(local, *IDS).evaluations + 10**6


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_block_is_as_good_as_absent(local: Any, change: Change) -> None:
    folder = folder_of(local)
    change(folder, lying(folder))
    found = read_committed(folder)
    assert (found.shards, found.stats, found.loose) == (set(IDS), sum_of(local, *IDS), IDS)


def test_a_block_with_a_member_that_is_gone_counts_no_more(local: Any) -> None:
    folder = folder_of(local)
    lying(folder)
    folder.store.delete(folder.uri.child(shard_object("00001")))
    found = read_committed(folder)
    assert (found.shards, found.stats) == ({"00000", "00002"}, sum_of(local, "00000", "00002"))


def test_no_shard_counts_twice_where_blocks_overlap(local: Any) -> None:
    """As two drivers of one run leave them."""
    folder = folder_of(local)
    write_block(folder, IDS[:2])
    write_block(folder, IDS[1:])
    assert len(list(read_blocks(folder))) == 2
    found = read_committed(folder)
    assert (found.shards, found.stats) == (set(IDS), sum_of(local, *IDS))


def test_a_block_is_made_of_what_is_stored(local: Any) -> None:
    """Not of what is asked for; and an object that is not of this plan makes none."""
    folder = folder_of(local)
    folder.store.delete(folder.uri.child(shard_object("00001")))
    write_block(folder, IDS)
    (block,) = read_blocks(folder)
    assert ([m.shard for m in block.members], block.stats) == (
        ["00000", "00002"],
        sum_of(local, "00000", "00002"),
    )
    with pytest.raises(IntegrityError, match="shard 00000"):
        write_block(RunFolder(folder.store, folder.uri, folder.plan, "0" * 64), IDS)
    assert len(folder.store.list(folder.uri.child("_stats"))) == 1


# --- listings ----------------------------------------------------------------------------------


def test_what_the_driver_saw_committed_counts_though_the_listing_is_old(local: Any) -> None:
    store = Dated()
    folder = folder_of(local, store)
    hidden = folder.uri.child(shard_object("00001"))
    data = store.read(hidden)
    store.delete(hidden)
    assert read_committed(folder).shards == {"00000", "00002"}
    store.create(hidden, data)
    assert read_committed(folder).shards == {"00000", "00002"}, "the listing is that of before"
    found = read_committed(folder, seen=IDS)
    assert (found.shards, found.stats) == (set(IDS), sum_of(local, *IDS))


def test_what_is_listed_and_gone_does_not_count(local: Any) -> None:
    store = Dated()
    folder = folder_of(local, store)
    assert read_committed(folder).shards == set(IDS)
    store.delete(folder.uri.child(shard_object("00001")))
    found = read_committed(folder, seen=IDS)
    assert (found.shards, found.stats) == ({"00000", "00002"}, sum_of(local, "00000", "00002"))


@pytest.mark.s3
def test_a_run_is_sealed_complete_over_a_stale_listing(
    job: JobFolder, proxy: Proxy, s3_root: Uri
) -> None:
    """At the end, `data/` is listed as it was at the start: empty."""
    proxy.inject(Rule("stale", "LIST", "*/data*", times=None))
    spec = job.spec(output={"uri": str(s3_root)})
    access = Access(proxy.endpoint_url)
    manifest = run_job(
        spec,
        base=str(job.path),
        operator=Operator(trusted=(job.module,), access=access),
        cluster=Cluster("local"),
    )
    assert proxy.injected["stale"] > 0
    assert Store(access).list(s3_root.child(manifest.run_id, "data")) == []
    assert (manifest.complete, manifest.rows_out) == (True, 20)
    assert manifest.digest == job.run().digest


# --- what a driver writes as it goes -----------------------------------------------------------


def sidecars_of(folder: RunFolder, loose: Iterable[str] = (), **sizes: int) -> Sidecars:
    return Sidecars(folder, partial(write_block, folder), loose, **sizes)


def blocks_after(
    folder: RunFolder, ids: tuple[str, ...], loose: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    with sidecars_of(folder, loose, shards=2) as sidecars:
        for shard in ids:
            sidecars.committed(shard)
    return sorted(tuple(m.shard for m in block.members) for block in read_blocks(folder))


def test_a_block_is_written_whenever_enough_came_together(local: Any) -> None:
    assert blocks_after(folder_of(local), IDS) == [IDS[:2]]


def test_too_few_shards_make_no_block(local: Any) -> None:
    assert blocks_after(folder_of(local), IDS[:1]) == []
    assert not folder_of(local).store.list(local.uri.child("_stats"))


def test_shards_that_an_earlier_driver_left_loose_come_into_blocks(local: Any) -> None:
    assert blocks_after(folder_of(local), IDS[2:], loose=IDS[:1]) == [("00000", "00002")]


def test_many_of_them_come_into_blocks_at_once(local: Any) -> None:
    with sidecars_of(folder_of(local), IDS, shards=1):
        pass
    assert sorted(
        m.shard for block in read_blocks(folder_of(local)) for m in block.members
    ) == list(IDS)
    assert read_committed(folder_of(local)).loose == ()


def test_a_store_that_fails_costs_a_block_and_not_the_run(local: Any) -> None:
    folder = folder_of(local, Failing(1))
    with sidecars_of(folder, IDS[:2], shards=2) as sidecars:
        while folder.store.failures:
            time.sleep(0.01)
        time.sleep(0.5)  # its thread is about to say so
        sidecars.committed(IDS[2])
    (block,) = read_blocks(folder)
    assert len(block.members) == 2
    assert read_committed(folder).stats == sum_of(local, *IDS)


def test_the_heartbeat_is_advisory(local: Any) -> None:
    store = Failing(1)
    tally = Tally(3, 30, 1, 10, 10, 0, 2.0)
    with sidecars_of(folder_of(local, store)) as sidecars:
        sidecars.beat(tally)
    assert (store.failures, store.exists(local.uri.child(PROGRESS))) == (0, False)
    with sidecars_of(folder_of(local, store)) as sidecars:
        sidecars.beat(tally)
    assert store.exists(local.uri.child(PROGRESS))
