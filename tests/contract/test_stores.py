"""Every kind of storage keeps the same promises."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError
from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Entry, Store

Place = tuple[Store, Uri]


def paths(root: Uri, entries: list[Entry]) -> list[str]:
    return [entry.uri.path[len(root.path) + 1 :] for entry in entries]


def fill(store: Store, root: Uri, *names: str) -> None:
    for name in names:
        store.create(root.child(name), name.encode())


def test_a_created_object_reads_back(place: Place) -> None:
    store, root = place
    store.create(root.child("deep", "er", "object"), b"0123456789", scratch=root.child("_tmp"))
    assert store.read(root.child("deep", "er", "object")) == b"0123456789"
    assert store.read_tail(root.child("deep", "er", "object"), 10, 3) == b"789"
    assert store.read_tail(root.child("deep", "er", "object"), 10, 99) == b"0123456789"
    assert store.info(root.child("deep", "er", "object")).size == 10
    assert paths(root, store.list(root)) == ["deep/er/object"]


def test_a_second_create_fails_and_changes_nothing(place: Place) -> None:
    store, root = place
    store.create(root.child("object"), b"first")
    with pytest.raises(FileExistsError):
        store.create(root.child("object"), b"second")
    assert store.read(root.child("object")) == b"first"


def test_of_eight_racing_creates_exactly_one_wins(place: Place) -> None:
    store, root = place

    def create(writer: int) -> int | None:
        barrier.wait()
        try:
            store.create(root.child("object"), str(writer).encode(), scratch=root.child("_tmp"))
        except FileExistsError:
            return None
        return writer

    for _ in range(2):
        barrier = Barrier(8)
        with ThreadPoolExecutor(8) as threads:
            winners = [w for w in threads.map(create, range(8)) if w is not None]
        assert len(winners) == 1
        assert store.read(root.child("object")) == str(winners[0]).encode()
        assert paths(root, store.list(root)) == ["object"]
        store.delete(root.child("object"))


def test_a_multipart_create_is_exclusive_too(place: Place) -> None:
    store, root = place
    data = bytes(101 << 20)
    store.create(root.child("object"), data)
    with pytest.raises(FileExistsError):
        store.create(root.child("object"), data)
    assert store.info(root.child("object")).size == len(data)


def test_replace_overwrites(place: Place) -> None:
    store, root = place
    store.replace(root.child("object"), b"first")
    before = store.info(root.child("object"))
    store.replace(root.child("object"), b"other")
    assert store.read(root.child("object")) == b"other"
    assert store.info(root.child("object")) != before
    assert paths(root, store.list(root)) == ["object"]


def test_deleting_twice_is_no_error(place: Place) -> None:
    store, root = place
    fill(store, root, "object")
    store.delete(root.child("object"))
    store.delete(root.child("object"))
    assert not store.exists(root.child("object"))


def test_missing_objects_and_folders(place: Place) -> None:
    store, root = place
    fill(store, root, "folder/object")
    for call in (store.read, store.open, store.info):
        with pytest.raises(FileNotFoundError):
            call(root.child("nothing"))
    with pytest.raises(FileNotFoundError):
        store.info(root.child("folder"))
    assert not store.exists(root.child("folder"))
    assert store.list(root.child("nothing")) == []
    assert store.list(root.child("folder", "object")) == []
    assert store.expand(root.child("nothing")) == []


def test_list_is_deep_sorted_and_shows_hidden_names(place: Place) -> None:
    store, root = place
    fill(store, root, "b/2", "b/1", "a.b", "a/1", "_x/1", "b/c/d/1")
    assert paths(root, store.list(root)) == ["_x/1", "a.b", "a/1", "b/1", "b/2", "b/c/d/1"]
    assert paths(root, store.list(root, depth=1)) == ["a.b"]
    assert paths(root, store.list(root, depth=2)) == ["_x/1", "a.b", "a/1", "b/1", "b/2"]
    assert paths(root, store.list(root.child("b"))) == ["b/1", "b/2", "b/c/d/1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.csv", "b.parquet", "d/b.parquet", "d/e/b.parquet"]),
        ("b.parquet", ["b.parquet"]),
        ("d", ["d/b.parquet", "d/e/b.parquet"]),
        ("*.parquet", ["b.parquet"]),
        ("?.csv", ["a.csv"]),
        ("[ab].*", ["a.csv", "b.parquet"]),
        ("*/*.parquet", ["d/b.parquet"]),
        ("**/*.parquet", ["b.parquet", "d/b.parquet", "d/e/b.parquet"]),
        ("d/**", ["d/b.parquet", "d/e/b.parquet"]),
        ("_ingest/*.parquet", ["_ingest/b.parquet"]),
        ("_ing*/*.parquet", ["_ingest/b.parquet"]),
        ("x*", []),
    ],
)
def test_expand(place: Place, pattern: str, expected: list[str]) -> None:
    store, root = place
    fill(
        store,
        root,
        "a.csv",
        "b.parquet",
        "d/b.parquet",
        "d/e/b.parquet",
        "_ingest/b.parquet",
        "d/.h/x",
        "d/_SUCCESS",
    )
    assert paths(root, store.expand(root.child(pattern) if pattern else root)) == expected


def test_a_file_named_like_a_glob_is_taken_literally(place: Place) -> None:
    store, root = place
    fill(store, root, "a[1].csv", "a1.csv")
    assert paths(root, store.expand(root.child("a[1].csv"))) == ["a[1].csv"]


def test_parquet_reads_through_open(place: Place) -> None:
    store, root = place
    table = pa.table({"x": list(range(1000)), "y": [str(i) for i in range(1000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    store.create(root.child("table.parquet"), sink.getvalue().to_pybytes())
    with store.open(root.child("table.parquet")) as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_groups([3, 5], columns=["x"])["x"].to_pylist() == [
            *range(300, 400),
            *range(500, 600),
        ]
        assert parquet.read().equals(table)


def test_a_place_that_creates_once_is_proved_and_left_clean(place: Place) -> None:
    store, root = place
    store.prove_creates(root)
    assert store.list(root) == []


def test_a_pickled_store_reads_the_same(place: Place) -> None:
    store, root = place
    fill(store, root, "object")
    assert pickle.loads(pickle.dumps(store)).read(root.child("object")) == b"object"


def test_one_store_serves_many_threads(place: Place) -> None:
    store, root = place
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: store.create(root.child(f"{i:03}"), str(i).encode()), range(64)))
        read = list(threads.map(lambda i: store.read(root.child(f"{i:03}")), range(64)))
    assert read == [str(i).encode() for i in range(64)]


def test_a_place_that_cannot_be_written_says_so(place: Place) -> None:
    store, root = place
    fill(store, root, "file")
    nowhere = root.child("file") if root.scheme == "file" else Uri("s3", "no-such-bucket/out")
    with pytest.raises(DataError, match=nowhere.path):
        store.prove_creates(nowhere)
