"""One suite over both pools; then what only processes can do: die, hang, and fail to start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import exceptions

from integrand.schemas.errors import DataError, IntegrityError, SpecError, TransientError
from integrand.schemas.records import Plan, RunManifest
from integrand.schemas.specs.compute import Compute
from integrand.service.cluster import Cluster
from integrand.service.pools.choice import Undecided, make_planning_pool
from integrand.service.pools.failures import Ended, worker_failure
from integrand.service.pools.local import LocalPool
from integrand.service.pools.ray import RayPool
from tests.plugins.jobs import JobFolder

MARKS = (25, 45, 55)
"""Rows that bring the first, second and third fault: with ten rows a shard, shards 00002, 00004 and
00005.
"""

Run = Callable[..., RunManifest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """Seventy rows in two files, some of them marked. Every test writes to a place of its own."""
    made = JobFolder(tmp_path_factory.mktemp("pools"))
    made.write_rows("a.parquet", count=60, marks=MARKS, row_group_size=20)
    made.write_rows("b.parquet", count=10, start=60)
    made.write_model()
    return made


@pytest.fixture(scope="module")
def undisturbed(folder: JobFolder) -> RunManifest:
    """The run that all others are to equal."""
    return folder.run(output={"uri": "undisturbed"}, compute=compute())


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def run(request: pytest.FixtureRequest, folder: JobFolder, tmp_path: Path) -> Run:
    """Run the job of `folder` on one kind of pool."""
    address = request.getfixturevalue("local_ray") if request.param == "ray" else None
    return job_on(folder, tmp_path, request.param, address)


@pytest.fixture
def ray_run(folder: JobFolder, tmp_path: Path, local_ray: str) -> Run:
    return job_on(folder, tmp_path, "ray", local_ray)


def job_on(folder: JobFolder, out: Path, pool: str, address: str | None) -> Run:
    def run(faults: str = "", *, job: JobFolder = folder, **changes: Any) -> RunManifest:
        """Every worker start costs seconds, so Ray gets one worker where a second adds nothing."""
        defaults = {
            "model": job.model(faults=faults, folder=str(out)),
            "output": {"uri": str(out)},
            "compute": compute(),
        }
        return job.run(pool, address=address, **defaults | changes)

    return run


def compute(**changes: Any) -> dict[str, Any]:
    """Without savings: a model that has faults in it is another program, with other ones."""
    return {"shard_rows": 10, "batch_rows": 16, "savings": "none"} | changes


def attempts(
    folder: JobFolder, manifest: RunManifest, out: Path
) -> dict[str, list[tuple[str, bool, bool]]]:
    """(outcome, charged, alone) of every failed attempt, by shard."""
    plan = Plan.model_validate_json((out / manifest.run_id / "_plan.json").read_bytes())
    found = folder.ledger(manifest, plan, str(out)).attempts
    return {
        shard: [(a.outcome, a.charged, a.alone) for a in known]
        for shard, known in sorted(found.items())
    }


# --- both pools --------------------------------------------------------------------------------


@pytest.mark.parametrize(("shard_rows", "workers"), [(1, 2), (7, {"min": 1, "max": 9}), (64, 1)])
def test_one_digest_for_any_shards_and_workers(
    run: Run,
    folder: JobFolder,
    undisturbed: RunManifest,
    tmp_path: Path,
    shard_rows: int,
    workers: int | dict[str, int],
):
    """The range asks for more workers than Ray has CPUs here: it makes do with those that
    come up.
    """
    manifest = run(compute=compute(shard_rows=shard_rows, workers=workers))
    assert (manifest.complete, manifest.digest) == (True, undisturbed.digest)
    assert manifest.statuses == {"unchecked": 70}
    assert manifest.evaluations == 70 * 8
    assert folder.rows(manifest, str(tmp_path))["row_id"].tolist() == list(range(70))


def test_rows_and_medians_for_baselines_are_found_on_any_pool(
    run: Run, folder: JobFolder, tmp_path: Path
):
    training = {"kind": "training", "draws": 4, "where": "id < 20 and a < 500"}
    baseline = {"kind": "average", "of": [{"kind": "median"}, training]}
    found = run(baseline=baseline)
    here = {"output": {"uri": str(tmp_path / "here")}, "compute": compute()}
    expected = folder.run(baseline=baseline, **here)
    assert (found.complete, found.digest) == (True, expected.digest)


def test_running_again_computes_only_what_is_missing(run: Run, folder: JobFolder, tmp_path: Path):
    first = run()
    run_folder = tmp_path / first.run_id
    before = mtimes(run_folder)
    assert run() == first
    assert mtimes(run_folder) == before, "a complete run is left alone"
    (run_folder / "_manifest.json").unlink()
    (run_folder / "data" / "part-00003.parquet").unlink()
    again = run()
    assert (again.complete, again.digest, again.run_id) == (True, first.digest, first.run_id)
    after = mtimes(run_folder)
    changed = {name for name in after if after[name] != before[name] and name != "_progress.json"}
    assert changed == {"data/part-00003.parquet", "_manifest.json"}


def mtimes(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


def test_a_shard_that_cannot_be_read_is_quarantined_and_the_others_finish(
    run: Run, job: JobFolder, tmp_path: Path
):
    """And a storage fault is not charged, so that one allowed attempt is still there."""
    source = job.write_rows(count=70, marks=(45,), row_group_size=10, write_page_checksum=True)
    undisturbed = job.run(output={"uri": "undisturbed"}, compute=compute())
    sound = job.flip_bit("rows.parquet", row_group=2)
    faults, once = "transient:once", compute(attempts=1)
    manifest = run(faults, job=job, compute=once)
    assert (manifest.complete, manifest.rows_out, manifest.missing) == (False, 60, ("00002",))
    given_up = manifest.quarantined[0]
    assert (given_up.shard, given_up.rows, given_up.attempts) == ("00002", 10, 2)
    assert "rows.parquet rows [20, 30)" in given_up.reason
    assert "in read_slices" in given_up.detail, "the worker's own traceback"
    assert "\x1b" not in given_up.detail
    assert attempts(job, manifest, tmp_path) == {
        "00002": [("raised", True, False), ("raised", True, True)],
        "00004": [("storage", False, False)],
    }
    run_folder = tmp_path / manifest.run_id
    assert ((run_folder / "_manifest.json").exists(), (run_folder / "_partial.json").exists()) == (
        False,
        True,
    )

    source.write_bytes(sound)
    assert run(faults, job=job, compute=once).quarantined == manifest.quarantined, (
        "not tried again until it is released"
    )
    (run_folder / "_quarantine" / "00002.json").unlink()
    shutil.rmtree(run_folder / "_attempts" / "00002")
    released = run(faults, job=job, compute=once)
    assert (released.complete, released.digest) == (True, undisturbed.digest)
    assert ((run_folder / "_manifest.json").exists(), (run_folder / "_partial.json").exists()) == (
        True,
        False,
    )


def test_a_row_on_which_a_shard_raises_is_failed_and_the_others_are_not(
    run: Run, folder: JobFolder, undisturbed: RunManifest, tmp_path: Path
):
    """A lost CUDA context takes its process along, so the shard raises: its rows are tried in
    parts, and it is done.
    """
    manifest = run("raise raise:once", compute=compute(attempts=1))
    assert (manifest.complete, manifest.statuses) == (True, {"failed": 1, "unchecked": 69})
    rows = folder.rows(manifest, str(tmp_path))
    culprit = rows.loc[MARKS[0]]
    assert (culprit["row_id"], culprit["status"]) == (MARKS[0], "failed")
    assert "CUDA error: no room for this row" in culprit["reason"]
    assert "_attempts/00002" in culprit["reason"]
    kept = rows["row_id"] != MARKS[0]
    expected = folder.rows(undisturbed, "undisturbed")
    pd.testing.assert_frame_equal(rows[kept], expected[kept], check_exact=True)
    found = attempts(folder, manifest, tmp_path)
    assert set(found) == {"00002", "00004"}
    assert found["00004"] == [("raised", True, False)], "nobody was to blame in the end"
    assert all(outcome == "raised" and charged for outcome, charged, _ in found["00002"])


def test_an_input_that_changes_meanwhile_ends_the_run(run: Run, job: JobFolder, tmp_path: Path):
    source = job.write_rows(count=100, marks=(25,))
    job.write_model(
        f"if (x[:, 0] == 1000).any():\n    open({str(source)!r}, 'ab').write(b'x')\nreturn"
        " self.logits(x)"
    )
    with pytest.raises(IntegrityError, match=r"rows\.parquet"):
        run(job=job)
    assert not list(tmp_path.glob("*/_attempts/*")), "the shards are not to blame"


def test_pre_passes_run_on_the_pool(run: Run, folder: JobFolder, tmp_path: Path):
    """CSV is split and a mean counted first; the same rows give the same means and attributions."""
    table = folder.rows_of("a.parquet")
    (tmp_path / "csv").mkdir()
    table.iloc[:30].to_csv(tmp_path / "csv" / "1.csv", index=False)
    table.iloc[30:].to_csv(tmp_path / "csv" / "2.csv", index=False)
    mean = {"baseline": {"kind": "mean"}}
    split = run(source={"uri": str(tmp_path / "csv"), "row_id": "id"}, **mean)
    direct = folder.run(
        source={"uri": "data/a.parquet", "row_id": "id"},
        output={"uri": str(tmp_path)},
        compute=compute(),
        **mean,
    )
    assert (split.rows_out, split.digest) == (60, direct.digest)
    assert split.run_id != direct.run_id
    (tmp_path / "csv" / "3.csv").write_text("id,a,b\n1,2,3\n")
    with pytest.raises(DataError, match=r"3\.csv[\s\S]*column `c`"):
        run(source={"uri": str(tmp_path / "csv"), "row_id": "id"})


# --- what Ray says -----------------------------------------------------------------------------

# As Ray 2.60 words them. The first names OOM and a node too, as a mere guess.
SIGKILL = (
    "The actor died unexpectedly before finishing this task. The actor is dead because its worker"
    " process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly"
    " exits with a connection error code 2. End of file. There are some potential root causes. (1)"
    " The process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force"
    " is called. (3) The worker is crashed unexpectedly."
)
NODE = (
    "The actor died because its node has died. Node Id: 7e "
    "the actor's node was terminated unexpectedly: health check failed"
)
OWNER = "The actor is dead because its owner has died. Owner Id: 01000000ffffffff"


@pytest.mark.parametrize(
    ("error", "ended", "kind"),
    [
        (exceptions.RayActorError(error_msg=SIGKILL), None, "killed_worker"),
        (exceptions.ActorUnavailableError("The actor is unavailable", b"0" * 16), None, "lost"),
        (exceptions.RayActorError(error_msg=SIGKILL), "stalled", "stalled"),
        (exceptions.RayActorError(error_msg=SIGKILL), "preempted", "preempted"),
        (
            exceptions.OutOfMemoryError("1 worker(s) were killed: the node ran low on memory"),
            None,
            "memory",
        ),
        (exceptions.RayActorError(error_msg=NODE), None, "lost"),
        (exceptions.RayActorError(error_msg=OWNER), None, "lost"),
        (exceptions.NodeDiedError("Node died"), None, "lost"),
        (exceptions.RayActorError(error_msg=NODE, preempted=True), None, "preempted"),
    ],
)
def test_what_took_a_worker_away(error: Exception, ended: Ended | None, kind: str):
    found = worker_failure(error, "node-1", ended=ended)
    assert (found.kind, found.node, found.error) == (kind, "node-1", None)


# --- Ray alone ---------------------------------------------------------------------------------


@pytest.mark.ray
def test_lost_workers_are_replaced_and_only_the_row_that_kills_alone_is_failed(
    ray_run: Run, folder: JobFolder, undisturbed: RunManifest, tmp_path: Path
):
    manifest = ray_run("kill hang:once kill:once", compute=compute(stall_s=10, workers=2))
    assert (manifest.complete, manifest.quarantined) == (True, ())
    assert attempts(folder, manifest, tmp_path) == {
        "00002": [("killed_worker", True, False)] * 2 + [("killed_worker", True, True)] * 4,
        "00004": [("stalled", True, False)],
        "00005": [("killed_worker", True, False)],
    }
    expected = folder.rows(undisturbed, "undisturbed").query("row_id != 25").reset_index(drop=True)
    rows = folder.rows(manifest, str(tmp_path))
    assert rows.loc[25, ["row_id", "status"]].tolist() == [25, "failed"]
    assert "the process died" in rows.loc[25, "reason"]
    pd.testing.assert_frame_equal(rows.drop(25).reset_index(drop=True), expected, check_exact=True)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        ("raise SpecError('only here', seen='a worker')", SpecError, "only here"),
        ("raise RuntimeError('no such driver')", SpecError, "no such driver"),
        ("os.kill(os.getpid(), 9)", TransientError, "worker start"),
    ],
)
def test_what_stops_workers_from_starting_keeps_its_type(
    ray_run: Run, job: JobFolder, build: str, kind: type[Exception], message: str
):
    place = job.write_model()
    elsewhere = (
        f"def build(here):\n    if os.getpid() != here:\n        {build}\n    return made()\n\ndef"
        " made("
    )
    place.write_text(place.read_text().replace("def build(", elsewhere))
    with pytest.raises(kind, match=message):
        ray_run(job=job, model=job.model(here=os.getpid()))


@pytest.mark.ray
def test_too_few_workers_are_told_with_what_the_cluster_has(ray_run: Run):
    with pytest.raises(TransientError, match=r"2 CPU[\s\S]*compute.workers"):
        ray_run(compute=compute(workers=2, cpus_per_worker=1.5, start_s=1))


# --- models that differ from process to process ------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize(
    "change",
    [
        ("torch.manual_seed(0)", "torch.manual_seed(os.getpid())"),
        ("return self.logits(x)", "return self.logits(x) * (1 + os.getpid())"),
    ],
    ids=["parameters", "a number of Python's"],
)
def test_a_factory_that_builds_another_model_in_each_process_is_refused(
    job: JobFolder, tmp_path: Path, local_ray: str, change: tuple[str, str]
):
    """Planning calls it twice and sees one model; a worker sees another, and says so before a row
    is computed.
    """
    job.write_model("return self.logits(x)")
    place = job.path / f"{job.module}.py"
    assert change[0] in place.read_text()
    place.write_text(place.read_text().replace(*change))
    with pytest.raises(IntegrityError, match="the factory built another model here"):
        job.run("ray", address=local_ray, output={"uri": str(tmp_path)})
    assert not list(tmp_path.glob("*/data/*"))


@pytest.mark.ray
def test_workers_of_a_cluster_get_the_kernels_that_were_planned(ray_run: Run, tmp_path: Path):
    manifest = ray_run(compute=compute(reproducible="require", workers=2))
    assert manifest.numerics is not None
    assert [name.split(" on ")[1] for name in manifest.environments] == [manifest.numerics.kernels]


@pytest.mark.ray
def test_a_ray_that_the_caller_started_is_used_and_stays_up(local_ray: str):
    """A notebook's own Ray went down with the first job."""
    import ray

    pool = RayPool()
    assert pool.map(str, [1, 2]) == ["1", "2"]
    pool.close()
    assert ray.is_initialized()
    assert ray.get_runtime_context().gcs_address == local_ray


