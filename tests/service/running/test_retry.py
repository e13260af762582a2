"""`retry-quarantined`: a partial run completed from its folder alone, once the cause is fixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    Attempt,
    Pointer,
)
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import verify_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.service.running.ledger import read_ledger
from integrand.service.running.retry import retry_quarantined
from integrand.service.runs.manifest import load_plan
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder

DATE = "2026-01-02"


@dataclass(frozen=True)
class Partial:
    """A run of three shards, of which the second was given up: a page of the source does not
    decode.
    """

    job: JobFolder
    manifest: RunManifest
    sound: bytes

    @property
    def folder(self) -> Path:
        return self.job.path / "out" / self.manifest.run_id

    def fix(self) -> None:
        (self.job.path / "data" / "rows.parquet").write_bytes(self.sound)

    def retry(self, *trusted: str) -> RunManifest | None:
        return retry_quarantined(
            self.folder,
            operator=Operator(trusted=trusted or (self.job.module,)),
            cluster=Cluster("local"),
        )

    def outcomes(self) -> list[str]:
        names = sorted((self.folder / "_attempts" / "00001").iterdir())
        return [Attempt.model_validate_json(name.read_bytes()).outcome for name in names]


@pytest.fixture
def partial(job: JobFolder) -> Partial:
    job.write_rows(count=60, row_group_size=20, write_page_checksum=True)
    job.write_weights()
    sound = job.flip_bit("rows.parquet", 1)
    spec = job.spec(
        model=job.weighted(), compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1}
    )
    manifest = run_job(
        spec,
        base=str(job.path),
        operator=Operator(trusted=(job.module,)),
        cluster=Cluster("local"),
        logical_date=DATE,
    )
    assert [q.shard for q in manifest.quarantined] == ["00001"]
    return Partial(job, manifest, sound)


def test_a_mended_run_is_completed_from_its_folder_alone(
    partial: Partial, monkeypatch: pytest.MonkeyPatch
):
    """Weights and code were named by relative paths; the driver stands elsewhere and has no
    spec.
    """
    job = partial.job
    before = partial.outcomes()
    kept = {p: p.stat().st_mtime_ns for p in (partial.folder / "data").iterdir()}
    partial.fix()
    monkeypatch.chdir("/")
    manifest = partial.retry()
    assert manifest is not None
    assert (manifest.complete, manifest.quarantined, manifest.logical_date) == (True, (), DATE)
    assert manifest.digest == job.run(model=job.weighted(), output={"uri": "undisturbed"}).digest
    assert job.rows(manifest)["row_id"].tolist() == list(range(60))
    assert partial.outcomes() == [*before, "released"]
    assert not list((partial.folder / "_quarantine").iterdir())
    assert not (partial.folder / "_partial.json").exists()
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    pointer = Pointer.model_validate_json((job.path / "out" / "_latest" / "test.json").read_bytes())
    assert (pointer.run_id, pointer.logical_date) == (manifest.run_id, DATE)
    assert verify_run(partial.folder, sample=60, trusted=(job.module,)).holds


@pytest.mark.ray
def test_a_retry_runs_on_actors_as_a_run_does(partial: Partial):
    partial.fix()
    manifest = retry_quarantined(
        partial.folder, operator=Operator(trusted=(partial.job.module,)), cluster=Cluster("ray")
    )
    assert manifest is not None
    assert (manifest.complete, manifest.determinism) == (True, "bitwise")


def test_a_run_that_is_not_mended_stays_partial_with_its_history(partial: Partial):
    before = partial.outcomes()
    manifest = partial.retry()
    assert manifest is not None
    assert (manifest.complete, [q.shard for q in manifest.quarantined]) == (False, ["00001"])
    assert partial.outcomes() == [*before, "released", *before]
    stored = RunManifest.model_validate_json((partial.folder / "_partial.json").read_bytes())
    assert (stored.quarantined, stored.logical_date) == (manifest.quarantined, DATE)
    partial.fix()
    again = partial.retry()
    assert again is not None
    assert again.complete


def test_a_run_without_quarantine_is_left_alone(job: JobFolder):
    manifest = job.run()
    run, operator, cluster = job.run_uri(manifest), Operator((job.module,)), Cluster("local")
    assert retry_quarantined(run, operator=operator, cluster=cluster) is None
    (job.path / "out" / manifest.run_id / "_manifest.json").unlink()
    assert retry_quarantined(run, operator=operator, cluster=cluster) is None


def test_a_retry_that_died_after_its_release_is_taken_up_again(partial: Partial):
    store, uri = Store(), Uri("file", str(partial.folder))
    ledger = read_ledger(store, uri, partial.job.plan(model=partial.job.weighted()))
    ledger.release("00001")
    partial.fix()
    manifest = partial.retry()
    assert manifest is not None
    assert manifest.complete


def test_a_record_of_a_shard_that_was_committed_since_is_released(partial: Partial):
    partial.fix()
    record = partial.folder / "_quarantine" / "00001.json"
    content = record.read_bytes()
    partial.retry()
    record.write_bytes(content)
    again = partial.retry()
    assert again is not None
    assert (again.complete, record.exists()) == (True, False)


def edit_code(partial: Partial) -> None:
    partial.job.write_model("return 2 * self.logits(x)")


def edit_weights(partial: Partial) -> None:
    partial.job.write_weights(seed=2)


@pytest.mark.parametrize("edit", [edit_code, edit_weights])
def test_another_model_completes_no_run(partial: Partial, edit: Callable[[Partial], None]):
    partial.fix()
    edit(partial)
    with pytest.raises(IntegrityError):
        partial.retry()
    assert not (partial.folder / "_manifest.json").exists()


def test_a_retry_that_came_to_nothing_leaves_a_folder_that_holds(partial: Partial):
    """Its quarantine was released, and its partial manifest is of before."""
    store, run = Store(), Uri("file", str(partial.folder))
    ledger = read_ledger(store, run, load_plan(store, run)[0])
    ledger.release("00001")
    assert verify_run(partial.folder, sample=0).findings == ()
    assert partial.retry() is not None, "not fixed: it is given up once more"
    assert verify_run(partial.folder, sample=0).findings == ()


@pytest.mark.parametrize("name", ["data/rows.parquet", "weights.safetensors"])
def test_nothing_is_released_that_could_not_be_read(partial: Partial, name: str):
    (partial.job.path / name).rename(partial.job.path / "moved")
    with pytest.raises(DataError, match="nothing there"):
        partial.retry()
    assert (partial.folder / "_quarantine" / "00001.json").exists()


def test_a_record_beside_a_committed_shard_stops_no_run(partial: Partial):
    """Another driver committed the shard after this one had given it up."""
    record = (partial.folder / "_quarantine" / "00001.json").read_bytes()
    partial.fix()
    assert partial.retry() is not None
    (partial.folder / "_manifest.json").unlink()
    (partial.folder / "_quarantine" / "00001.json").write_bytes(record)
    (partial.folder / "data" / "part-00002.parquet").unlink()
    manifest = partial.job.run(
        model=partial.job.weighted(),
        limits={"max_quarantined": 0},
        compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1},
    )
    assert (manifest.complete, manifest.run_id) == (True, partial.manifest.run_id)


def test_nothing_is_released_without_trust(partial: Partial):
    before = partial.outcomes()
    with pytest.raises(SpecError, match="trust-model-code"):
        partial.retry("other")
    assert partial.outcomes() == before
    assert (partial.folder / "_quarantine" / "00001.json").exists()


def test_a_moved_folder_is_completed_where_it_is(partial: Partial):
    """The pointer is written beside the folder, not where the plan once put it."""
    partial.fix()
    place = partial.job.path / "elsewhere" / partial.manifest.run_id
    shutil.move(partial.folder, place)
    manifest = retry_quarantined(
        place, operator=Operator(trusted=(partial.job.module,)), cluster=Cluster("local")
    )
    assert manifest is not None
    assert manifest.complete
    assert (partial.job.path / "elsewhere" / "_latest" / "test.json").exists()
    assert not (partial.job.path / "out" / "_latest" / "test.json").exists()
