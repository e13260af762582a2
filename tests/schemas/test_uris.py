"""URIs are judged as strings: a hostile one is refused before anything connects."""

from __future__ import annotations

import socket
import threading

import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Uri, parse_uri
from integrand.workers.storage.store import Access, Store
from tests.plugins.listener import HOSTILE, Listener


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_uri_is_refused_and_nothing_connects(text: str, listener: Listener):
    with pytest.raises(SpecError):
        Store(Access(endpoint_url=f"http://127.0.0.1:{listener.port}")).parse(
            text.format(port=listener.port)
        )
    assert listener.calls == 0


def test_the_listener_would_notice(listener: Listener):
    socket.create_connection(("127.0.0.1", listener.port)).close()
    for _ in range(100):
        if not listener.calls:
            threading.Event().wait(0.02)
    assert listener.calls > 0


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:hunter2@bucket/x",
        "s3://AKIAKEY:abc/hunter2@bucket/x",
        "https://user:hunter2@host/x",
        "zip://a::https://user:hunter2@host/x",
    ],
)
def test_user_information_is_not_repeated(text: str):
    with pytest.raises(SpecError) as caught:
        parse_uri(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["data/\ud800", "s3://bucket/\udcff"])
def test_what_is_no_text_is_refused(text: str):
    with pytest.raises(SpecError, match=r"\\ud"):
        parse_uri(text)


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("data", "/jobs", Uri("file", "/jobs/data")),
        ("./data/", "/jobs", Uri("file", "/jobs/data")),
        ("/data/", "/jobs", Uri("file", "/data")),
        ("file:///data", "/jobs", Uri("file", "/data")),
        ("/", "/jobs", Uri("file", "/")),
        ("//data/./x//y/", "/jobs", Uri("file", "/data/x/y")),
        ("../data", "/jobs", Uri("file", "/jobs/../data")),
        (
            "s3://arn:aws:s3:us-east-1:1:accesspoint/a/key",
            "/",
            Uri("s3", "arn:aws:s3:us-east-1:1:accesspoint/a/key"),
        ),
        ("a@b/c", "/jobs", Uri("file", "/jobs/a@b/c")),
        ("s3://bucket/a/b/", "/jobs", Uri("s3", "bucket/a/b")),
        ("S3://bucket/key", "/jobs", Uri("s3", "bucket/key")),
        ("s3://bucket/user@key", "/jobs", Uri("s3", "bucket/user@key")),
        ("gs://bucket", "/jobs", Uri("gs", "bucket")),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            "/",
            Uri("abfs", "container@account.dfs.core.windows.net/x"),
        ),
    ],
)
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
