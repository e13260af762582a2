"""Files that are read bit by bit through faults, and never of two versions."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import IntegrityError
from integrand.schemas.uris import Uri
from integrand.workers.storage import objects
from integrand.workers.storage.store import Store
from tests.plugins.faulty_stores import BODY
from tests.plugins.proxy import Proxy, Rule

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("fault", ["503", "reset", "truncated", "short"])
def test_a_file_is_read_on_from_where_it_was(
    proxy: Proxy, store: Store, behind: Store, s3_root: Uri, fault: str
) -> None:
    data = os.urandom(5 << 20)
    behind.create(s3_root.child("large"), data)
    proxy.inject(Rule(fault, "GET", after=1))
    with store.open(s3_root.child("large")) as file:
        assert b"".join(iter(lambda: file.read(300_000), b"")) == data
    assert proxy.injected[fault] == 1


def test_parquet_is_read_through_faults(
    proxy: Proxy, store: Store, behind: Store, s3_root: Uri
) -> None:
    table, sink = pa.table({name: range(1 << 17) for name in "abc"}), pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1 << 14, compression="none", use_dictionary=False)
    behind.create(s3_root.child("table"), sink.getvalue().to_pybytes())
    proxy.inject(Rule("reset", "GET", after=1, times=3), Rule("truncated", "GET", after=1))
    with store.open(s3_root.child("table")) as file:
        assert pq.ParquetFile(file, pre_buffer=True).read().equals(table)
    assert proxy.injected == {"reset": 3, "truncated": 1}


def test_an_object_that_changes_under_a_retry_is_an_integrity_error(
    proxy: Proxy, store: Store, behind: Store, place: Uri
) -> None:
    proxy.inject(Rule("503", "GET"))
    with store.open(place, etag=store.info(place).etag) as file:
        behind.replace(place, BODY[::-1])
        with pytest.raises(IntegrityError, match="changed input"):
            file.read(10)
    assert proxy.injected["503"] == 1


def test_a_tail_of_another_object_is_an_integrity_error(
    store: Store, behind: Store, place: Uri
) -> None:
    for size in (500, 999, 1001, 5000):  # it was replaced by one of 1,000 bytes
        with pytest.raises(IntegrityError):
            store.read_tail(place, size, 100)


def test_a_large_object_is_read_in_parts_of_one_version(
    proxy: Proxy, store: Store, behind: Store, place: Uri, monkeypatch
) -> None:
    monkeypatch.setattr(objects, "_PART", 70)
    proxy.inject(Rule("503", "GET", times=5))
    assert store.read(place) == BODY
    assert proxy.asked() == ["HEAD"] + ["GET"] * 20
    found = behind.info(place)
    behind.replace(place, BODY[::-1])
    monkeypatch.setattr(objects.S3Objects, "info", lambda self, uri: found)
    with pytest.raises(IntegrityError):
        store.read(place)


def test_a_pointer_may_be_replaced_while_it_is_read(
    store: Store, behind: Store, place: Uri, monkeypatch
) -> None:
    found = behind.info(place)
    behind.replace(place, b"another")
    monkeypatch.setattr(objects.S3Objects, "info", lambda self, uri: found)
    assert store.read(place) == b"another"
