"""What is particular to one kind of storage: refusals, errors, local commits, credentials."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, IntegrityError, SpecError, TransientError
from integrand.schemas.uris import Uri
from integrand.workers.storage.retries import RetryPolicy
from integrand.workers.storage.store import Access, Store

BRISK = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.1)
"""As many tries as by default, sooner one after the other."""


@pytest.fixture
def root(tmp_path: Path) -> Uri:
    return Uri("file", str(tmp_path))


# --- what the operator allows ------------------------------------------------------------------


def test_parse_knows_paths_and_uris() -> None:
    assert Store().parse("a/b", base="/data") == Uri("file", "/data/a/b")
    assert Store().parse("s3://bucket/key") == Uri("s3", "bucket/key")


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (Access(), "http://169.254.169.254/latest"),
        (Access(), "simplecache::s3://bucket/key"),
        (Access(schemes=("s3",)), "/etc/passwd"),
        (Access(buckets=("mine",)), "s3://yours/key"),
        (Access(buckets=("mine",)), "s3://mine-too/key"),
        (Access(buckets=("mine",)), "gs://yours"),
    ],
)
def test_parse_refuses_what_the_operator_does_not_list(access: Access, text: str) -> None:
    with pytest.raises(SpecError):
        Store(access).parse(text)


def test_listed_buckets_leave_local_paths_alone() -> None:
    store = Store(Access(buckets=("mine",)))
    assert store.parse("s3://mine/key") == Uri("s3", "mine/key")
    assert store.parse("/data") == Uri("file", "/data")


@pytest.mark.parametrize(
    ("scheme", "advice"), [("s3", "integrand[s3]"), ("gs", "gcsfs"), ("abfs", "adlfs")]
)
def test_a_missing_client_names_the_package(scheme: str, advice: str) -> None:
    code = (
        "import sys; sys.modules.update(s3fs=None, gcsfs=None, adlfs=None)\n"
        "from integrand.workers.storage.store import Store, Uri\n"
        f"Store().read(Uri('{scheme}', 'bucket/key'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    assert "DataError" in done.stderr
    assert f"pip install '{advice}'" in done.stderr


# --- local commits -----------------------------------------------------------------------------


def test_local_bytes_appear_only_in_the_scratch_folder_until_committed(
    root: Uri, monkeypatch
) -> None:
    seen: list[list[str]] = []
    link = os.link

    def spy(source: str, target: str) -> None:
        seen.append(
            sorted(str(p.relative_to(root.path)) for p in Path(root.path).rglob("*") if p.is_file())
        )
        link(source, target)

    monkeypatch.setattr(os, "link", spy)
    Store().create(root.child("data", "part-00000.parquet"), b"x", scratch=root.child("_tmp"))
    assert len(seen) == 1
    assert [name.split("/")[0] for name in seen[0]] == ["_tmp"]
    assert [e.uri.name for e in Store().list(root)] == ["part-00000.parquet"]


def test_a_failed_create_leaves_nothing(root: Uri, monkeypatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(TransientError, match="No space left"):
        Store().create(root.child("data", "object"), b"x", scratch=root.child("_tmp"))
    assert Store().list(root) == []


@pytest.mark.parametrize("done", [True, False])
def test_scratch_that_is_swept_before_it_is_linked(root: Uri, monkeypatch, done: bool) -> None:
    """By a driver that finished the run: what is there already is a lost race, and what is not is
    written again.
    """
    link, place = os.link, root.child("data", "object")

    def swept(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        if done:
            Store().create(place, b"other")
        Store().sweep(root.child("_tmp"))
        link(source, target)

    monkeypatch.setattr(os, "link", swept)
    if done:
        with pytest.raises(FileExistsError):
            Store().create(place, b"x", scratch=root.child("_tmp"))
    else:
        Store().create(place, b"x", scratch=root.child("_tmp"))
    assert Store().read(place) == (b"other" if done else b"x")
    assert [e.uri for e in Store().list(root)] == [place]


def test_committed_files_have_ordinary_permissions(root: Uri) -> None:
    before = os.umask(0o022)
    try:
        Store().create(root.child("created"), b"x")
        Store().replace(root.child("replaced"), b"x")
    finally:
        os.umask(before)
    modes = {
        stat.S_IMODE(os.stat(root.child(name).path).st_mode) for name in ("created", "replaced")
    }
    assert modes == {0o644}


def test_a_file_in_place_of_a_folder_is_no_lost_race(root: Uri) -> None:
    Store().create(root.child("file"), b"x")
    with pytest.raises(DataError, match="a file stands where a folder is needed"):
        Store().create(root.child("file", "object"), b"x")


def test_linked_files_are_listed_and_dangling_links_are_not(root: Uri) -> None:
    store = Store()
    store.create(root.child("blobs", "x"), b"12345")
    os.mkdir(root.child("table").path)
    os.symlink(root.child("blobs", "x").path, root.child("table", "a.parquet").path)
    os.symlink(root.child("nowhere").path, root.child("table", "b.parquet").path)
    assert [(e.uri.name, e.size) for e in store.list(root.child("table"))] == [("a.parquet", 5)]


def test_a_shallow_glob_does_not_walk_the_tree(root: Uri, monkeypatch) -> None:
    store = Store()
    for name in ("a.csv", "deep/b.csv", "deep/er/c.csv"):
        store.create(root.child(name), b"x")
    visited = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: visited.append(str(path)) or scandir(path))
    assert [e.uri.name for e in store.expand(root.child("*.csv"))] == ["a.csv"]
    assert visited == [root.path]


# --- object stores -----------------------------------------------------------------------------


@pytest.mark.s3
def test_an_object_that_changed_is_not_read_on(s3_server, s3_root: Uri) -> None:
    store = Store(s3_server.access)
    store.create(s3_root.child("object"), b"a" * (3 << 20))
    etag = store.info(s3_root.child("object")).etag
    assert store.open(s3_root.child("object"), etag=etag).read(1) == b"a"
    with store.open(s3_root.child("object"), etag=etag) as file:
        file.read(1)
        store.replace(s3_root.child("object"), b"b" * (3 << 20))
        with pytest.raises(IntegrityError, match="object"):
            file.read()
    with pytest.raises(IntegrityError, match="ETag"):
        store.open(s3_root.child("object"), etag=etag)


@pytest.mark.s3
@pytest.mark.usefixtures("as_reader")
def test_a_reader_cannot_write_and_is_told_where(s3_server, s3_root: Uri) -> None:
    store = Store(s3_server.access)
    assert store.list(s3_root) == []
    with pytest.raises(DataError, match=s3_root.path):
        store.prove_creates(s3_root)
    with pytest.raises(DataError, match="written"):
        store.replace(s3_root.child("object"), b"x")


@pytest.mark.s3
def test_wrong_keys_are_a_data_error_that_shows_no_secret(
    s3_server, s3_root: Uri, monkeypatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    with pytest.raises(DataError) as caught:
        Store(s3_server.access).read(s3_root.child("object"))
    assert "canary" not in str(caught.value)


@pytest.mark.s3
def test_no_keys_at_all_say_what_to_set(
    s3_server, s3_root: Uri, monkeypatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="AWS_PROFILE"):
        Store(s3_server.access).read(s3_root.child("object"))


@pytest.mark.s3
def test_a_used_store_works_in_a_forked_child(s3_server, s3_root: Uri) -> None:
    store = Store(s3_server.access)
    store.create(s3_root.child("object"), b"from the parent")
    child = os.fork()
    if not child:
        os._exit(store.read(s3_root.child("object")) != b"from the parent")
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@pytest.mark.s3
def test_a_pickle_carries_settings_and_no_connection(s3_server, s3_root: Uri) -> None:
    store = Store(s3_server.access)
    store.create(s3_root.child("object"), b"x")
    assert len(pickle.dumps(store)) < 400
    assert pickle.loads(pickle.dumps(store)).access == store.access


@pytest.mark.s3
def test_parquet_is_read_by_ranges(s3_server, s3_root: Uri) -> None:
    """One column of one row group of a large object costs a small part of its bytes."""
    store = Store(s3_server.access)
    sink = pa.BufferOutputStream()
    table = pa.table({name: np.arange(1 << 19) for name in "abcdefgh"})
    pq.write_table(table, sink, row_group_size=1 << 16, compression="none", use_dictionary=False)
    store.create(s3_root.child("table"), sink.getvalue().to_pybytes())
    with store.open(s3_root.child("table")) as file:
        read: list[int] = []
        fetch = file._file.cache.fetcher
        file._file.cache.fetcher = lambda start, stop: (
            read.append(stop - start) or fetch(start, stop)
        )
        part = pq.ParquetFile(file).read_row_group(3, columns=["c"])
    assert part["c"].to_pylist()[:2] == [3 << 16, (3 << 16) + 1]
    assert sum(read) < table.nbytes / 8


# --- stores that fail --------------------------------------------------------------------------


class _Failing(BaseHTTPRequestHandler):
    """Answers every request as the test asks: status and S3 error code."""

    protocol_version = "HTTP/1.1"  # for `Expect: 100-continue`, without whose answer s3fs waits
    answer = (503, "SlowDown")

    def _reply(self) -> None:
        status, code = self.answer
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _reply

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def failing(monkeypatch) -> Iterator[str]:
    """An S3 endpoint that refuses everything; `_Failing.answer` says how."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, "AccessDenied"), DataError),
        ((400, "ExpiredToken"), TransientError),
        ((409, "ConditionalRequestConflict"), TransientError),
        ((404, "NoSuchBucket"), DataError),
        ((501, "NotImplemented"), DataError),
        ((412, "PreconditionFailed"), FileExistsError),
    ],
    ids=str,
)
def test_each_answer_to_a_create_is_told_apart(
    failing: str, monkeypatch, answer: tuple[int, str], error: type[Exception]
) -> None:
    monkeypatch.setattr(_Failing, "answer", answer)
    with pytest.raises(error):
        Store(Access(endpoint_url=failing, retry_policy=BRISK)).create(
            Uri("s3", "bucket/key"), b"x"
        )


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (500, "InternalError")], ids=str)
def test_a_busy_store_is_given_up_within_bounds(
    failing: str, monkeypatch, answer: tuple[int, str]
) -> None:
    monkeypatch.setattr(_Failing, "answer", answer)
    started = time.monotonic()
    with pytest.raises(TransientError, match="resume"):
        Store(Access(endpoint_url=failing)).read(Uri("s3", "bucket/key"))
    assert time.monotonic() - started < 25


def test_nobody_listening_is_transient(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(TransientError, match="bucket/key"):
            Store(Access(endpoint_url=endpoint, retry_policy=BRISK)).read(Uri("s3", "bucket/key"))


def test_a_store_that_ignores_the_condition_is_refused(monkeypatch, root: Uri) -> None:
    class Forgetful(Store):
        def create(self, uri: Uri, data: bytes, *, scratch: Uri | None = None) -> None:
            self.replace(uri, data)

    with pytest.raises(DataError, match="both creates"):
        Forgetful().prove_creates(root)
    assert Store().list(root) == []
