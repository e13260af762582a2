"""Runs that store less than they compute: whole jobs, verified and read by every door."""

from __future__ import annotations

import io
import json
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from integrand.schemas.errors import SpecError
from integrand.schemas.records import RunManifest
from integrand.schemas.tables import RowStatus
from integrand.service.checks.verify import verify_run
from integrand.service.reports.page import html_page
from integrand.service.reports.rows import show_row
from integrand.service.reports.spreadsheet import write_csv
from integrand.service.runs.query import Run, open_run
from tests.plugins.jobs import COLUMNS, JobFolder
from tests.plugins.texts import text_fields

NAMES = [f"attr.{name}" for name in COLUMNS]
TOP_2 = {"kind": "top_k", "k": 2}
ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}


def run_with(job: JobFolder, out: str = "out", **output: Any) -> tuple[RunManifest, Run]:
    manifest = job.run(output={"uri": out, **output}, accuracy=ADAPTIVE)
    return manifest, open_run(job.run_uri(manifest, out))


def verified(job: JobFolder, manifest: RunManifest, out: str) -> None:
    found = verify_run(job.run_uri(manifest, out), trusted=(job.module,))
    assert not found.findings, found.findings
    assert found.sampled


@pytest.fixture
def whole(job: JobFolder) -> pd.DataFrame:
    _, run = run_with(job)
    return run.to_pandas()


def test_the_largest_alone(job: JobFolder, whole: pd.DataFrame) -> None:
    job.write_rows(b=[float("nan"), *np.linspace(-1, 1, 19)])
    _, full = run_with(job, "full")
    manifest, run = run_with(job, "top", store=TOP_2)
    verified(job, manifest, "top")
    frame, expected = run.to_pandas(), full.to_pandas()
    assert [*frame.columns[-2:]] == ["attr.features", "index.features"]
    same = [name for name in expected.columns if not name.startswith("attr.")]
    pd.testing.assert_frame_equal(frame[same], expected[same])
    for (_, row), (_, other) in zip(frame.iterrows(), expected.iterrows(), strict=True):
        if row["status"] == RowStatus.bad_input:
            assert row["attr.features"] is row["index.features"] is None
            continue
        values = other[NAMES].to_numpy(np.float64)
        places = np.argsort(-np.abs(values), kind="stable")[:2]
        assert row["index.features"].tolist() == places.tolist()
        np.testing.assert_array_equal(row["attr.features"], values[places])


def test_features_of_the_largest_have_their_names(job: JobFolder, whole: pd.DataFrame) -> None:
    _, run = run_with(job, "top", store=TOP_2)
    kept = whole[NAMES].to_numpy(np.float64).copy()
    smallest = np.argmin(np.abs(kept), axis=1)
    kept[np.arange(len(kept)), smallest] = 0
    top = run.top_features().set_index("feature")
    np.testing.assert_allclose(top.loc[[*COLUMNS], "mean_abs"], np.abs(kept).mean(0))
    np.testing.assert_allclose(top.loc[[*COLUMNS], "mean"], kept.mean(0))
    text = io.StringIO()
    show_row(Console(file=text, width=200), run, "3", 5)
    named = [name for name in COLUMNS if f" {name} " in text.getvalue()]
    absent = COLUMNS[smallest[3]]
    assert absent not in named
    assert len(named) == 2


@pytest.mark.parametrize("store", ["full", TOP_2])
def test_float16_is_counted_in_the_error(job: JobFolder, whole: pd.DataFrame, store: Any) -> None:
    manifest, run = run_with(job, "half", store=store, dtype="float16")
    verified(job, manifest, "half")
    frame = run.to_pandas()
    exact = whole[NAMES].to_numpy(np.float64)
    moved = np.abs(exact.astype(np.float16) - exact).sum(1) / np.abs(exact).sum(1)
    np.testing.assert_allclose(frame["error_estimate"], whole["error_estimate"] + moved, rtol=1e-12)
    assert ((frame["error_estimate"] > 1e-3) == (frame["status"] != "ok")).all()
    pd.testing.assert_series_equal(frame["attribution_sum"], whole["attribution_sum"])
    if store == "full":
        np.testing.assert_array_equal(frame[NAMES], exact.astype(np.float16))
        found = run.where('"attr.a" > 0')
        pd.testing.assert_frame_equal(found, run.to_pandas(filters=[("attr.a", ">", 0)]))
        assert 0 < len(found) == (frame["attr.a"] > 0).sum()
    assert len(run.worst(3)) == 6


