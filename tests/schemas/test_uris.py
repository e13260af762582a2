"""URIs are judged as strings: a hostile one is refused before anything connects."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Uri, parse_uri
from integrand.workers.store import Access, Store


class Listener:
    """A server on loopback that notes whether anybody called."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.server.accept()[0].close()
            except OSError:
                return
            self.calls += 1


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.server.close()


HOSTILE = [
    "zip://a::http://127.0.0.1:{port}/x",
    "simplecache::http://127.0.0.1:{port}/x",
    "s3://bucket/a::http://127.0.0.1:{port}/x",
    "reference://x?fo=http://127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}/x",
    "HTTP://127.0.0.1:{port}/x",
    "ftp://127.0.0.1:{port}/x",
    "sftp://127.0.0.1:{port}/x",
    "ssh://127.0.0.1:{port}/x",
    "webhdfs://127.0.0.1:{port}/x",
    "github://org:repo@main/x",
    "dask://x",
    "memory://x",
    "local:///etc/passwd",
    "jar://x.jar",
    "s3a://bucket/x",
    "s3://key:secret@bucket/x",
    "s3://user@bucket/x",
    "gs://user@bucket/x",
    "s3://",
    "s3:///",
    "",
    "   ",
    "a\x00b",
    "s3://bucket/a\x00b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_uri_is_refused_and_nothing_connects(text: str, listener: Listener):
    with pytest.raises(SpecError):
        Store(Access(endpoint_url=f"http://127.0.0.1:{listener.port}")).parse(text.format(port=listener.port))
    assert listener.calls == 0


def test_the_listener_would_notice(listener: Listener):
    socket.create_connection(("127.0.0.1", listener.port)).close()
    for _ in range(100):
        if listener.calls:
            return
        threading.Event().wait(0.02)
    pytest.fail("a real connection was not noticed")


def test_user_information_is_not_repeated():
    with pytest.raises(SpecError) as caught:
        parse_uri("s3://AKIAKEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("data", "/jobs", Uri("file", "/jobs/data")),
        ("./data/", "/jobs", Uri("file", "/jobs/data")),
        ("/data/", "/jobs", Uri("file", "/data")),
        ("file:///data", "/jobs", Uri("file", "/data")),
        ("/", "/jobs", Uri("file", "/")),
        ("a@b/c", "/jobs", Uri("file", "/jobs/a@b/c")),
        ("s3://bucket/a/b/", "/jobs", Uri("s3", "bucket/a/b")),
        ("S3://bucket/key", "/jobs", Uri("s3", "bucket/key")),
        ("s3://bucket/user@key", "/jobs", Uri("s3", "bucket/user@key")),
        ("gs://bucket", "/jobs", Uri("gs", "bucket")),
        ("abfs://container@account.dfs.core.windows.net/x", "/", Uri("abfs", "container@account.dfs.core.windows.net/x")),
    ],
)  # fmt: skip
def test_a_good_uri_parses(text: str, base: str, expected: Uri):
    assert parse_uri(text, base=base) == expected


def test_what_a_uri_prints_parses_to_the_same():
    for uri in (Uri("file", "/a/b"), Uri("s3", "bucket/a")):
        assert parse_uri(str(uri)) == uri
        assert uri.child("c", "d").name == "d"
        assert str(uri.child("c")) == f"{uri}/c"


def test_the_operator_narrows_schemes_and_buckets():
    store = Store(Access(schemes=("s3",), buckets=("audits",)))
    assert store.parse("s3://audits/x") == Uri("s3", "audits/x")
    for text in ("/data", "gs://audits/x", "s3://other/x", "s3://audits2/x"):
        with pytest.raises(SpecError):
            store.parse(text)
