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

from tests.plugins.processes import Family, wait_until

RAYS = (
    "ray start",
    "gcs_server",
    "raylet/raylet",
    "/dashboard/",
    "/log_monitor",
    "autoscaler/_private/monitor",
    "runtime_env/agent",
    "ray/util/client/server",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)
"""What the command lines of a head's own processes have in them."""

RAY = str(Path(sys.executable).with_name("ray"))
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)


@dataclass(frozen=True)
class Cluster:
    """A head node, its other doors, and the environment of those who may use it."""

    address: str
    client: str
    dashboard: str
    environment: dict[str, str]


class Head:
    """A head node of two CPUs at the address `ip`, under the RAY_* `variables`; its dashboard is on
    loopback.

    It may be killed and started again, on the same ports and in the same folder.
    """

    def __init__(self, ip: str = "127.0.0.1", **variables: str) -> None:
        self.family = Family()
        # socket paths have 107 characters at most
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.cluster = Cluster(
            f"{ip}:{ports['port']}",
            f"ray://{ip}:{ports['ray-client-server-port']}",
            f"http://127.0.0.1:{ports['dashboard-port']}",
            self.family.environment(HOME=str(self.folder), **variables),
        )
        self._command = [
            RAY,
            "start",
            "--head",
            "--block",
            f"--node-ip-address={ip}",
            "--num-cpus=2",
            "--disable-usage-stats",
            f"--temp-dir={self.folder}",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]

    def start(self) -> Cluster:
        """Returns once it takes jobs."""
        log = self.folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                self._command,
                env=self.cluster.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._process = process
        _await_dashboard(self.cluster, process, log)
        return self.cluster

    def kill(self) -> None:
        """SIGKILL to Ray's own processes, whose ports are free afterwards; drivers and workers are
        left to themselves.
        """
        self.family.kill(*RAYS)
        self._process.wait(10)
        wait_until(
            lambda: (
                not [c for c in self.family.living().values() if any(name in c for name in RAYS)]
            )
        )

    def stop(self) -> None:
        self._process.terminate()
        self.family.left(within=10)
        self.family.kill()
        self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def head(ip: str = "127.0.0.1", **auth: str) -> Iterator[Cluster]:
    """A head node for a while."""
    one = Head(ip, **auth)
    try:
        yield one.start()
    finally:
        one.stop()


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
