"""Object stores that fail: what is tried again and for how long, and what the caller is told in the
end.

The store is SeaweedFS behind a proxy that injects the faults; every test asserts that its fault
struck.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from integrand.schemas.errors import DataError, IntegrityError, TransientError
from integrand.schemas.uris import Uri
from integrand.workers.storage import objects
from integrand.workers.storage.retries import RetryPolicy
from integrand.workers.storage.store import Access, Store
from tests.plugins.proxy import Proxy, Rule, fault_proxy

pytestmark = pytest.mark.s3

PATIENT = RetryPolicy(deadline_s=60, answer_s=10, tries=6, first_wait_s=0.01, longest_wait_s=0.1)
BOUND_S = 20
"""Ten times the deadline of the hasty store."""

BODY = b"0123456789" * 100


@pytest.fixture(scope="module")
def started(s3_server) -> Iterator[Proxy]:
    with fault_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(started: Proxy) -> Iterator[Proxy]:
    """The module's proxy, without a fault and with nothing counted."""
    started.seen.clear()
    started.injected.clear()
    yield started
    started.clear()


@pytest.fixture(scope="module")
def store(started: Proxy) -> Store:
    return Store(Access(started.endpoint_url, retry_policy=PATIENT))


@pytest.fixture(scope="module")
def eager(started: Proxy) -> Store:
    """It asks again after a second."""
    return _connected(started, replace(PATIENT, answer_s=1))


@pytest.fixture(scope="module")
def hasty(started: Proxy) -> Store:
    """It gives up after two seconds."""
    return _connected(started, replace(PATIENT, deadline_s=2, answer_s=0.7, tries=1000))


def _connected(proxy: Proxy, retry_policy: RetryPolicy) -> Store:
    """A store whose client is there already: on a busy machine that alone takes seconds."""
    store = Store(Access(proxy.endpoint_url, retry_policy=retry_policy))
    store._place(Uri("s3", "tests"))._filesystem.connect()
    return store


@pytest.fixture(scope="module")
def behind(s3_server) -> Store:
    """The same objects beside the proxy, for what others do meanwhile."""
    return Store(s3_server.access)


@pytest.fixture
def place(behind: Store, s3_root: Uri) -> Uri:
    """An object of 1,000 bytes, alone below its root."""
    behind.create(s3_root.child("object"), BODY)
    return s3_root.child("object")


def _root(place: Uri) -> Uri:
    return Uri("s3", place.path.rpartition("/")[0])


def _read_open(store: Store, place: Uri) -> bytes:
    with store.open(place) as file:
        return file.read(-1)


def _create(store: Store, place: Uri) -> bytes:
    store.create(_root(place).child("new"), b"new")
    return store.read(_root(place).child("new"))


def _replace(store: Store, place: Uri) -> bytes:
    store.replace(place, b"new")
    return store.read(place)


def _delete(store: Store, place: Uri) -> bool:
    store.delete(place)
    return store.exists(place)


def _sizes(store: Store, place: Uri, depth: int | None = None) -> list[int]:
    return [entry.size for entry in store.list(_root(place), depth=depth)]


OPERATIONS: dict[str, tuple[str, Callable[[Store, Uri], object], object]] = {
    "create": ("PUT", _create, b"new"),
    "replace": ("PUT", _replace, b"new"),
    "read": ("GET", lambda store, place: store.read(place), BODY),
    "open": ("GET", _read_open, BODY),
    "range": ("GET", lambda store, place: store.read_tail(place, 1000, 7), BODY[-7:]),
    "info": ("HEAD", lambda store, place: store.info(place).size, 1000),
    "list": ("LIST", _sizes, [1000]),
    "list, shallow": ("LIST", lambda store, place: _sizes(store, place, 2), [1000]),
    "delete": ("DELETE", _delete, False),
}
"""By name: the request that is struck, the call, and what it gives all the same."""

every_operation = pytest.mark.parametrize("operation", OPERATIONS)


# --- what passes -------------------------------------------------------------------------------


