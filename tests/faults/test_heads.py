"""A head that dies and comes back with all that it knew, on storage of its own: what it says of a
job is not asked.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integrand.schemas.records import RunManifest
from integrand.workers.failpoints import VARIABLE
from tests.plugins.heads import RAY, Head
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import wait_until

pytestmark = pytest.mark.ray
SIZES: dict[str, Any] = {
    "compute": {"shard_rows": 5, "batch_rows": 16, "workers": 2, "cpus_per_worker": 0.5}
}
DRIVER = "integrand.service.cli"


@pytest.fixture
def undisturbed(job: JobFolder) -> RunManifest:
    return job.run(output={"uri": "undisturbed"}, **SIZES)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Head]:
    """A head whose tables are in RocksDB, and under which the first shard that is computed stands
    still.
    """
    one = Head(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=uuid4().hex + uuid4().hex,
        RAY_gcs_storage="rocksdb",
        RAY_gcs_storage_path=str(tmp_path / "tables"),
        **{VARIABLE: f"shard.computed=wait:{tmp_path}/go@{tmp_path}/there"},
    )
    yield one
    one.stop()


def ask(head: Head, verb: str, *arguments: str) -> str:
    command = [RAY, "job", verb, "--address", head.cluster.dashboard, *arguments]
    done = subprocess.run(
        command, env=head.cluster.environment, cwd="/", capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(head: Head, job: JobFolder, *options: str) -> str:
    return ask(
        head,
        "submit",
        *options,
        "--",
        sys.executable,
        "-m",
        DRIVER,
        "run",
        str(job.write_spec(**SIZES)),
        "--trust-model-code",
        job.module,
    )


def test_a_head_that_comes_back_from_its_own_storage(
    job: JobFolder, undisturbed: RunManifest, durable: Head, tmp_path: Path
):
    """To Ray 2.60 the job of the dead cluster is still RUNNING; a second submission finishes the
    run beside its orphans.
    """
    durable.start()
    submit(durable, job, "--no-wait", "--submission-id", "first")
    wait_until((tmp_path / "there").exists)
    durable.kill()
    durable.start()
    assert "SUCCEEDED" not in ask(durable, "status", "first"), "it knows the job, but not how it is"
    submit(durable, job)
    check_rows(job, undisturbed)
    (tmp_path / "go").touch()
    wait_until(lambda: not [c for c in durable.family.living().values() if DRIVER in c])
    check_rows(job, undisturbed)