def test_a_tolerance_below_float16_leaves_no_row_certified(job: JobFolder) -> None:
    accuracy = {"kind": "adaptive", "tolerance": 4e-5}
    manifest = job.run(output={"uri": "half", "dtype": "float16"}, accuracy=accuracy)
    assert manifest.statuses == {"at_precision_floor": 20}
    reasons = job.rows(manifest, "half")["reason"]
    assert reasons.str.contains("rounding to float16").all()


def test_spreadsheets_have_every_store(job: JobFolder) -> None:
    for name, output in {"top": {"store": TOP_2}, "half": {"dtype": "float16"}}.items():
        _, run = run_with(job, name, **output)
        text = io.StringIO()
        assert write_csv(text, run.tables()) == 20
        frame = pd.read_csv(io.StringIO(text.getvalue()))
        if name == "top":
            lists = frame["index.features"].map(json.loads)
            assert (lists.map(len) == 2).all()
        else:
            np.testing.assert_allclose(frame["attr.a"], run.to_pandas()["attr.a"])


def test_what_is_stored_is_part_of_the_id_where_it_is_said(job: JobFolder) -> None:
    plain = job.plan().run_id
    assert job.plan(output={"uri": "elsewhere", "store": "full"}).run_id == plain
    others = [{"store": TOP_2}, {"store": TOP_2 | {"k": 3}}, {"dtype": "float16"}]
    ids = {job.plan(output={"uri": "out", **output}).run_id for output in others}
    assert len(ids | {plain}) == 4


@pytest.mark.parametrize(
    "output",
    [
        {"store": {"kind": "top_k", "k": 0}},
        {"store": "top_k"},
        {"store": "some"},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_stores_that_cannot_be(job: JobFolder, output: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"output\.(store|dtype)"):
        job.spec(output={"uri": "out", **output})


def test_the_largest_of_an_image(job: JobFolder) -> None:
    images = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32)
    job.write_rows(pixels=pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 12))
    job.write_model("return self.logits(x.flatten(1)[:, ::4])")
    inputs = [{"name": "image", "column": "pixels", "shape": [3, 2, 2]}]
    found = {}
    for out, store in {"whole": "full", "top": TOP_2}.items():
        manifest = job.run(inputs=inputs, output={"uri": out, "store": store, "dtype": "float16"})
        verified(job, manifest, out)
        found[out] = open_run(job.run_uri(manifest, out))
    whole, top = (run.to_pandas() for run in found.values())
    for values, kept, places in zip(
        whole["attr.image"], top["attr.image"], top["index.image"], strict=True
    ):
        order = np.argsort(-np.abs(values), kind="stable")[:2]
        assert (places.tolist(), kept.tolist()) == (order.tolist(), values[order].tolist())
    names = set(found["top"].top_features(12)["feature"])
    assert names <= set(found["whole"].top_features(12)["feature"])
    assert len(names) == 12
    files = f"{found['top'].uri.path}/data/*.parquet"
    query = f"""select row_id, unnest("index.image"), unnest("attr.image") from '{files}'"""
    rows = duckdb.sql(query).fetchall()
    expected = zip(top["row_id"], top["index.image"], top["attr.image"], strict=True)
    assert rows == [(i, p, a) for i, ps, own in expected for p, a in zip(ps, own, strict=True)]
    assert "image[" in html_page(found["top"], 5)


def test_the_largest_of_a_text(texts: JobFolder) -> None:
    found = {}
    for out, store in {"whole": "full", "top": TOP_2}.items():
        manifest = texts.run(**text_fields(texts, output={"uri": out, "store": store}))
        verified(texts, manifest, out)
        found[out] = open_run(texts.run_uri(manifest, out))
    whole, top = (run.to_pandas() for run in found.values())
    for values, kept, places in zip(
        whole["attr.tokens"], top["attr.tokens"], top["index.tokens"], strict=True
    ):
        order = np.argsort(-np.abs(values), kind="stable")[:2]
        assert (places.tolist(), kept.tolist()) == (order.tolist(), values[order].tolist())
    sums = top["attr.tokens"].map(np.sum)
    assert found["top"].top_features()["mean"][0] == pytest.approx(sums.mean())
    text = io.StringIO()
    show_row(Console(file=text, width=200), found["top"], "3", 5)
    assert f"tokens[{top['index.tokens'][3][0]}]" in text.getvalue()
