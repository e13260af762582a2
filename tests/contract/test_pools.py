"""One suite over both pools; then what only processes can do: die, hang, and fail to start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integrand.schemas.errors import IntegrityError, SpecError, TransientError
from integrand.schemas.records import Plan, RunManifest
from tests.plugins.jobs import JobFolder

MARKS = (25, 45)
"""Rows that bring the first and the second fault: with ten rows a shard, shards 00002 and 00004."""

Run = Callable[..., RunManifest]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One Ray for the module; its address makes run_job leave it alone at the end."""
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """Seventy rows in two files, two of them marked. Every test writes to a place of its own."""
    made = JobFolder(tmp_path_factory.mktemp("pools"))
    made.write_rows("a.parquet", count=60, marks=MARKS, row_group_size=20)
    made.write_rows("b.parquet", count=10, start=60)
    made.write_model()
    return made


@pytest.fixture(scope="module")
def digest(folder: JobFolder) -> str:
    """The digest of an undisturbed run."""
    return folder.run(output={"uri": "undisturbed"}).digest


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def run(request: pytest.FixtureRequest, folder: JobFolder, tmp_path: Path) -> Run:
    """Run the job of `folder` on one kind of pool."""
    address = request.getfixturevalue("cluster") if request.param == "ray" else None
    return job_on(folder, tmp_path, request.param, address)


@pytest.fixture
def ray_run(folder: JobFolder, tmp_path: Path, cluster: str) -> Run:
    return job_on(folder, tmp_path, "ray", cluster)


def job_on(folder: JobFolder, out: Path, pool: str, address: str | None) -> Run:
    def run(faults: str = "", **changes: Any) -> RunManifest:
        changes = {"output": {"uri": str(out)}, "compute": compute()} | changes
        model = folder.model(faults=faults, folder=str(out))
        return folder.run(pool, address=address, **{"model": model} | changes)

    return run


def compute(**changes: Any) -> dict[str, Any]:
    return {"shard_rows": 10, "batch_rows": 16, "workers": 2} | changes


def attempts(folder: JobFolder, manifest: RunManifest, out: Path) -> dict[str, list[tuple[str, bool, bool]]]:
    """(outcome, charged, alone) of every failed attempt, by shard."""
    plan = Plan.model_validate_json((out / manifest.run_id / "_plan.json").read_bytes())
    found = folder.ledger(manifest, plan, str(out)).attempts
    return {shard: [(a.outcome, a.charged, a.alone) for a in known] for shard, known in sorted(found.items())}


# --- both pools --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shard_rows", "workers"), [(1, 2), (7, 1), (7, 2), (64, 1), (64, 2)])
def test_one_digest_for_any_shards_and_workers(run: Run, digest: str, shard_rows: int, workers: int):
    manifest = run(compute=compute(shard_rows=shard_rows, workers=workers))
    assert (manifest.complete, manifest.rows_out, manifest.digest) == (True, 70, digest)


def test_each_row_is_in_the_data_once_and_in_order(run: Run, folder: JobFolder, tmp_path: Path):
    manifest = run()
    assert folder.rows(manifest, str(tmp_path))["row_id"].tolist() == list(range(70))
    assert manifest.statuses == {"unchecked": 70}
    assert manifest.evaluations == 70 * 8


def test_running_again_computes_only_what_is_missing(run: Run, folder: JobFolder, tmp_path: Path):
    first = run()
    run_folder = tmp_path / first.run_id
    kept = {p: p.stat().st_mtime_ns for p in folder.objects(first, str(tmp_path))}
    lost = run_folder / "data" / "part-00003.parquet"
    lost.unlink()
    (run_folder / "_manifest.json").unlink()
    again = run()
    assert (again.complete, again.digest, again.run_id) == (True, first.digest, first.run_id)
    changed = {p for p in folder.objects(again, str(tmp_path)) if p.stat().st_mtime_ns != kept[p]}
    assert changed == {lost}


def test_a_complete_run_is_left_alone(run: Run, tmp_path: Path):
    first = run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / first.run_id).rglob("*") if p.is_file()}
    assert run() == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / first.run_id).rglob("*") if p.is_file()} == before


def test_a_shard_that_raises_is_quarantined_and_the_others_finish(run: Run, folder: JobFolder, tmp_path: Path):
    manifest = run("raise", compute=compute(attempts=2))
    assert (manifest.complete, manifest.rows_out, manifest.missing) == (False, 60, ("00002",))
    given_up = manifest.quarantined[0]
    assert (given_up.shard, given_up.rows, given_up.attempts) == ("00002", 10, 2)
    assert "MemoryError: no room for this row" in given_up.reason
    assert "in logits" in given_up.detail
    assert attempts(folder, manifest, tmp_path) == {"00002": [("raised", True, False)] * 2}
    assert not (tmp_path / manifest.run_id / "_manifest.json").exists()
    assert (tmp_path / manifest.run_id / "_partial.json").exists()


