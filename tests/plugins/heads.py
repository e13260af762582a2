"""Real Ray head nodes, each a family of processes of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugins.processes import Family

RAY = str(Path(sys.executable).with_name("ray"))
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
         "node-manager-port", "object-manager-port", "ray-client-server-port", "runtime-env-agent-port")  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """A head node, its other doors, and the environment of those who may use it."""

    address: str
    client: str
    dashboard: str
    environment: dict[str, str]


@contextmanager
def head(ip: str = "127.0.0.1", **auth: str) -> Iterator[Cluster]:
    """A head node of two CPUs under the RAY_AUTH_* variables `auth`; its dashboard is on loopback."""
    family = Family()
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # socket paths have 107 characters at most
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = family.environment(HOME=str(folder), **auth)
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [RAY, "start", "--head", "--block", f"--node-ip-address={ip}", "--num-cpus=2", "--disable-usage-stats",
               f"--temp-dir={folder}", *options]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        made = Cluster(f"{ip}:{ports['port']}", f"ray://{ip}:{ports['ray-client-server-port']}",
                       f"http://127.0.0.1:{ports['dashboard-port']}", environment)  # fmt: skip
        _await_dashboard(made, process, folder / "log")
        yield made
    finally:
        process.terminate()
        family.left(within=10)
        family.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await_dashboard(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    """The head takes jobs once its dashboard answers."""
    host, port = cluster.dashboard.removeprefix("http://").split(":")
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"ray start did not come up:\n{log.read_text()[-3000:]}")
