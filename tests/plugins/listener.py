"""A server on loopback that notes whether anybody called, and the URIs that would make a careless
parser call it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

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
    "s3://key:abc/def@bucket/x",
    "s3://bucket/../other/x",
    "s3://bucket/a/./x",
    "s3://",
    "s3:///",
    "",
    "   ",
    "a\x00b",
    "s3://bucket/a\x00b",
]
"""`{port}` stands for the listener's."""


class Listener:
    """Counts connections to its port."""

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