def test_a_quarantined_shard_is_not_tried_again_until_it_is_released(run: Run, folder: JobFolder, tmp_path: Path):
    first = run("raise raise:once", compute=compute(attempts=1))
    assert [q.shard for q in first.quarantined] == ["00002", "00004"]
    assert run("raise raise:once", compute=compute(attempts=1)).quarantined == first.quarantined
    for record in (tmp_path / first.run_id).glob("_*/00004*"):
        record.unlink() if record.is_file() else [p.unlink() for p in record.iterdir()]
    assert [q.shard for q in run("raise raise:once", compute=compute(attempts=1)).quarantined] == ["00002"]


def test_a_storage_fault_is_not_charged(run: Run, digest: str, folder: JobFolder, tmp_path: Path):
    manifest = run("transient:once", compute=compute(attempts=1))
    assert (manifest.complete, manifest.digest) == (True, digest)
    assert attempts(folder, manifest, tmp_path) == {"00002": [("storage", False, False)]}


def test_storage_faults_without_end_are_retryable(run: Run):
    with pytest.raises(TransientError, match="5 faults in a row"):
        run("transient")


def test_an_integrity_error_ends_the_run(run: Run, tmp_path: Path):
    with pytest.raises(IntegrityError, match="not what was planned"):
        run("integrity")
    assert not list(tmp_path.glob("*/_attempts/*"))


def test_an_input_that_changes_meanwhile_ends_the_run(run: Run, job: JobFolder, tmp_path: Path):
    job.write_rows(count=100)
    target = tmp_path / "data" / "rows.parquet"
    job.write_model(f"if x.shape[0] > 1 and (x[:, 0] == 1000).any(): open({str(target)!r}, 'ab').write(b'x')\n"
                    "return self.logits(x)")  # fmt: skip
    job.write_rows(count=100, marks=(25,))
    place = {"source": {"uri": str(target.parent), "row_id": "id"}}
    code = {"entrypoint": f"{job.module}:build", "code": [str(job.path / f"{job.module}.py")], "kind": "factory"}
    with pytest.raises(IntegrityError, match=r"rows\.parquet"):
        run(model=code, **place)


def test_pre_passes_run_on_the_pool(run: Run, folder: JobFolder, tmp_path: Path):
    """CSV is split and a mean counted first; the same rows give the same means and attributions."""
    table = folder.rows_of("a.parquet")
    (tmp_path / "csv").mkdir()
    table.iloc[:30].to_csv(tmp_path / "csv" / "1.csv", index=False)
    table.iloc[30:].to_csv(tmp_path / "csv" / "2.csv", index=False)
    mean = {"baseline": {"kind": "mean"}}
    split = run(source={"uri": str(tmp_path / "csv"), "row_id": "id"}, **mean)
    direct = folder.run(source={"uri": "data/a.parquet", "row_id": "id"}, output={"uri": str(tmp_path)}, **mean)
    assert (split.rows_out, split.digest) == (60, direct.digest)
    assert split.run_id != direct.run_id


# --- Ray alone ---------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_workers_lost_once_are_replaced_and_leave_no_trace_in_the_rows(ray_run: Run, digest: str, folder: JobFolder,
                                                                       tmp_path: Path):  # fmt: skip
    manifest = ray_run("kill:once hang:once", compute=compute(stall_s=4))
    assert (manifest.complete, manifest.digest) == (True, digest)
    assert attempts(folder, manifest, tmp_path) == {
        "00002": [("killed_worker", True, False)], "00004": [("stalled", True, False)],
    }  # fmt: skip


@pytest.mark.ray
def test_a_shard_that_kills_its_workers_is_tried_alone_and_given_up(ray_run: Run, folder: JobFolder, tmp_path: Path):
    manifest = ray_run("kill")
    assert (manifest.complete, manifest.rows_out) == (False, 60)
    assert [(q.shard, q.attempts) for q in manifest.quarantined] == [("00002", 3)]
    lost = ("killed_worker", True)
    assert attempts(folder, manifest, tmp_path) == {"00002": [(*lost, False), (*lost, False), (*lost, True)]}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        ("raise SpecError('only here', seen='a worker')", SpecError, "only here"),
        ("raise RuntimeError('no such driver')", SpecError, "no such driver"),
        ("os.kill(os.getpid(), 9)", TransientError, "worker start"),
    ],
)
def test_what_stops_workers_from_starting_keeps_its_type(ray_run: Run, job: JobFolder, build: str, kind: type[Exception],
                                                         message: str):  # fmt: skip
    place = job.write_model()
    text = place.read_text().replace("def build(", f"def build(here=0, **more):\n    if os.getpid() != here:\n        {build}"
                                     "\n    return made(**more)\n\ndef made(")  # fmt: skip
    place.write_text(text)
    code = {"kind": "factory", "entrypoint": f"{job.module}:build", "code": [str(place)], "arguments": {"here": os.getpid()}}
    with pytest.raises(kind, match=message):
        ray_run(model=code, compute=compute(workers=1))


@pytest.mark.ray
def test_a_range_of_workers_makes_do_with_what_there_is(ray_run: Run, digest: str):
    manifest = ray_run(compute=compute(workers={"min": 1, "max": 9}))
    assert (manifest.complete, manifest.digest) == (True, digest)


@pytest.mark.ray
def test_too_few_workers_are_told_with_what_the_cluster_has(ray_run: Run):
    with pytest.raises(TransientError, match=r"3 CPU[\s\S]*compute.workers"):
        ray_run(compute=compute(workers=2, cpus_per_worker=2, start_s=1))