# --- the pool that is chosen once a job is planned ---------------------------------------------


class Spy(LocalPool):
    def __init__(self, used: list[str], name: str) -> None:
        super().__init__()
        self.used, self.name = used, name

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        self.used.append(f"map on {self.name}")
        return super().map(function, items)

    def close(self) -> None:
        self.used.append(f"close {self.name}")
        super().close()


@pytest.mark.parametrize(
    ("work_s", "begun", "here"), [(1.0, False, True), (30.0, False, False), (1.0, True, False)]
)
def test_small_jobs_that_are_new_run_in_this_process(work_s: float, begun: bool, here: bool):
    used: list[str] = []
    workers = Spy(used, "ray")
    pool = Undecided(lambda: workers)
    assert (pool.settle(work_s, begun=begun) is not workers) == here
    assert pool.map(str, [1, 2]) == ["1", "2"]
    assert used == []
    assert pool.map(str, list(range(9))) == list("012345678")
    assert pool.settle(1.0, begun=False) is workers, "Ray is up: it is used"
    pool.close()
    assert used == ["map on ray", "close ray"]


def test_a_job_is_settled_by_its_plan_and_by_what_was_left(
    job: JobFolder, capsys: pytest.CaptureFixture[str]
):
    """Small and new: here. Begun before, and maybe lost with its process: on Ray."""
    first = job.run("auto")
    assert "runs in this process" in capsys.readouterr().out
    folder = job.path / "out" / first.run_id
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    settled: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Undecided, "settle", lambda self, work_s, *, begun: settled.append(begun) or LocalPool()
        )
        again = job.run("auto")
    assert settled == [True]
    assert again.digest == first.digest


