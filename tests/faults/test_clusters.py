"""Drivers on a Ray of their own that dies around them, or with them: what storage holds is all that
the next one needs.

Each test starts a command line and a Ray, which takes most of its time.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integrand.schemas.records import RunManifest
from integrand.workers.failpoints import VARIABLE
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import Family, end, start, wait_until

pytestmark = pytest.mark.ray
HEAD, RAYLET = "gcs_server", "raylet/raylet"
SIZES: dict[str, Any] = {"compute": {"shard_rows": 5, "batch_rows": 16, "workers": 2}}


@pytest.fixture
def family() -> Iterator[Family]:
    found = Family()
    yield found
    found.kill()


@pytest.fixture
def undisturbed(job: JobFolder) -> RunManifest:
    return job.run(output={"uri": "undisturbed"}, **SIZES)


def held(folder: Path) -> dict[str, str]:
    """An environment in which one worker stands still with its shard computed, until there is a
    file `go`.
    """
    return {VARIABLE: f"shard.computed=wait:{folder}/go@{folder}/there"}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cluster_that_ends_with_its_driver(
    job: JobFolder,
    family: Family,
    undisturbed: RunManifest,
    tmp_path: Path,
    signal_number: signal.Signals,
):
    """Driver, head, raylet and workers at once, as when the machine goes; or all in order, after
    one SIGTERM.
    """
    driver = start(family, job, job.write_spec(**SIZES), **held(tmp_path))
    wait_until((tmp_path / "there").exists)
    if signal_number == signal.SIGKILL:
        family.kill()
        assert end(driver)[0] == -signal.SIGKILL
    else:
        code, output = end(driver, signal_number)
        assert (code, "Traceback" in output) == (130, False), output
        assert "run the same command again to resume" in output
    assert family.left(within=60) == {}
    job.run(**SIZES)
    check_rows(job, undisturbed)


@pytest.mark.parametrize("names", [(HEAD,), (HEAD, RAYLET)], ids=["head", "head and raylet"])
def test_a_driver_that_outlives_its_cluster_ends_by_itself(
    job: JobFolder, family: Family, undisturbed: RunManifest, tmp_path: Path, names: tuple[str, ...]
):
    """As retryable, and soon: at once without its raylet; a head is given half a minute to come
    back.

    Meanwhile it and its orphaned workers are as a second driver: another finishes the run beside
    them.
    """
    driver = start(family, job, job.write_spec(**SIZES), **held(tmp_path))
    wait_until((tmp_path / "there").exists)
    family.kill(*names)
    job.run(**SIZES)
    check_rows(job, undisturbed)
    code, output = end(driver)
    assert (code, "Traceback" in output) == (4, False), output
    assert "next: " in output
    # Ray's own take a minute to see that they are alone; nobody may compute
    agents = family.left(within=10)
    assert [command for command in agents.values() if "agent" not in command.lower()] == []
    check_rows(job, undisturbed)
