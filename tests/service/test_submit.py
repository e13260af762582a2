"""The command line against a real cluster: `ray start --head`, `ray job submit`, and `--address`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from integrand.schemas.errors import TransientError
from integrand.schemas.records import RunManifest
from integrand.service.pools import RayPool
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import Family

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
         "node-manager-port", "object-manager-port", "ray-client-server-port", "runtime-env-agent-port")  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """A head node on loopback, with token authentication."""

    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    family = Family()
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # socket paths have 107 characters at most
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = family.environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid4().hex + uuid4().hex)
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats",
               f"--temp-dir={folder}", *options]  # fmt: skip
    with open(folder / "log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        made = Cluster(f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}", environment)
        await_cluster(made, head, folder / "log")
        yield made
    finally:
        head.terminate()
        family.left(within=10)
        family.kill()
        head.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def await_cluster(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    """The head takes jobs once its dashboard answers."""
    host, port = cluster.dashboard.removeprefix("http://").split(":")
    for _ in range(600):
        if head.poll() is not None:
            break
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"ray start did not come up:\n{log.read_text()[-3000:]}")


def call(cluster: Cluster, *command: str) -> tuple[int, str]:
    done = subprocess.run(command, env=cluster.environment, cwd="/", capture_output=True, text=True, timeout=150)
    return done.returncode, done.stdout + done.stderr


def integrand(job: JobFolder, spec: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "integrand.service.cli", "run", spec, "--trust-model-code", job.module, *options]


def finished(job: JobFolder, out: str) -> RunManifest:
    (place,) = (job.path / out).glob("*/_manifest.json")
    return RunManifest.model_validate_json(place.read_bytes())


def test_a_job_is_submitted_to_the_cluster(job: JobFolder, cluster: Cluster):
    """The working directory holds spec and model; data and output are where they are."""
    submitted = job.path / "submitted"
    submitted.mkdir()
    shutil.move(job.path / f"{job.module}.py", submitted)
    spec = job.write_spec(source={"uri": str(job.path / "data"), "row_id": "id"}, output={"uri": str(job.path / "out")})
    shutil.move(spec, submitted)
    code, output = call(cluster, RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", str(submitted), "--",
                        *integrand(job, "spec.yaml"))  # fmt: skip
    assert code == 0, output
    assert "2/2 shards" in output
    manifest = finished(job, "out")
    assert (manifest.complete, manifest.rows_out) == (True, 20)
    os.replace(submitted / f"{job.module}.py", job.path / f"{job.module}.py")
    assert manifest.digest == job.run(output={"uri": "here"}).digest


def test_a_driver_joins_the_cluster_by_its_address(job: JobFolder, cluster: Cluster):
    code, output = call(cluster, *integrand(job, str(job.write_spec()), "--address", cluster.address))
    assert code == 0, output
    assert finished(job, "out").rows_out == 20


def test_an_address_where_nobody_answers_is_told_at_once():
    (port,) = free_ports(1)
    with pytest.raises(TransientError, match=f"Ray at 127.0.0.1:{port}"):
        RayPool(f"127.0.0.1:{port}").connect()
