"""A run through its life: interrupted, killed and taken up again, finished, pointed at, and left
alone.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.records import (
    RunManifest,
)
from integrand.schemas.sidecars import (
    Pointer,
)
from integrand.service.checks.verify import verify_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import limits_exceeded, run_job
from tests.plugins import drivers
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import Family, end, start, wait_until


def latest(job: JobFolder, name: str = "test") -> Pointer:
    return Pointer.model_validate_json((job.path / "out" / "_latest" / f"{name}.json").read_bytes())


def run(
    job: JobFolder, *, salt: str = "", date: str | None = None, mixed: bool = False, **changes: Any
) -> RunManifest:
    return run_job(
        job.spec(**changes),
        base=str(job.path),
        operator=Operator(trusted=(job.module,)),
        cluster=Cluster("local"),
        salt=salt,
        logical_date=date,
        allow_mixed=mixed,
        listen=lambda event: None,
    )


def test_a_finished_run_holds_what_the_design_says(job: JobFolder):
    manifest = run(job)
    folder = job.path / "out" / manifest.run_id
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    sidecars = {"_plan.json", "_manifest.json", "_progress.json"}
    assert names == sidecars | {"data/part-00000.parquet", "data/part-00001.parquet"}
    assert latest(job).run_id == manifest.run_id
    assert json.loads((folder / "_plan.json").read_bytes())["run_id"] == manifest.run_id


def test_the_pointer_moves_only_to_later_dates(job: JobFolder):
    first = run(job, date="2026-01-02")
    second = run(job, salt="b", date="2026-01-01")
    assert first.run_id != second.run_id
    assert latest(job).run_id == first.run_id
    third = run(job, salt="c", date="2026-01-03")
    assert latest(job).run_id == third.run_id


def test_a_complete_run_is_pointed_at_again_if_its_driver_died_before(job: JobFolder):
    manifest = run(job, date="2026-01-02")
    (job.path / "out" / "_latest" / "test.json").unlink()
    assert run(job) == manifest
    assert latest(job).logical_date == "2026-01-02"


def test_the_same_job_under_another_name_is_the_same_run_with_a_pointer_of_its_own(job: JobFolder):
    assert run(job) == run(job, name="nightly")
    assert latest(job, "nightly").run_id == latest(job, "test").run_id


def test_a_later_date_of_the_same_run_moves_the_pointer(job: JobFolder):
    first = run(job, date="2026-01-01")
    other = run(job, salt="b", date="2026-01-02")
    assert latest(job).run_id == other.run_id
    run(job, date="2026-01-03")
    assert latest(job).run_id == first.run_id


def test_two_drivers_on_one_run_end_with_each_row_once(job: JobFolder):
    """In processes of their own: threads would share torch's thread count and its tracer."""
    job.write_rows(count=60)
    alone = job.run(output={"uri": "alone"})
    both = [drivers.start(job, name=name) for name in ("one", "two")]
    assert [drivers.finish(driver) for driver in both] == [0, 0]
    assert {latest(job, "one").run_id, latest(job, "two").run_id} == {alone.run_id}
    done = RunManifest.model_validate_json(
        (job.path / "out" / alone.run_id / "_manifest.json").read_bytes()
    )
    assert (done.complete, done.digest) == (True, alone.digest)
    assert job.rows(done)["row_id"].tolist() == list(range(60))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([f"row {i}" for i in range(20)]),
        pa.array([f"row {i}" for i in range(20)]).dictionary_encode(),
        pa.array([f"row {i}" for i in range(20)], pa.large_string()),
        pa.array([str(i).encode() for i in range(20)], pa.binary()),
        pa.array(range(20), pa.timestamp("us", tz="UTC")),
        pa.array([i / 3 for i in range(20)], pa.float64()),
        pa.array(range(20), pa.uint64()),
        pa.array([Decimal(i) for i in range(20)], pa.decimal128(5, 1)),
        pa.array([i * 1000 for i in range(20)], pa.date32()),
    ],
    ids=lambda ids: str(ids.type),
)
def test_a_row_id_of_any_plain_type_comes_back(job: JobFolder, ids: pa.Array):
    job.write_rows(id=ids)
    manifest = run(job)
    data = pq.read_table(job.path / "out" / manifest.run_id / "data")
    assert data["row_id"].to_pylist() == ids.to_pylist()


