"""The command line against a real cluster: `ray start --head`, `ray job submit`, and
`--address`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from integrand.schemas.errors import TransientError
from integrand.schemas.records import RunManifest
from integrand.service.pools.ray import RayPool
from tests.plugins.heads import RAY, Cluster, free_ports, head
from tests.plugins.jobs import JobFolder

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node on loopback, with token authentication."""
    with head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid4().hex + uuid4().hex) as made:
        yield made


def call(cluster: Cluster, *command: str) -> tuple[int, str]:
    done = subprocess.run(
        command, env=cluster.environment, cwd="/", capture_output=True, text=True, timeout=150
    )
    return done.returncode, done.stdout + done.stderr


def integrand(job: JobFolder, spec: str, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        spec,
        "--trust-model-code",
        job.module,
        *options,
    ]


def finished(job: JobFolder, out: str) -> RunManifest:
    (place,) = (job.path / out).glob("*/_manifest.json")
    return RunManifest.model_validate_json(place.read_bytes())


def test_a_job_is_submitted_to_the_cluster(job: JobFolder, cluster: Cluster):
    """The working directory holds spec and model; data and output are where they are."""
    submitted = job.path / "submitted"
    submitted.mkdir()
    shutil.move(job.path / f"{job.module}.py", submitted)
    spec = job.write_spec(
        source={"uri": str(job.path / "data"), "row_id": "id"},
        output={"uri": str(job.path / "out")},
    )
    shutil.move(spec, submitted)
    code, output = call(
        cluster,
        RAY,
        "job",
        "submit",
        "--address",
        cluster.dashboard,
        "--working-dir",
        str(submitted),
        "--",
        *integrand(job, "spec.yaml"),
    )
    assert code == 0, output
    assert "2/2 shards" in output
    manifest = finished(job, "out")
    assert (manifest.complete, manifest.rows_out) == (True, 20)
    os.replace(submitted / f"{job.module}.py", job.path / f"{job.module}.py")
    assert manifest.digest == job.run(output={"uri": "here"}).digest


def test_a_driver_joins_the_cluster_by_its_address(job: JobFolder, cluster: Cluster):
    code, output = call(
        cluster, *integrand(job, str(job.write_spec()), "--address", cluster.address)
    )
    assert code == 0, output
    assert finished(job, "out").rows_out == 20


def test_an_address_where_nobody_answers_is_told_at_once():
    (port,) = free_ports(1)
    with pytest.raises(TransientError, match=f"Ray at 127.0.0.1:{port}"):
        RayPool(f"127.0.0.1:{port}").connect()
