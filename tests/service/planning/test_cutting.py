"""Shards cover every row exactly once, in order, within their limit."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from integrand.schemas.records import Shard, Slice, SourceFile
from integrand.service.planning.cutting import OUTPUT_BYTES, auto_rows, cut, rows_by_bytes


def source(*groups: int, size: int = 1000) -> SourceFile:
    return SourceFile(
        path="x", uri="/x", rows=sum(groups), size=size, fingerprint="f", row_groups=groups
    )


def slices(shards: tuple[Shard, ...]) -> list[tuple[int, int, int]]:
    return [(s.file, s.start, s.stop) for shard in shards for s in shard.slices]


Files = st.lists(st.lists(st.integers(0, 40), max_size=5).map(lambda g: source(*g)), max_size=6)


@given(Files, st.integers(1, 50))
def test_every_row_is_covered_once_and_in_order(files: list[SourceFile], limit: int):
    covered = [
        (f, row) for f, start, stop in slices(cut(files, limit)) for row in range(start, stop)
    ]
    assert covered == [(i, row) for i, f in enumerate(files) for row in range(f.rows)]


@given(Files, st.integers(1, 50))
def test_no_shard_is_empty_or_above_the_limit(files: list[SourceFile], limit: int):
    shards = cut(files, limit)
    assert all(0 < shard.rows <= limit for shard in shards)
    assert all(s.rows > 0 for shard in shards for s in shard.slices)
    assert [shard.id for shard in shards] == [f"{i:05d}" for i in range(len(shards))]


@given(Files, st.integers(1, 50))
def test_two_neighbours_never_fit_into_one(files: list[SourceFile], limit: int):
    """Packing is as tight as whole pieces allow: a shard's successor starts with a piece that did
    not fit.
    """
    shards = cut(files, limit)
    pieces = [g if g <= limit else -(-g // -(-g // limit)) for f in files for g in f.row_groups]
    for one, after in pairwise(shards):
        assert one.rows + max(pieces) > limit or one.rows + after.rows > limit


def test_a_big_row_group_is_cut_inside_into_even_parts():
    shards = cut([source(100)], 30)
    assert slices(shards) == [(0, 0, 25), (0, 25, 50), (0, 50, 75), (0, 75, 100)]


def test_row_groups_are_kept_whole_where_they_fit():
    assert slices(cut([source(40, 40, 20)], 60)) == [(0, 0, 40), (0, 40, 100)]


def test_tiny_files_are_packed_together():
    shards = cut([source(3) for _ in range(10)], 10)
    assert [len(shard.slices) for shard in shards] == [3, 3, 3, 1]


def test_adjacent_row_groups_become_one_slice():
    assert cut([source(5, 5, 5)], 100)[0].slices == (Slice(file=0, start=0, stop=15),)


def test_empty_files_and_groups_take_part_in_nothing():
    assert slices(cut([source(0), source(), source(2, 0, 2), source(0)], 10)) == [(2, 0, 4)]


def test_rows_by_bytes_go_by_the_stored_size():
    files = [source(100, size=10_000), source(100, size=30_000)]
    assert rows_by_bytes(files, 2_000) == 10
    assert rows_by_bytes(files, 1) == 1
    assert max(s.rows for s in cut(files, rows_by_bytes(files, 2_000))) == 10


def test_auto_holds_the_output_below_its_bound():
    assert auto_rows(10**9, 1, OUTPUT_BYTES // 100, 1e-9) == 100


def test_auto_holds_the_time_below_two_minutes():
    assert auto_rows(10**9, 1, 1, 0.1) == 1200


def test_auto_gives_every_worker_several_shards():
    assert auto_rows(8000, 2, 100, 0.01) == 1000


def test_auto_cuts_a_small_job_no_finer_than_two_seconds():
    assert auto_rows(8000, 2, 100, 1e-4) == 20_000


@given(st.integers(1, 10**9), st.integers(1, 64), st.integers(1, 10**9), st.floats(1e-9, 1e4))
def test_auto_is_always_a_usable_size(total: int, workers: int, row_bytes: int, row_s: float):
    rows = auto_rows(total, workers, row_bytes, row_s)
    assert rows >= 1
    assert rows == 1 or (rows * row_bytes <= OUTPUT_BYTES and rows * row_s <= 120 * (1 + 1e-9))
