"""Creates whose answer is lost: an object is there once, and ours is known for ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import s3fs

from integrand.schemas.errors import DataError
from integrand.schemas.uris import Uri
from integrand.workers.storage import objects
from integrand.workers.storage.store import Store
from tests.plugins.faulty_stores import BODY
from tests.plugins.proxy import Proxy, Rule

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_create_whose_answer_was_lost_is_a_success(
    proxy: Proxy, store: Store, s3_root: Uri, lost: int
) -> None:
    proxy.inject(Rule("lost_ack", "PUT", times=lost))
    store.create(s3_root.child("object"), BODY)
    assert store.read(s3_root.child("object")) == BODY
    assert proxy.injected["lost_ack"] == lost


def test_a_conflict_after_a_lost_answer_is_a_success_too(
    proxy: Proxy, store: Store, s3_root: Uri
) -> None:
    proxy.inject(Rule("lost_ack", "PUT", times=2), Rule("conflict", "PUT", times=2))
    store.create(s3_root.child("object"), BODY)
    assert proxy.injected == {"lost_ack": 2, "conflict": 2}


@pytest.mark.parametrize("fault", ["503", "reset", "conflict", "timeout"])
def test_an_object_of_others_is_never_taken_for_ours(
    proxy: Proxy, store: Store, place: Uri, fault: str
) -> None:
    """Not even one of the same bytes: both writers of a race would think that they had won."""
    proxy.inject(Rule(fault, "PUT"))
    with pytest.raises(FileExistsError):
        store.create(place, BODY)
    assert proxy.injected[fault] == 1


def test_of_eight_racing_creates_one_wins_though_answers_are_lost(
    proxy: Proxy, store: Store, s3_root: Uri
) -> None:
    def create(writer: int) -> bool:
        try:
            store.create(s3_root.child("object"), b"the same bytes")
        except FileExistsError:
            return False
        return True

    proxy.inject(Rule("lost_ack", "PUT", times=8))
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1
    assert proxy.injected["lost_ack"] == 8


def test_creates_are_proved_though_answers_are_lost(
    proxy: Proxy, store: Store, s3_root: Uri
) -> None:
    proxy.inject(Rule("lost_ack", "PUT", each=True, times=2))
    store.prove_creates(s3_root)
    assert proxy.injected["lost_ack"] == 2
    assert store.list(s3_root) == []


def test_a_large_create_leaves_no_upload_open(proxy: Proxy, s3_server, s3_root: Uri) -> None:
    """s3fs would upload it in parts, and leave them there when it is cancelled."""
    store = Store(replace(s3_server.access, endpoint_url=proxy.endpoint_url))
    data = bytes(101 << 20)
    proxy.inject(Rule("503", "PUT"), Rule("lost_ack", "PUT", times=2))
    store.create(s3_root.child("object"), data)
    assert set(proxy.asked()) == {"PUT", "HEAD"}
    assert store.info(s3_root.child("object")).size == len(data)
    assert proxy.injected == {"503": 1, "lost_ack": 2}
    assert (
        s3fs.S3FileSystem(endpoint_url=s3_server.endpoint_url).list_multipart_uploads("tests") == []
    )


def test_what_no_put_can_hold_is_refused(store: Store, s3_root: Uri, monkeypatch) -> None:
    monkeypatch.setattr(objects, "_LARGEST_PUT", 10)
    with pytest.raises(DataError, match=r"compute\.shard_rows"):
        store.create(s3_root.child("object"), bytes(11))