def test_a_fresh_salt_is_another_run_with_the_same_rows(job: JobFolder):
    first, second = run(job), run(job, salt="again")
    assert first.run_id != second.run_id
    assert first.digest == second.digest


def test_a_resumed_run_keeps_its_shards_and_takes_the_deadlines_of_today(job: JobFolder):
    job.write_rows(count=40, row_group_size=10, write_page_checksum=True)
    job.flip_bit("rows.parquet", row_group=3)
    first = run(job, compute={"shard_rows": 10, "batch_rows": 16, "attempts": 1})
    assert [q.attempts for q in first.quarantined] == [2], "once whole, and once read alone"
    for place in (job.path / "out" / first.run_id / "_quarantine").iterdir():
        place.unlink()
    again = run(job, compute={"shard_rows": 3, "batch_rows": 16, "attempts": 4})
    assert (again.run_id, again.shards_planned) == (first.run_id, 4)
    assert [q.attempts for q in again.quarantined] == [5], "whole until there were four"


def test_another_torch_build_is_refused_or_lowers_the_level(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
):
    first = run(job)
    assert first.determinism == "bitwise"
    folder = job.path / "out" / first.run_id
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(IntegrityError, match=r"torch build[\s\S]*9\.9\.9"):
        run(job)
    mixed = run(job, mixed=True)
    assert (mixed.complete, mixed.determinism, mixed.digest) == (True, "tolerance", first.digest)


def test_a_date_that_is_none_is_refused_before_the_work(job: JobFolder):
    with pytest.raises(SpecError, match="ISO 8601"):
        run(job, date="yesterday")
    assert not list((job.path / "out").glob("*/data/*"))


def test_an_edited_model_file_is_another_run_with_other_rows(job: JobFolder):
    """In one process, as in a notebook: what was imported before must not be used again."""
    first = run(job)
    job.write_model("return 2 * self.logits(x)")
    second = run(job)
    job.write_model()
    third = run(job)
    assert first.run_id != second.run_id
    assert first == third
    doubled, plain = job.rows(second), job.rows(first)
    assert doubled["attribution_sum"].to_numpy() == pytest.approx(
        2 * plain["attribution_sum"].to_numpy()
    )


@pytest.mark.parametrize(
    ("limits", "exceeded"),
    [
        ({}, []),
        ({"max_bad_share": 0.05}, []),
        ({"max_bad_share": 0.04}, ["limits.max_bad_share: 0.05 is above 0.04"]),
        ({"max_uncertified_share": 0.0}, []),
    ],
)
def test_limits_are_told_in_words(job: JobFolder, limits: dict[str, Any], exceeded: list[str]):
    job.write_rows(a=[0.5] * 19 + [float("nan")])
    spec = job.spec(limits=limits)
    assert limits_exceeded(spec, run(job, limits=limits)) == exceeded


# --- real drivers ------------------------------------------------------------------------------


@pytest.fixture
def family() -> Iterator[Family]:
    found = Family()
    yield found
    found.kill()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.timestamp("us", tz="UTC"), pa.timestamp("ns", tz="UTC")),
        (pa.decimal128(5, 0), pa.decimal128(9, 0)),
        (pa.int32(), pa.int64()),
    ],
    ids=str,
)
def test_files_with_ids_of_like_types_make_one_table(
    job: JobFolder, one: pa.DataType, other: pa.DataType
):
    """Whatever reads the folder as one dataset needs one type."""
    number = Decimal if pa.types.is_decimal(one) else int
    job.write_rows(count=10, id=pa.array([number(i) for i in range(10)], one))
    job.write_rows("more.parquet", count=10, id=pa.array([number(i) for i in range(10, 20)], other))
    manifest = job.run()
    assert pq.read_table(job.path / "out" / manifest.run_id / "data").num_rows == 20
    assert verify_run(job.path / "out", sample=0).holds


