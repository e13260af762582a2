"""The run id holds whatever can change a value and nothing else; planning reads footers and freezes
every choice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.record import dump
from integrand.schemas.records import Plan
from integrand.schemas.specs.job import parse_spec
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.planning import planner
from integrand.service.running.jobs import plan_job, run_job
from integrand.workers.storage.store import Access, Store
from tests.plugins.jobs import COLUMNS, JobFolder

Change = Callable[[JobFolder], dict[str, Any]]


@pytest.fixture
def job(job: JobFolder) -> JobFolder:
    """As always, with a second feature set, and weights in a file."""
    job.write_weights()
    return job


def plan(job: JobFolder, **changes: Any) -> Plan:
    return job.plan(**{"model": job.weighted()} | changes)


def compute(**changes: Any) -> dict[str, Any]:
    return {"compute": {"shard_rows": 10, "batch_rows": 16} | changes}


def edited_code(job: JobFolder) -> dict[str, Any]:
    place = job.path / f"{job.module}.py"
    place.write_text(place.read_text() + "\n# another line\n")
    return {}


def edited_weights(job: JobFolder) -> dict[str, Any]:
    job.write_weights(seed=2)
    return {}


def edited_row(job: JobFolder) -> dict[str, Any]:
    job.write_rows(start=1)
    return {}


def more_rows(job: JobFolder) -> dict[str, Any]:
    job.write_rows("more.parquet", start=20)
    return {}


def renamed_file(job: JobFolder) -> dict[str, Any]:
    (job.path / "data" / "rows.parquet").rename(job.path / "data" / "other.parquet")
    return {}


CAN_CHANGE_A_VALUE: dict[str, Change] = {
    "inputs": lambda job: {"inputs": [{"name": "features", "columns": list(COLUMNS), "divide": 2}]},
    "order of columns": lambda job: {
        "inputs": [{"name": "features", "columns": list(COLUMNS[::-1])}]
    },
    "input baseline": lambda job: {
        "inputs": [{"name": "features", "columns": list(COLUMNS), "baseline": {"kind": "mean"}}]
    },
    "forward_args": lambda job: {"forward_args": [{"name": "more", "column": "c"}]},
    "target": lambda job: {"target": {"kind": "index", "index": 0}},
    "transform": lambda job: {"target": {"kind": "index", "index": 1, "transform": "softmax"}},
    "baseline": lambda job: {"baseline": {"kind": "constant", "value": 1}},
    "accuracy": lambda job: {"accuracy": {"kind": "fixed", "rule": "gauss_legendre", "steps": 9}},
    "rule": lambda job: {"accuracy": {"kind": "fixed", "rule": "midpoint", "steps": 8}},
    "arguments": lambda job: {"model": job.weighted() | {"arguments": {"folder": "x"}}},
    "entrypoint": lambda job: {"model": job.weighted() | {"entrypoint": f"{job.module}:also"}},
    "weights": edited_weights,
    "no weights": lambda job: {"model": job.model()},
    "model code": edited_code,
    "precision": lambda job: compute(precision="float64"),
    "batch_rows": lambda job: compute(batch_rows=32),
    "threads": lambda job: compute(threads=2),
    "row_id": lambda job: {"source": {"uri": "data"}},
    "source content": edited_row,
    "source files": more_rows,
    "source path": renamed_file,
    "salt": lambda job: {"salt": "again"},
}


@pytest.mark.parametrize("change", CAN_CHANGE_A_VALUE.values(), ids=CAN_CHANGE_A_VALUE)
def test_what_can_change_a_value_is_in_the_run_id(job: JobFolder, change: Change):
    before = plan(job).run_id
    assert plan(job, **change(job)).run_id != before


def test_the_numerics_version_is_in_the_run_id(job: JobFolder, monkeypatch: pytest.MonkeyPatch):
    before = plan(job).run_id
    monkeypatch.setattr(planner, "NUMERICS_VERSION", planner.NUMERICS_VERSION + 1)
    assert plan(job).run_id != before


def moved_source(job: JobFolder) -> dict[str, Any]:
    shutil.move(job.path / "data", job.path / "elsewhere" / "deeper")
    return {"source": {"uri": "elsewhere/deeper", "row_id": "id"}}


def moved_weights(job: JobFolder) -> dict[str, Any]:
    job.write_weights("elsewhere/renamed.safetensors")
    return {"model": job.weighted("elsewhere/renamed.safetensors")}


def moved_code(job: JobFolder) -> dict[str, Any]:
    (job.path / "elsewhere").mkdir()
    shutil.move(job.path / f"{job.module}.py", job.path / "elsewhere")
    return {"model": job.weighted() | {"code": [f"elsewhere/{job.module}.py"]}}


CANNOT_CHANGE_A_VALUE: dict[str, Change] = {
    "output.uri": lambda job: {"output": {"uri": "elsewhere"}},
    "name": lambda job: {"name": "other"},
    "workers": lambda job: compute(workers=3),
    "a range of workers": lambda job: compute(workers={"min": 1, "max": 4}),
    "cpus_per_worker": lambda job: compute(threads=1, cpus_per_worker=2),
    "attempts": lambda job: compute(attempts=7),
    "stall_s": lambda job: compute(stall_s=5),
    "start_s": lambda job: compute(start_s=5),
    "shard_rows": lambda job: compute(shard_rows=3),
    "shard_bytes": lambda job: {"compute": {"shard_bytes": 100, "batch_rows": 16}},
    "memory": lambda job: compute(memory=1 << 24),
    "limits": lambda job: {"limits": {"max_bad_share": 0.1, "max_quarantined": 0}},
    "source root": moved_source,
    "source as a glob": lambda job: {"source": {"uri": "data/*.parquet", "row_id": "id"}},
    "source as a list": lambda job: {
        "source": {"uri": ["data/rows.parquet"], "row_id": "id", "format": "parquet"}
    },
    "weights location": moved_weights,
    "code location": moved_code,
    "defaults spelled out": lambda job: {"baseline": {"kind": "zero"}, "forward_args": []},
}


@pytest.mark.parametrize("change", CANNOT_CHANGE_A_VALUE.values(), ids=CANNOT_CHANGE_A_VALUE)
def test_what_cannot_change_a_value_is_not_in_the_run_id(job: JobFolder, change: Change):
    before = plan(job).run_id
    assert plan(job, **change(job)).run_id == before


def test_planning_twice_gives_the_same_plan(job: JobFolder):
    one, two = plan(job), plan(job)
    untimed = {"created": "", "projection": one.projection}
    assert one.model_copy(update=untimed) == two.model_copy(update=untimed)
    assert Plan.model_validate_json(dump(one)) == one


@pytest.mark.needs_strict_kernels
def test_every_choice_is_resolved(job: JobFolder):
    made = job.plan(compute={"workers": 2})
    assert made.numerics.batch_rows >= 8
    assert (made.numerics.threads, made.numerics.precision, made.numerics.device) == (
        1,
        "float32",
        "cpu",
    )
    assert (made.rows, made.row_id_type, made.numerics.outputs) == (20, "int64", 2)
    assert made.inputs[0].shape == (3,)
    assert made.spec.output.uri == str(job.path / "out")
    assert made.spec.source.uris == (str(job.path / "data"),)
    assert made.projection.seconds_per_row > 0
    assert made.projection.memory_bytes > 1 << 20
    assert made.warnings == ()


def test_targets_multiply_rows(job: JobFolder):
    made = job.plan(target={"kind": "all"})
    assert made.targets_per_row == 2
    assert made.projection.output_bytes == 2 * job.plan().projection.output_bytes


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ({"shard_rows": 7}, [6, 7, 7]),
        ({"shard_bytes": 1}, [1] * 20),
        ({"shard_rows": "auto"}, [20]),
        ({}, [20]),
    ],
)
def test_shards_are_cut_as_asked(job: JobFolder, sizes: dict[str, Any], rows: list[int]):
    assert [shard.rows for shard in job.plan(compute=sizes).shards] == rows


def test_planning_runs_nothing_and_leaves_nothing(job: JobFolder):
    job.plan()
    assert [p for p in (job.path / "out").rglob("*") if p.is_file()] == []


def test_model_code_that_is_not_trusted_is_never_imported(job: JobFolder):
    place = job.path / f"{job.module}.py"
    marker = job.path / "imported"
    place.write_text(f"open({str(marker)!r}, 'w')\n" + place.read_text())
    for trusted in ((), ("model",), (job.module[:-1],), (job.module + ".sub",)):
        with pytest.raises(SpecError, match="code that the operator trusts"):
            plan_job(job.spec(), base=str(job.path), operator=Operator(trusted=trusted))
    assert not marker.exists()
    job.plan()
    assert marker.exists()


# --- sources -----------------------------------------------------------------------------------


def test_planning_a_thousand_files_reads_footers_alone(job: JobFolder):
    """The data pages of all but the four sampled files are overwritten: nobody may look at them."""
    shutil.rmtree(job.path / "data")
    first = job.write_rows("0000.parquet", count=5)
    data = first.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for number in range(1, 1000):
        whole = number % 250 == 0
        (first.parent / f"{number:04d}.parquet").write_bytes(
            data if whole else b"PAR1" + b"\xff" * (len(data) - footer - 4) + data[-footer:]
        )
    made = job.plan(source={"uri": "data"})
    assert (len(made.files), made.rows, len(made.shards)) == (1000, 5000, 500)
    with pytest.raises(DataError, match="readable Parquet"):
        job.plan(source={"uri": "data/0001.parquet"})


@pytest.mark.parametrize(
    ("uri", "files"),
    [
        ("data", ["more/x.parquet", "rows.parquet"]),
        ("data/", ["more/x.parquet", "rows.parquet"]),
        ("data/*.parquet", ["rows.parquet"]),
        ("data/**/*.parquet", ["more/x.parquet", "rows.parquet"]),
        ("data/more/x.parquet", ["x.parquet"]),
        (["data/rows.parquet", "data/more"], ["rows.parquet", "more/x.parquet"]),
        (["data/rows.parquet", "data/r*.parquet"], ["rows.parquet"]),
    ],
)
def test_files_are_named_below_the_source_root(
    job: JobFolder, uri: str | list[str], files: list[str]
):
    job.write_rows("more/x.parquet", start=20)
    job.write_rows("_hidden/y.parquet", start=40)
    assert [f.path for f in job.plan(source={"uri": uri}).files] == files


def hive(write: Callable[[str, pa.Table], object]) -> pa.Table:
    """The same rows as one table, and written by partitions of `a` and `label`, which the files do
    not hold.
    """
    values = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    table = pa.table(
        {
            "id": np.arange(24),
            "a": np.arange(24) % 3,
            "label": np.arange(24) % 2,
            "b": values[:, 0],
            "c": values[:, 1],
        }
    )
    for a in range(3):
        for label in range(2):
            kept = table.filter((pa.compute.field("a") == a) & (pa.compute.field("label") == label))
            write(f"hive/a={a}/label={label}/part.parquet", kept.drop_columns(["a", "label"]))
    return table


def test_partitions_serve_as_feature_and_target(job: JobFolder):
    whole = hive(job.write_table)
    job.write_table("whole/all.parquet", whole)
    parts = [
        job.run(
            source={"uri": f"data/{name}", "row_id": "id"},
            target={"kind": "column", "column": "label"},
        )
        for name in ("hive", "whole")
    ]
    assert parts[0].statuses == {"unchecked": 24}
    frames = [job.rows(m).sort_values("row_id", ignore_index=True) for m in parts]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert frames[0]["target"].tolist() == [i % 2 for i in range(24)]


@pytest.mark.s3
def test_a_whole_job_on_s3(job: JobFolder, s3_root: Uri, s3_server: Any):
    """Source, code, weights and output on S3; a glob over partitions; the same rows as from local
    files.
    """
    access: Access = s3_server.access
    store = Store(access)

    def write(name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.create(s3_root.child(name), sink.getvalue().to_pybytes())

    hive(write)
    hive(job.write_table)
    for name in (f"{job.module}.py", "weights.safetensors"):
        store.create(s3_root.child(name), (job.path / name).read_bytes())
    remote = job.fields(
        source={"uri": f"{s3_root}/hive/a=*/label=1/*.parquet", "row_id": "id"},
        model=job.weighted(f"{s3_root}/weights.safetensors")
        | {"code": [f"{s3_root}/{job.module}.py"]},
        output={"uri": f"{s3_root}/out"},
    )
    spec = parse_spec(remote)
    first = run_job(
        spec, operator=Operator(trusted=(job.module,), access=access), cluster=Cluster("local")
    )
    local = job.run(
        source={"uri": "data/hive/a=*/label=1/*.parquet", "row_id": "id"}, model=job.weighted()
    )
    assert (first.complete, first.rows_out, first.digest) == (True, 12, local.digest)

    run = s3_root.child("out", first.run_id)
    store.delete(run.child("_manifest.json"))
    store.delete(run.child("data", "part-00000.parquet"))
    assert (
        run_job(
            spec, operator=Operator(trusted=(job.module,), access=access), cluster=Cluster("local")
        ).digest
        == first.digest
    )


def test_text_is_estimated_until_it_is_ingested(job: JobFolder):
    rows = job.rows_of("rows.parquet")
    (job.path / "csv").mkdir()
    rows.to_csv(job.path / "csv" / "rows.csv", index=False)
    guess = job.plan(source={"uri": "csv", "row_id": "id"})
    assert (guess.projection.estimated, guess.shards, guess.files) == (True, (), ())
    assert guess.projection.seconds == pytest.approx(20 * guess.projection.seconds_per_row)
    made = job.plan(source={"uri": "csv", "row_id": "id"}, ingest=True)
    assert (made.projection.estimated, made.rows) == (False, 20)
    assert made.run_id == guess.run_id
    assert made.files[0].path == "rows.csv"


def test_paths_are_taken_from_the_folder_of_the_spec(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir("/")
    assert Path(plan(job).files[0].uri) == job.path / "data" / "rows.parquet"
