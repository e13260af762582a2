"""Stores whose clients do more by themselves keep the same promises."""

from __future__ import annotations

import os

import pytest

from integrand.schemas.errors import IntegrityError
from integrand.schemas.uris import Uri
from integrand.workers.storage import objects
from integrand.workers.storage.store import Access, Store
from tests.plugins.faulty_stores import BODY, PATIENT, folder_of, read_open, sizes
from tests.plugins.proxy import Proxy, Rule

pytestmark = pytest.mark.s3


@pytest.fixture
def other(proxy: Proxy, monkeypatch) -> Store:
    """What Google's and Azure's stores go through, over the only store that is here."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
    store = Store(Access(retry_policy=PATIENT))
    store._places[os.getpid(), "s3"] = objects.Objects("s3", None, PATIENT)
    return store


def test_another_store_keeps_the_same_promises(proxy: Proxy, other: Store, s3_root: Uri) -> None:
    for name in ("a", "b/c", "b/d/e"):
        other.create(s3_root.child(name), name.encode())
    with pytest.raises(FileExistsError):
        other.create(s3_root.child("a"), b"others")
    other.replace(s3_root.child("a"), BODY)
    assert other.read(s3_root.child("a")) == read_open(other, s3_root.child("a")) == BODY
    assert other.read_tail(s3_root.child("a"), 1000, 7) == BODY[-7:]
    assert [entry.size for entry in other.list(s3_root)] == [1000, 3, 5]
    assert [entry.size for entry in other.list(s3_root, depth=2)] == [1000, 3]
    assert (
        other.list(s3_root.child("nothing")) == other.list(s3_root.child("nothing"), depth=1) == []
    )
    for missing in ("b", "nothing"):
        assert not other.exists(s3_root.child(missing))
    other.delete(s3_root.child("a"))
    other.delete(s3_root.child("a"))
    assert not other.exists(s3_root.child("a"))


def test_another_store_creates_once_though_answers_are_lost(
    proxy: Proxy, other: Store, s3_root: Uri
) -> None:
    proxy.inject(Rule("lost_ack", "PUT", times=2, each=True))
    other.create(s3_root.child("object"), BODY)
    other.prove_creates(s3_root)
    assert proxy.injected["lost_ack"] == 4
    assert [entry.uri.name for entry in other.list(s3_root)] == ["object"]


def test_another_store_refuses_an_object_that_changed(
    proxy: Proxy, other: Store, behind: Store, place: Uri
) -> None:
    with other.open(place) as file:
        behind.replace(place, BODY[::-1])
        with pytest.raises(IntegrityError, match="changed input"):
            file.read(10)


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_another_store_leaves_out_no_folder_that_it_could_not_list(
    proxy: Proxy, other: Store, behind: Store, place: Uri, depth: int | None
) -> None:
    proxy.inject(
        Rule("503", "LIST", key="*/deep*", times=2) if depth == 2 else Rule("503", "LIST", times=2)
    )
    behind.create(folder_of(place).child("deep", "object"), b"deep")
    assert sizes(other, place, depth) == ([1000] if depth == 1 else [4, 1000])
    assert proxy.injected["503"] == 2