@every_operation
@pytest.mark.parametrize("fault", ["500", "502", "503", "timeout", "conflict", "reset", "lost_ack"])
def test_a_fault_that_passes_is_not_noticed(
    proxy: Proxy, store: Store, place: Uri, operation: str, fault: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.inject(Rule(fault, method, times=3))
    assert call(store, place) == expected
    assert 0 < proxy.injected[fault] <= 3


@pytest.mark.parametrize("operation", ["create", "read", "open", "list", "info"])
def test_a_request_that_hangs_is_sent_again(
    proxy: Proxy, eager: Store, place: Uri, operation: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.inject(Rule("hang", method))
    assert call(eager, place) == expected
    assert proxy.injected["hang"] == 1


@pytest.mark.parametrize("fault", ["truncated", "short"])
@pytest.mark.parametrize("operation", ["read", "open", "range", "list"])
def test_a_body_that_is_short_is_asked_for_again(
    proxy: Proxy, store: Store, place: Uri, operation: str, fault: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.inject(Rule(fault, method))
    assert call(store, place) == expected
    assert proxy.injected[fault] == 1


@pytest.mark.parametrize("operation", ["read", "open"])
def test_a_flipped_bit_in_a_whole_object_is_asked_for_again(
    proxy: Proxy, store: Store, place: Uri, operation: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.inject(Rule("flipped", method))
    assert call(store, place) == expected
    assert proxy.injected["flipped"] == 1


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_bit_flipped_on_its_way_to_the_store_is_not_stored(
    proxy: Proxy, store: Store, place: Uri, operation: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.inject(Rule("flipped_up", method))
    assert call(store, place) == expected
    assert proxy.injected["flipped_up"] == 1


def test_an_answer_that_takes_its_time_is_waited_for(
    proxy: Proxy, store: Store, place: Uri
) -> None:
    proxy.inject(Rule("delay", "GET", seconds=1.5))
    assert store.read(place) == BODY
    assert proxy.asked() == ["HEAD", "GET"]


def test_without_faults_nothing_is_asked_twice(proxy: Proxy, store: Store, place: Uri) -> None:
    asked = {}
    for name, call in {
        "create": lambda: store.create(_root(place).child("new"), BODY),
        "replace": lambda: store.replace(place, BODY),
        "read": lambda: store.read(place),
        "open": lambda: _read_open(store, place),
        "range": lambda: store.read_tail(place, 1000, 7),
        "info": lambda: store.info(place),
        "info of nothing": lambda: store.exists(place.child("nothing")),
        "list": lambda: store.list(_root(place)),
        "delete": lambda: store.delete(place),
    }.items():
        proxy.seen.clear()
        call()
        asked[name] = proxy.asked()
    assert asked == {
        "create": ["PUT"],
        "replace": ["PUT"],
        "read": ["HEAD", "GET"],
        "open": ["HEAD", "GET"],
        "range": ["GET"],
        "info": ["HEAD"],
        "info of nothing": ["HEAD"],
        "list": ["LIST"],
        "delete": ["DELETE"],
    }


# --- what does not pass ------------------------------------------------------------------------


@every_operation
@pytest.mark.parametrize("fault", ["503", "reset"])
def test_what_lasts_is_given_up(
    proxy: Proxy, store: Store, place: Uri, operation: str, fault: str
) -> None:
    method, call, _ = OPERATIONS[operation]
    proxy.inject(Rule(fault, method, times=None))
    with pytest.raises(TransientError, match="again"):
        call(store, place)
    again = 2 if fault == "reset" else 1  # by aiohttp itself
    assert PATIENT.tries <= proxy.injected[fault] <= PATIENT.tries * again


@pytest.mark.parametrize("operation", ["create", "read", "open", "list", "info"])
def test_a_store_that_hangs_is_given_up_in_time(
    proxy: Proxy, hasty: Store, place: Uri, operation: str
) -> None:
    method, call, _ = OPERATIONS[operation]
    proxy.inject(Rule("hang", method, times=None))
    _gives_up(proxy, lambda: call(hasty, place))


@pytest.mark.parametrize("operation", ["create", "read", "list"])
def test_an_answer_that_drips_is_given_up_in_time(
    proxy: Proxy, hasty: Store, place: Uri, operation: str
) -> None:
    """A byte every 0.3 s keeps every timeout of a socket from striking."""
    method, call, _ = OPERATIONS[operation]
    proxy.inject(Rule("drip", method, times=None, seconds=0.3))
    _gives_up(proxy, lambda: call(hasty, place))


def _gives_up(proxy: Proxy, call: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(TransientError, match="again"):
        call()
    assert time.monotonic() - started < BOUND_S
    assert sum(proxy.injected.values()) >= 1


@pytest.mark.parametrize("operation", ["read", "open", "range", "list"])
def test_a_body_that_is_always_short_is_given_up(
    proxy: Proxy, store: Store, place: Uri, operation: str
) -> None:
    method, call, _ = OPERATIONS[operation]
    proxy.inject(Rule("truncated", method, times=None))
    with pytest.raises(TransientError, match="again"):
        call(store, place)
    assert proxy.injected["truncated"] == PATIENT.tries


def test_a_shallow_listing_that_fails_is_no_empty_folder(
    proxy: Proxy, store: Store, place: Uri
) -> None:
    proxy.inject(Rule("503", "LIST", times=None))
    with pytest.raises(TransientError):
        store.list(_root(place), depth=1)
    with pytest.raises(TransientError):
        store.expand(_root(place).child("*"))


def test_a_wrong_clock_is_said_at_once(proxy: Proxy, store: Store, place: Uri) -> None:
    proxy.inject(Rule("skewed", times=None))
    for call, asked in (
        (store.info, ["HEAD", "GET"]),
        (lambda place: store.replace(place, b""), ["PUT"]),
    ):
        proxy.seen.clear()
        with pytest.raises(TransientError, match="clock"):
            call(place)
        assert proxy.asked() == asked


def test_credentials_that_stay_expired_are_looked_for_once_more(
    proxy: Proxy, store: Store, place: Uri
) -> None:
    proxy.inject(Rule("expired", times=None))
    for call, method in (
        (store.info, "GET"),
        (store.read, "GET"),
        (lambda place: store.replace(place, b""), "PUT"),
    ):
        proxy.seen.clear()
        with pytest.raises(TransientError, match="renew them and run the same command again"):
            call(place)
        assert proxy.asked().count(method) == 2


def test_renewed_credentials_are_taken_up(
    proxy: Proxy, place: Uri, monkeypatch, tmp_path: Path
) -> None:
    """They stand in a file, as single sign-on and sidecars renew them, while a store with open
    connections lives on.
    """
    keys = {
        name: os.environ[f"AWS_{name.upper()}"] for name in ("access_key_id", "secret_access_key")
    }
    for name in keys:
        monkeypatch.delenv(f"AWS_{name.upper()}")
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    lines = "\n".join(f"aws_{name}={key}" for name, key in keys.items())
    file.write_text("[default]\naws_access_key_id=expired\naws_secret_access_key=expired\n")
    store = Store(Access(proxy.endpoint_url, retry_policy=PATIENT))
    with pytest.raises(DataError):
        store.read(place)
    file.write_text(f"[default]\n{lines}\n")
    # a HEAD, another by botocore that looks for the region, a GET that asks why
    proxy.inject(Rule("expired", times=3))
    assert store.read(place) == BODY
    assert proxy.injected["expired"] == 3


# --- creates whose answer is lost --------------------------------------------------------------


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
    store, data = (
        Store(replace(s3_server.access, endpoint_url=proxy.endpoint_url)),
        bytes(101 << 20),
    )
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


# --- files that are read bit by bit ------------------------------------------------------------


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


# --- listings ----------------------------------------------------------------------------------


def test_a_stale_listing_is_all_that_is_stale(
    proxy: Proxy, store: Store, behind: Store, place: Uri
) -> None:
    """Nothing here remembers a listing: the next one is fresh, and objects are asked for by name
    meanwhile.
    """
    root = _root(place)
    assert _sizes(store, place) == [1000]
    behind.delete(place)
    behind.create(root.child("new"), b"new")
    proxy.inject(Rule("stale", "LIST"))
    assert [entry.uri for entry in store.list(root)] == [place]
    assert store.read(root.child("new")) == b"new"
    for call in (store.read, store.open, store.info):
        with pytest.raises(FileNotFoundError):
            call(place)
    assert [entry.uri.name for entry in store.list(root)] == ["new"]
    assert proxy.injected["stale"] == 1


def test_a_long_listing_is_repeated_page_by_page(
    proxy: Proxy, store: Store, behind: Store, s3_root: Uri
) -> None:
    """1,100 objects are two pages: a retry of the whole would get through many pages of a busy
    store never.
    """
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: behind.replace(s3_root.child(f"{i:04}"), b""), range(1100)))
    proxy.inject(Rule("503", "LIST", times=2), Rule("503", "LIST", after=1, times=2))
    assert [entry.uri.name for entry in store.list(s3_root)] == [f"{i:04}" for i in range(1100)]
    assert proxy.asked() == ["LIST"] * 6


# --- stores whose clients do more by themselves ------------------------------------------------


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
    assert other.read(s3_root.child("a")) == _read_open(other, s3_root.child("a")) == BODY
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
    behind.create(_root(place).child("deep", "object"), b"deep")
    assert _sizes(other, place, depth) == ([1000] if depth == 1 else [4, 1000])
    assert proxy.injected["503"] == 2


# --- local files -------------------------------------------------------------------------------


FULL_DISK = """
import errno, os, sys
from integrand.schemas.errors import TransientError
from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Store

store, root = Store(), Uri("file", sys.argv[1])
store.create(root.child("data", "first"), bytes(100_000), scratch=root.child("_tmp"))
second, scratch = root.child("data", "second"), root.child("_tmp")
for write in (lambda: store.create(second, bytes(2 << 20), scratch=scratch),
              lambda: store.replace(root.child("data", "first"), bytes(2 << 20))):
    try:
        write()
    except TransientError as error:
        print(error, error.exit_code, sep="\\n")
print([(entry.uri.name, entry.size) for entry in store.list(root)])
"""


@pytest.mark.needs_tool("unshare")
def test_a_full_disk_says_so_and_keeps_nothing_of_the_write(tmp_path: Path) -> None:
    """A tmpfs of 1 MiB, mounted in a namespace of its own."""
    mount = (
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c '{FULL_DISK}'"
        f" {tmp_path}"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(
            f"no namespaces here: {done.stderr}"
        )
    assert done.stdout.count("free space on the filesystem") == 2, done.stderr
    assert done.stdout.count(os.strerror(errno.ENOSPC)) == 2
    assert done.stdout.splitlines()[-1] == "[('first', 100000)]"