@pytest.mark.parametrize(
    ("kind", "address", "gpus", "made"),
    [
        ("auto", None, 0, Undecided),
        ("auto", "auto", 0, RayPool),
        ("auto", None, 1, RayPool),
        ("ray", None, 0, RayPool),
        ("local", None, 0, LocalPool),
    ],
)
def test_which_pool_a_job_gets(kind: Any, address: str | None, gpus: int, made: type):
    assert type(make_planning_pool(Cluster(kind, address), Compute(gpus_per_worker=gpus))) is made


@pytest.mark.parametrize(
    ("address", "gpus", "refused"),
    [(None, 1, False), (None, 0.5, False), (None, 2, True), ("somewhere", 2, False)],
)
def test_gpus_that_a_ray_of_our_own_does_not_have_are_refused_at_once(
    address: str | None, gpus: float, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    """A cluster elsewhere may still grow: there it is told after `start_s`."""
    pool = RayPool(address)
    begun: list[object] = []
    monkeypatch.setattr(RayPool, "connect", lambda self: None)
    monkeypatch.setattr(RayPool, "_fill", lambda self, worker: begun.append(worker))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr("ray.put", lambda setup: setup)
    with pytest.raises(SpecError, match="at most 1, which Ray finds") if refused else nullcontext():
        pool.start(object(), Compute(gpus_per_worker=gpus), 1, 60.0)
    assert len(begun) == (not refused)
