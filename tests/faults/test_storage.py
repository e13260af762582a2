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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integrand.schemas.errors import DataError, TransientError
from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Access, Store
from tests.plugins.faulty_stores import BODY, BOUND_S, PATIENT, folder_of, read_open, sizes
from tests.plugins.proxy import Proxy, Rule

pytestmark = pytest.mark.s3


def _create(store: Store, place: Uri) -> bytes:
    store.create(folder_of(place).child("new"), b"new")
    return store.read(folder_of(place).child("new"))


def _replace(store: Store, place: Uri) -> bytes:
    store.replace(place, b"new")
    return store.read(place)


def _delete(store: Store, place: Uri) -> bool:
    store.delete(place)
    return store.exists(place)


OPERATIONS: dict[str, tuple[str, Callable[[Store, Uri], object], object]] = {
    "create": ("PUT", _create, b"new"),
    "replace": ("PUT", _replace, b"new"),
    "read": ("GET", lambda store, place: store.read(place), BODY),
    "open": ("GET", read_open, BODY),
    "range": ("GET", lambda store, place: store.read_tail(place, 1000, 7), BODY[-7:]),
    "info": ("HEAD", lambda store, place: store.info(place).size, 1000),
    "list": ("LIST", sizes, [1000]),
    "list, shallow": ("LIST", lambda store, place: sizes(store, place, 2), [1000]),
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
        "create": lambda: store.create(folder_of(place).child("new"), BODY),
        "replace": lambda: store.replace(place, BODY),
        "read": lambda: store.read(place),
        "open": lambda: read_open(store, place),
        "range": lambda: store.read_tail(place, 1000, 7),
        "info": lambda: store.info(place),
        "info of nothing": lambda: store.exists(place.child("nothing")),
        "list": lambda: store.list(folder_of(place)),
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
    assert_given_up(proxy, lambda: call(hasty, place))


@pytest.mark.parametrize("operation", ["create", "read", "list"])
def test_an_answer_that_drips_is_given_up_in_time(
    proxy: Proxy, hasty: Store, place: Uri, operation: str
) -> None:
    """A byte every 0.3 s keeps every timeout of a socket from striking."""
    method, call, _ = OPERATIONS[operation]
    proxy.inject(Rule("drip", method, times=None, seconds=0.3))
    assert_given_up(proxy, lambda: call(hasty, place))


def assert_given_up(proxy: Proxy, call: Callable[[], object]) -> None:
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
        store.list(folder_of(place), depth=1)
    with pytest.raises(TransientError):
        store.expand(folder_of(place).child("*"))


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


# --- listings ----------------------------------------------------------------------------------


def test_a_stale_listing_is_all_that_is_stale(
    proxy: Proxy, store: Store, behind: Store, place: Uri
) -> None:
    """Nothing here remembers a listing: the next one is fresh, and objects are asked for by name
    meanwhile.
    """
    root = folder_of(place)
    assert sizes(store, place) == [1000]
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
