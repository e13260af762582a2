"""Workers on Ray that die, hang or come back to another model, held to the rows of a run without
faults.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.workers import failpoints
from tests.plugins.jobs import JobFolder
from tests.plugins.oracle import check_rows
from tests.plugins.processes import wait_until

pytestmark = pytest.mark.ray
OF_WORKERS = [
    n
    for n in failpoints.NAMES
    if n.startswith("store.")
    or n in ("shard.begun", "shard.read", "shard.computed", "shard.encoded", "shard.committed")
]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that tells workers of this cluster where to strike, read by each at its start."""
    place = tmp_path_factory.mktemp("points") / "strikes"
    place.touch()
    return place


@pytest.fixture(scope="module")
def cluster(points: Path) -> Iterator[str]:
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(failpoints.VARIABLE, f"@{points}")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def strike(points: Path) -> Iterator[Callable[[str], None]]:
    """Tell every worker that starts from now on where to strike."""
    yield lambda strikes: points.write_text(strikes) and None
    points.write_text("")


def attempts(job: JobFolder, manifest: RunManifest) -> list[Attempt]:
    """Every failed attempt of the run below `out`."""
    places = sorted((job.path / "out" / manifest.run_id / "_attempts").glob("*/*.json"))
    return [Attempt.model_validate_json(place.read_bytes()) for place in places]


def sizes(shard_rows: int, **compute: Any) -> dict[str, Any]:
    return {"compute": {"shard_rows": shard_rows, "batch_rows": 16, **compute}}


def test_workers_killed_at_every_step_of_a_shard(
    job: JobFolder, cluster: str, tmp_path: Path, strike: Callable[[str], None]
):
    """One at each, while another shard runs beside. Nine starts of a worker take a while."""
    job.write_rows(count=32)
    undisturbed = job.run(output={"uri": "undisturbed"}, **sizes(2))
    strike(";".join(f"{point}=kill@{tmp_path}/{point}" for point in OF_WORKERS))
    manifest = job.run("ray", address=cluster, **sizes(2, workers=2))
    assert [point for point in OF_WORKERS if not (tmp_path / point).exists()] == []
    check_rows(job, undisturbed)
    lost = attempts(job, manifest)
    assert [(a.outcome, a.charged, a.alone) for a in lost] == [
        ("killed_worker", True, False)
    ] * len(OF_WORKERS)
    assert len({a.shard for a in lost}) == len(OF_WORKERS), "one loss makes no suspect"


def test_rows_that_take_their_workers_away_are_failed_and_the_others_are_not(
    job: JobFolder, cluster: str, tmp_path: Path
):
    """One row segfaults and one holds the GIL for ever; a model that sleeps and one that spins do
    so only once.

    Each loss costs a start, and each hang the stall limit.
    """
    marks = (17, 20, 23, 26)
    job.write_rows(count=28)
    # a model that has faults in it is another program, with other savings
    plain = job.run(output={"uri": "undisturbed"}, **sizes(10, savings="none"))
    expected = job.rows(plain, "undisturbed")
    job.write_rows(count=28, marks=marks)
    model = job.model(faults="segfault freeze hang:once spin:once", folder=str(tmp_path))
    impatient = sizes(2, stall_s=5, attempts=1, workers=2, savings="none")
    manifest = job.run("ray", address=cluster, model=model, **impatient)
    assert (manifest.complete, manifest.statuses) == (True, {"failed": 2, "unchecked": 26})
    found = job.rows(manifest)
    assert found.index[found["status"] == "failed"].tolist() == [17, 20]
    assert "the process died" in found.loc[17, "reason"]
    assert "within the stall limit" in found.loc[20, "reason"]
    same = [row for row in range(28) if row not in marks]
    pd.testing.assert_frame_equal(found.loc[same], expected.loc[same], check_exact=True)
    outcomes = {
        shard: {a.outcome for a in attempts(job, manifest) if a.shard == shard}
        for shard in ("00008", "00010", "00011", "00013")
    }
    assert outcomes == {
        "00008": {"killed_worker"},
        "00010": {"stalled"},
        "00011": {"stalled"},
        "00013": {"stalled"},
    }


def test_a_worker_that_lost_its_cuda_context_gets_no_more_shards(
    job: JobFolder, cluster: str, tmp_path: Path
):
    """As CUDA has it: after one illegal access every later call of that process fails too."""
    job.write_rows(count=60, marks=(25,))
    job.write_model(
        "if (x[:, 0] == 1000).any() and self.first_time('struck'):\n"
        "    Model.lost = True\n"
        "if hasattr(Model, 'lost'):\n"
        "    fail(RuntimeError('CUDA error: an illegal memory access was encountered'))\n"
        "return self.logits(x)"
    )
    model = job.model(folder=str(tmp_path))
    (tmp_path / "struck").touch()
    undisturbed = job.run(model=model, output={"uri": "undisturbed"})
    (tmp_path / "struck").unlink()
    manifest = job.run("ray", address=cluster, model=model)
    check_rows(job, undisturbed)
    assert [(a.shard, a.outcome) for a in attempts(job, manifest)] == [("00002", "raised")]


def test_a_worker_that_comes_back_to_other_weights_is_refused(
    job: JobFolder, cluster: str, tmp_path: Path, strike: Callable[[str], None]
):
    """The one that is running has loaded what was planned; it dies, and the next finds a file that
    was replaced.
    """
    job.write_weights()
    sound = (job.path / "weights.safetensors").read_bytes()
    same = {"model": job.weighted()}
    undisturbed = job.run(output={"uri": "undisturbed"}, **same)
    strike(f"shard.read=wait:{tmp_path}/go@{tmp_path}/there;shard.computed=kill@{tmp_path}/killed")

    def replace() -> None:
        wait_until((tmp_path / "there").exists)
        job.write_weights(seed=2)
        (tmp_path / "go").touch()

    beside = threading.Thread(target=replace)
    beside.start()
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        job.run("ray", address=cluster, **same)
    beside.join()
    assert not job.objects(undisturbed)
    (job.path / "weights.safetensors").write_bytes(sound)
    job.run("ray", address=cluster, **same)
    check_rows(job, undisturbed)