@pytest.mark.parametrize("moved", ["source", "weights", "text and output"])
def test_a_run_is_taken_up_although_what_it_reads_has_moved(job: JobFolder, moved: str):
    """Where things lie is no part of a run's identity."""
    table = job.rows_of("rows.parquet")
    changes: dict[str, Any] = {"source": {"uri": "data", "row_id": "id"}, "output": {"uri": "out"}}
    if moved == "text and output":
        (job.path / "data" / "rows.parquet").unlink()
        table.to_csv(job.path / "data" / "rows.csv", index=False)
    job.write_weights()
    first = job.run(model=job.weighted(), **changes)
    data = job.path / "out" / first.run_id
    (data / "_manifest.json").unlink()
    (data / "data" / "part-00001.parquet").unlink()
    places = {
        "source": ("data", "elsewhere"),
        "weights": ("weights.safetensors", "w.safetensors"),
        "text and output": ("out", "out2"),
    }
    (job.path / places[moved][0]).rename(job.path / places[moved][1])
    changes |= {
        "source": {"source": {"uri": "elsewhere", "row_id": "id"}},
        "weights": {},
        "text and output": {"output": {"uri": "out2"}},
    }[moved]
    weights = "w.safetensors" if moved == "weights" else "weights.safetensors"
    again = job.run(model=job.weighted(weights), **changes)
    assert (again.complete, again.run_id, again.digest) == (True, first.run_id, first.digest)


@pytest.mark.ray
def test_interrupted_then_killed_then_finished_gives_each_row_once(job: JobFolder, family: Family):
    """Slow while the file `slow` is there. A run that began on Ray may end in one process: the rows
    are the same.
    """
    job.write_model(
        "if (self.folder / 'slow').exists():\n    time.sleep(0.05)\nreturn self.logits(x)"
    )
    job.write_rows(count=300)
    model = job.model(folder=str(job.path))
    undisturbed = job.run(model=model, output={"uri": "undisturbed"})
    sizes = {"shard_rows": 10, "batch_rows": 16, "workers": {"min": 1, "max": 2}}
    spec = job.write_spec(model=model, compute=sizes)
    data = job.path / "out" / undisturbed.run_id / "data"

    def objects() -> int:
        return len(list(data.glob("*.parquet")))

    (job.path / "slow").touch()
    driver = start(family, job, spec)
    wait_until(lambda: objects() >= 2 or driver.poll() is not None)
    code, output = end(driver, signal.SIGINT)
    assert code == 130, output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    assert family.left(within=15) == {}
    interrupted = objects()
    assert 2 <= interrupted < 30

    driver = start(family, job, spec)
    wait_until(lambda: objects() >= interrupted + 2 or driver.poll() is not None)
    code, output = end(driver, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    # Ray's own agents may take a minute to see that it is gone; nobody may compute
    agents = family.left(within=5)
    assert [command for command in agents.values() if "agent" not in command.lower()] == []
    killed = objects()
    assert interrupted + 2 <= killed < 30
    kept = {p: p.stat().st_mtime_ns for p in data.glob("*.parquet")}

    (job.path / "slow").unlink()
    code, output = end(start(family, job, spec, "--pool", "local"))
    assert code == 0, output
    assert f"{killed} of 30 shards are done" in output
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    finished = RunManifest.model_validate_json((data.parent / "_manifest.json").read_bytes())
    assert Counter(job.rows(finished)["row_id"]) == Counter(range(300))
    assert (finished.complete, finished.digest) == (True, undisturbed.digest)
