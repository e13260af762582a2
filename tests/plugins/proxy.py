"""A proxy before an S3 server that injects faults. Rules are data, and what struck is counted.

Clients use `endpoint_url` as their endpoint: they sign for the proxy's own address, and as `Host`
passes unchanged, the store behind finds the signature right. `BaseHTTPRequestHandler` answers
`Expect: 100-continue`.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

ANSWERS = {
    "500": (500, "InternalError"),
    "502": (502, "BadGateway"),
    "503": (503, "SlowDown"),
    "conflict": (409, "ConditionalRequestConflict"),
    "timeout": (400, "RequestTimeout"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
}
"""Faults that are an answer of the proxy's own: status and S3 error code. The store does not see
the request.
"""

WIRE = (
    "reset",
    "delay",
    "hang",
    "truncated",
    "short",
    "drip",
    "flipped",
    "flipped_up",
    "lost_ack",
    "stale",
)
"""Faults on the wire. `truncated` closes within the body, `short` lies about its length too,
`flipped` turns one bit of it, `flipped_up` one of what is sent, `lost_ack` resets once the store
has answered, `stale` gives the answer that the same LIST had before.
"""

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass(frozen=True)
class Rule:
    """One fault: where it strikes, how often, and after how many requests that match.

    method   GET, HEAD, PUT, POST or DELETE; LIST for the GET of a listing; `*` for all
    key      pattern of fnmatch for `bucket/key`; of a LIST, for `bucket/prefix`
    times    None for as long as the rule is there
    after    so many matching requests are spared first
    each     every method and key is counted by itself
    share    the probability of each strike
    seconds  of a delay, or between the bytes of a drip
    """

    fault: str
    method: str = "*"
    key: str = "*"
    times: int | None = 1
    after: int = 0
    each: bool = False
    share: float = 1.0
    seconds: float = 0.2


@dataclass(frozen=True)
class Request:
    """One request as it came in; `target` is its path with the query."""

    method: str
    key: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer; `length` is what it says of its body, which is longer than the body where that is
    of a HEAD.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    length: int

    def raw(self) -> bytes:
        headers = [*self.headers, ("Content-Length", str(self.length))]
        lines = [
            f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}",
            *map(": ".join, headers),
            "",
            "",
        ]
        return "\r\n".join(lines).encode("latin-1") + self.body


class Proxy:
    """`inject` rules, of which the first that strikes wins; `injected` counts by fault, `seen`
    lists every request.
    """

    def __init__(self, endpoint: str, seed: int = 0) -> None:
        self.injected: Counter[str] = Counter()
        self.seen: list[Request] = []
        self.closed = threading.Event()
        self._store = urlsplit(endpoint).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: tuple[Rule, ...] = ()
        self._counts: Counter[tuple[Rule, str]] = Counter()
        self._listings: dict[str, Reply] = {}
        self._server = _Server(self)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def inject(self, *rules: Rule) -> None:
        """Add rules; each counts the requests that match it from now on."""
        unknown = {rule.fault for rule in rules} - {*ANSWERS, *WIRE}
        if unknown:
            raise ValueError(f"no such fault: {unknown}")
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """No faults from now on; what is `injected` and `seen` stays."""
        with self._lock:
            self._rules = ()
            self._counts.clear()

    def asked(self) -> list[str]:
        """The methods of all requests so far."""
        return [request.method for request in self.seen]

    def close(self) -> None:
        self.closed.set()  # whoever hangs or drips goes on
        self._server.shutdown()
        self._server.server_close()

    def strike(self, request: Request) -> Rule | None:
        """The rule that strikes a request, counted as injected."""
        with self._lock:
            self.seen.append(replace(request, body=b""))
            return next((rule for rule in self._rules if self._strikes(rule, request)), None)

    def _strikes(self, rule: Rule, request: Request) -> bool:
        known = rule.fault != "stale" or request.target in self._listings
        if not (
            known and rule.method in ("*", request.method) and fnmatchcase(request.key, rule.key)
        ):
            return False
        counted = rule, f"{request.method} {request.key}" if rule.each else ""
        self._counts[counted] += 1
        number = self._counts[counted] - rule.after
        strikes = 0 < number <= (rule.times or number) and self._random.random() < rule.share
        self.injected[rule.fault] += strikes
        return strikes

    def reply(self, request: Request, fault: str) -> Reply:
        """What the client is to get: the store's answer, one of the proxy's own, or one spoilt on
        the way.
        """
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            return Reply(
                status,
                (("Content-Type", "application/xml"),),
                b"" if request.method == "HEAD" else body,
                len(body),
            )
        if fault == "stale":
            return self._listings[request.target]
        if fault == "flipped_up":
            return self._forward(replace(request, body=_flipped(request.body)))
        found = self._forward(request)
        half = len(found.body) // 2
        if fault == "truncated":
            return replace(found, body=found.body[:half])
        if fault == "short":
            return replace(found, body=found.body[:half], length=half)
        if fault == "flipped":
            return replace(found, body=_flipped(found.body))
        return found

    def _forward(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection(self._store, timeout=60)
        method = "GET" if request.method == "LIST" else request.method
        connection.putrequest(method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(request.body)
        answer = connection.getresponse()
        body, length = answer.read(), answer.headers.get("Content-Length", "0")
        connection.close()
        kept = tuple((n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP)
        reply = Reply(answer.status, kept, body, int(length) if method == "HEAD" else len(body))
        if request.method == "LIST" and answer.status == 200:
            self._listings[request.target] = reply
        return reply


def _flipped(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :] if data else data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that gave up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        proxy, request = self.server.proxy, self._request()
        rule = proxy.strike(request) or Rule("")
        if rule.fault in ("hang", "delay"):
            proxy.closed.wait(rule.seconds if rule.fault == "delay" else None)
        reply = proxy.reply(request, rule.fault) if rule.fault not in ("hang", "reset") else None
        if reply is None or rule.fault == "lost_ack":
            self._reset()
        elif rule.fault == "drip":
            self._drip(reply.raw(), rule.seconds)
        else:
            self.close_connection = self.close_connection or rule.fault == "truncated"
            self.wfile.write(reply.raw())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _request(self) -> Request:
        url = urlsplit(self.path)
        query, key = parse_qs(url.query, keep_blank_values=True), unquote(url.path).strip("/")
        listing = self.command == "GET" and "list-type" in query
        return Request(
            method="LIST" if listing else self.command,
            target=self.path,
            headers=tuple(self.headers.items()),
            key="/".join([key, *query.get("prefix", [])]) if listing else key,
            body=self.rfile.read(int(self.headers.get("Content-Length", "0"))),
        )

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _drip(self, data: bytes, seconds: float) -> None:
        for at in range(len(data)):
            if self.server.proxy.closed.wait(seconds):
                break
            self.wfile.write(data[at : at + 1])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def fault_proxy(endpoint: str, seed: int = 0) -> Iterator[Proxy]:
    """A proxy before the S3 server at `endpoint`; shares of rules are drawn from `seed`."""
    proxy = Proxy(endpoint, seed)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def proxy(s3_server: Any) -> Iterator[Proxy]:
    """A proxy before the session's S3 server, without any fault yet."""
    with fault_proxy(s3_server.endpoint_url) as started:
        yield started
