"""Baselines that are rows of a dataset: found before a run, and part of what it is."""

from __future__ import annotations

import re
import shutil
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.record import dump
from integrand.schemas.records import Plan
from integrand.service.planning import datasets
from integrand.service.planning.runid import stored_run_id
from integrand.service.reports.plans import show_plan
from integrand.workers.data.prepasses.found import read_prepasses
from integrand.workers.storage.store import Store
from tests.plugins.jobs import COLUMNS, JobFolder

TRAINING: dict[str, Any] = {"kind": "training", "draws": 4, "seed": 1}


def found(plan: Plan) -> np.ndarray:
    (arrays,) = read_prepasses(Store(), plan).values()
    return arrays[0]


def write_other(job: JobFolder, name: str = "other.parquet", **columns: Any) -> str:
    """Another dataset, of thirty rows beside the source's folder."""
    values = np.random.default_rng(5).normal(size=(30, 3)).astype(np.float32)
    table = pa.table(dict(zip(COLUMNS, values.T, strict=True)) | columns)
    (job.path / "elsewhere").mkdir(exist_ok=True)
    pq.write_table(table, job.path / "elsewhere" / name)
    return f"elsewhere/{name}"


def test_rows_of_the_source_are_drawn_once_and_stand_in_the_plan(job: JobFolder) -> None:
    plan = job.plan(ingest=True, baseline=TRAINING)
    (name,) = plan.prepasses
    assert name.startswith("training-")
    assert len(plan.prepasses[name].sha256) == 64
    rows = job.rows_of("rows.parquet")[list(COLUMNS)].to_numpy()
    drawn = found(plan)
    assert drawn.dtype == np.float32
    assert all((rows == row).all(1).any() for row in drawn)
    assert len(np.unique(drawn, axis=0)) == 4
    other = job.plan(ingest=True, baseline=TRAINING, compute={"shard_rows": 3, "batch_rows": 16})
    assert found(other).tobytes() == drawn.tobytes()


def test_row_groups_may_be_gone_over_a_few_at_once(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write_rows(row_group_size=3)
    baseline = {"kind": "average", "of": [{"kind": "mean"}, {"kind": "median"}, TRAINING]}
    whole = job.plan(ingest=True, baseline=baseline, output={"uri": "whole"})
    monkeypatch.setattr(datasets, "GROUPS_AT_ONCE", 2)
    parts = job.plan(ingest=True, baseline=baseline, output={"uri": "parts"})
    digests = [[file.sha256 for file in plan.prepasses.values()] for plan in (whole, parts)]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_another_dataset_may_have_more_columns_and_a_condition(job: JobFolder) -> None:
    uri = write_other(job, more=np.arange(30), label=["x"] * 15 + ["y"] * 15)
    baseline = TRAINING | {"uri": uri, "where": "label = 'y' and more < 20"}
    plan = job.plan(ingest=True, baseline=baseline)
    rows = pd.read_parquet(job.path / uri)
    group = rows[15:20][list(COLUMNS)].to_numpy()
    assert all((group == row).all(1).any() for row in found(plan))
    assert plan.spec.baseline.uris == (str(job.path / uri),)
    assert [path for path, _, _ in plan.references[next(iter(plan.prepasses))]] == ["other.parquet"]


def test_the_run_is_of_what_the_dataset_holds_not_of_where_it_lies(job: JobFolder) -> None:
    uri = write_other(job)
    plan = job.plan(ingest=True, baseline=TRAINING | {"uri": uri})
    assert stored_run_id(Plan.model_validate_json(dump(plan))) == plan.run_id
    (job.path / "moved").mkdir()
    shutil.copy2(job.path / uri, job.path / "moved" / "other.parquet")
    moved = job.plan(ingest=True, baseline=TRAINING | {"uri": "moved/other.parquet"})
    assert moved.run_id == plan.run_id
    write_other(job, more=np.arange(30))
    assert job.plan(ingest=True, baseline=TRAINING | {"uri": uri}).run_id != plan.run_id
    assert job.plan(ingest=True, baseline=TRAINING | {"seed": 2}).run_id != plan.run_id


def test_text_is_split_first(job: JobFolder) -> None:
    rows = pd.read_parquet(job.path / write_other(job))
    rows.to_csv(job.path / "elsewhere" / "other.csv", index=False)
    plan = job.plan(ingest=True, baseline=TRAINING | {"uri": "elsewhere/other.csv"})
    assert all(np.isclose(rows.to_numpy(), row, rtol=1e-6).all(1).any() for row in found(plan))
    estimated = job.plan(ingest=False, baseline=TRAINING | {"uri": "elsewhere/other.csv"})
    assert estimated.run_id == plan.run_id


def test_a_row_is_found_by_its_id(job: JobFolder) -> None:
    plan = job.plan(ingest=True, baseline={"kind": "row", "row": 13})
    rows = job.rows_of("rows.parquet")[list(COLUMNS)].to_numpy()
    assert np.array_equal(found(plan), rows[13:14])


def test_the_median_is_found_in_passes(job: JobFolder) -> None:
    plan = job.plan(ingest=True, baseline={"kind": "median"})
    rows = job.rows_of("rows.parquet")[list(COLUMNS)].to_numpy()
    assert np.array_equal(found(plan), np.median(rows.astype(np.float64), 0))


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (TRAINING | {"uri": "elsewhere/lacking.parquet"}, r"elsewhere/lacking\.parquet(.|\n)*`c`"),
        (TRAINING | {"uri": "elsewhere/texts.parquet"}, r"columns that the inputs read(.|\n)*`c`"),
        (TRAINING | {"where": "score > 1"}, r"baseline\.where `score > 1`(.|\n)*score"),
        (TRAINING | {"draws": 0}, "draws"),
        (TRAINING | {"draws": -3}, "draws"),
        (TRAINING | {"seed": -1}, "seed"),
        ({"kind": "row", "where": "id < 3"}, r"exactly one row with `id < 3`(.|\n)*seen: 3"),
        ({"kind": "row", "row": "nobody"}, r"exactly one row of id 'nobody'(.|\n)*seen: 0"),
        ({"kind": "blur", "sigma": 1}, r"two axes in space(.|\n)*shape \[3\]"),
        ({"kind": "blur", "sigma": 0}, "sigma(.|\n)*greater than 0"),
        ({"kind": "gaussian", "sigma": -1}, "sigma(.|\n)*greater than 0"),
        ({"kind": "uniform", "draws": 0}, "draws(.|\n)*greater than or equal to 1"),
        ({"kind": "uniform"}, r"give inputs\.features\.range"),
        ({"kind": "max_distance"}, r"give inputs\.features\.range"),
        ({"kind": "average", "of": []}, r"of(.|\n)*at least 1"),
        ({"kind": "row"}, "give either `where` or `row`"),
        ({"kind": "row", "row": 1, "where": "id = 1"}, "give either `where` or `row`"),
    ],
)
def test_what_cannot_be_is_refused(job: JobFolder, baseline: Any, message: str) -> None:
    lacking = pd.read_parquet(job.path / write_other(job)).drop(columns="c")
    lacking.to_parquet(job.path / "elsewhere" / "lacking.parquet")
    lacking.assign(c="text").to_parquet(job.path / "elsewhere" / "texts.parquet")
    with pytest.raises(SpecError, match=message):
        job.plan(ingest=True, baseline=baseline)


@pytest.mark.parametrize("kind", ["plain", "member"])
def test_a_constant_outside_the_range_is_refused(job: JobFolder, kind: str) -> None:
    constant = {"kind": "constant", "value": 7}
    baseline = {"plain": constant, "member": {"kind": "average", "of": [constant]}}[kind]
    ranged = {"name": "features", "columns": list(COLUMNS), "range": [-5, 5]}
    with pytest.raises(SpecError, match=r"input `features`(.|\n)*range, -5 to 5(.|\n)*seen: 7"):
        job.plan(inputs=[ranged], baseline=baseline)


def test_more_draws_than_rows_are_refused(job: JobFolder) -> None:
    with pytest.raises(DataError, match=r"21 clean rows to draw(.|\n)*seen: 20"):
        job.plan(ingest=True, baseline=TRAINING | {"draws": 21})


def test_two_datasets_that_differ_in_nothing_else_are_refused(job: JobFolder) -> None:
    first, second = write_other(job), write_other(job, "second.parquet")
    halves = [
        {"name": name, "columns": columns, "baseline": TRAINING | {"uri": uri}}
        for name, columns, uri in [("one", ["a", "b"], first), ("two", ["c"], second)]
    ]
    with pytest.raises(SpecError, match=r"baseline\.uri(.|\n)*another seed"):
        job.plan(ingest=True, inputs=halves)


def test_a_plan_shows_its_baselines(job: JobFolder) -> None:
    members = [{"kind": "median"}, TRAINING]
    plan = job.plan(ingest=True, baseline={"kind": "average", "of": members})
    written = StringIO()
    show_plan(Console(file=written, width=120), plan)
    shown = written.getvalue()
    assert re.search(r"baselines per row\s+5\b", shown)
    assert re.search(r"found before\s+median \(exact\), sha256 [0-9a-f]{16}", shown)
    assert re.search(r"found before\s+training-[0-9a-f]{16}, sha256 [0-9a-f]{16}", shown)
