"""Jobs that report sums of groups of features: whole, verified, and read by every door."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from integrand.schemas.errors import SpecError
from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import parse_spec
from integrand.schemas.specs.output import Output
from integrand.schemas.tables import RowStatus
from integrand.service.checks.verify import verify_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.reports.rows import show_row
from integrand.service.reports.spreadsheet import write_csv
from integrand.service.running.jobs import run_job
from integrand.service.runs.query import Run, open_run
from tests.plugins.jobs import COLUMNS, JobFolder
from tests.plugins.tampering import Tampered, replaced
from tests.plugins.texts import text_fields, text_table

ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}
THEME = {"theme": ["c", "a"]}
GAUSSIAN = {"kind": "gaussian", "sigma": 0.5, "draws": 6, "clip": False}


def run_with(job: JobFolder, out: str = "out", **changes: Any) -> tuple[RunManifest, Run]:
    output = changes.pop("output", {})
    fields = {"accuracy": ADAPTIVE} | changes
    manifest = job.run(output={"uri": out, **output}, **fields)
    return manifest, open_run(job.run_uri(manifest, out))


def verified(job: JobFolder, manifest: RunManifest, out: str = "out") -> None:
    found = verify_run(job.run_uri(manifest, out), trusted=(job.module,))
    assert not found.findings, found.findings
    assert found.sampled


def attributed(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name.startswith("attr.")]


def test_groups_take_the_place_of_their_features(job: JobFolder) -> None:
    _, plain = run_with(job, "plain")
    manifest, run = run_with(job, output={"groups": THEME})
    verified(job, manifest)
    frame, features = run.to_pandas(), plain.to_pandas()
    assert attributed(frame) == ["attr.theme", "attr.b"]
    expected = features["attr.a"].astype(float) + features["attr.c"]
    np.testing.assert_allclose(frame["attr.theme"], expected, atol=2e-3)
    total = frame["attr.theme"].astype(float) + frame["attr.b"]
    np.testing.assert_allclose(frame["attribution_sum"], total, rtol=1e-12)
    np.testing.assert_allclose(frame["gap"], features["gap"], atol=2e-3)
    assert set(run.top_features()["feature"]) == {"theme", "b"}


def test_groups_beside_their_features(job: JobFolder) -> None:
    manifest, run = run_with(job, output={"groups": THEME, "with_features": True})
    verified(job, manifest)
    frame = run.to_pandas()
    assert attributed(frame) == [f"attr.{name}" for name in COLUMNS]
    assert [n for n in frame.columns if n.startswith("group.")] == ["group.theme", "group.b"]
    expected = frame["attr.a"].astype(float) + frame["attr.c"]
    np.testing.assert_allclose(frame["group.theme"], expected, atol=1e-6)
    assert not any("." in name for name in run.worst().columns)
    assert len(run.where('"group.theme" > 0')) == (frame["group.theme"] > 0).sum()


def test_float16_is_relative_to_the_sums(job: JobFolder) -> None:
    accuracy = {"kind": "adaptive", "tolerance": 1e-1}
    _, whole = run_with(job, "whole", output={"groups": THEME}, accuracy=accuracy)
    output = {"groups": THEME, "dtype": "float16"}
    manifest, run = run_with(job, "half", output=output, accuracy=accuracy)
    verified(job, manifest, "half")
    exact = whole.to_pandas()[["attr.theme", "attr.b"]].to_numpy(np.float64)
    moved = np.abs(exact.astype(np.float16) - exact).sum(1) / np.abs(exact).sum(1)
    expected = whole.to_pandas()["error_estimate"] + moved
    np.testing.assert_allclose(run.to_pandas()["error_estimate"], expected, rtol=1e-9)


def test_mean_gradients_are_stored_as_computed(job: JobFolder) -> None:
    manifest, run = run_with(job, output={"mean_gradients": True, "dtype": "float16"})
    verified(job, manifest)
    types = {name: str(run.schema.field(name).type) for name in run.schema.names}
    stored = pq.read_schema(job.objects(manifest)[0])
    assert types["mean_gradient.a"] == str(stored.field("mean_gradient.a").type) == "float"
    assert str(stored.field("attr.a").type) == "halffloat"


def test_the_largest_of_groups(job: JobFolder) -> None:
    output = {"groups": THEME, "store": {"kind": "top_k", "k": 1}}
    _, whole = run_with(job, "whole", output={"groups": {"theme": ["c", "a"], "other": ["b"]}})
    output["groups"] = {"theme": ["c", "a"], "other": ["b"]}
    manifest, run = run_with(job, output=output)
    verified(job, manifest)
    frame, values = run.to_pandas(), whole.to_pandas()[["attr.theme", "attr.other"]].to_numpy()
    place = np.argmax(np.abs(values), 1)
    assert [p[0] for p in frame["index.groups"]] == place.tolist()
    assert [v[0] for v in frame["attr.groups"]] == values[np.arange(20), place].tolist()
    assert set(run.top_features()["feature"]) == {"theme", "other"}


def test_rows_are_shown_and_written_with_their_groups(job: JobFolder) -> None:
    _, run = run_with(job, output={"groups": THEME})
    text = io.StringIO()
    show_row(Console(file=text, width=200), run, "3", 5)
    assert " theme " in text.getvalue()
    text = io.StringIO()
    assert write_csv(text, run.tables()) == 20
    frame = pd.read_csv(io.StringIO(text.getvalue()))
    np.testing.assert_allclose(frame["attr.theme"], run.to_pandas()["attr.theme"])


def test_groups_and_their_order_are_part_of_the_id(job: JobFolder) -> None:
    outputs: list[dict[str, Any]] = [
        {},
        {"groups": THEME},
        {"groups": {"theme": ["c", "a"], "other": ["b"]}},
        {"groups": {"other": ["b"], "theme": ["c", "a"]}},
        {"groups": THEME, "with_features": True},
        {"mean_gradients": True},
    ]
    ids = [job.plan(output={"uri": "out", **output}).run_id for output in outputs]
    assert len(set(ids)) == len(outputs)
    assert job.plan(output={"uri": "elsewhere", "groups": THEME}).run_id == ids[1]


def test_groups_that_do_not_add_up_are_found(job: JobFolder) -> None:
    output = {"groups": THEME, "with_features": True}
    manifest, _ = run_with(job, output=output)
    run = Tampered(Path(job.run_uri(manifest).path))
    table = replaced(run.table(0), "group.theme", 3, 12.5)
    run.recount(0, table)
    found = verify_run(job.run_uri(manifest), sample=0)
    assert any("groups amount to" in str(finding) for finding in found.findings)


# --- tensors -------------------------------------------------------------------------------------

SHAPE = (2, 3, 4)
LINEAR = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(24, 1)

    def forward(self, x):
        return torch.tanh(self.layer(x.flatten(1))).squeeze(1)

def build():
    return Model()
"""


@pytest.fixture
def images(job: JobFolder) -> JobFolder:
    draw = np.random.default_rng(5)
    pixels = draw.normal(size=(20, *SHAPE)).astype(np.float32)
    maps = draw.integers(0, 5, size=(20, *SHAPE[1:]))
    table = pa.table(
        {
            "id": np.arange(20),
            "pixels": pixels.reshape(20, -1).tolist(),
            "segments": maps.reshape(20, -1).tolist(),
        }
    )
    (job.path / f"{job.module}.py").write_text(LINEAR)
    job.write_table("rows.parquet", table)
    return job


IMAGES: dict[str, Any] = {
    "inputs": [{"name": "image", "column": "pixels", "shape": list(SHAPE)}],
    "target": {"kind": "scalar"},
}


def whole_images(job: JobFolder) -> np.ndarray:
    _, run = run_with(job, "plain", **IMAGES)
    return np.stack(run.to_pandas()["attr.image"].tolist()).reshape(20, *SHAPE).astype(float)


def by_patch(values: np.ndarray, side: int) -> np.ndarray:
    rows, _, height, width = values.shape
    sums = np.zeros((rows, -(-height // side), -(-width // side)))
    for i in range(height):
        for j in range(width):
            sums[:, i // side, j // side] += values[:, :, i, j].sum(1)
    return sums


@pytest.mark.parametrize(
    ("output", "patch"),
    [
        ({"groups": {"image": {"patches": 2}}}, 2),
        ({"store": {"kind": "pooled", "patch": 2}}, 2),
        ({"groups": {"image": {"channels": "sum"}}}, 1),
        ({"store": "channel_sum"}, 1),
    ],
    ids=["patches", "pooled", "channels", "channel_sum"],
)
def test_elements_of_tensors(images: JobFolder, output: dict[str, Any], patch: int) -> None:
    expected = by_patch(whole_images(images), patch)
    manifest, run = run_with(images, output=output, **IMAGES)
    verified(images, manifest)
    frame = run.to_pandas()
    found = np.stack(frame["attr.image"].tolist()).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(frame["attribution_sum"], found.reshape(20, -1).sum(1), atol=1e-5)
    first = run.top_features(k=1)["feature"][0]
    assert first.startswith("image[")
    assert first.count(",") == 1


def test_maps_that_rows_bring(images: JobFolder) -> None:
    whole = whole_images(images)
    maps = np.stack(images.rows_of("rows.parquet")["segments"].tolist()).reshape(20, *SHAPE[1:])
    groups = {"image": {"column": "segments", "count": 5}}
    manifest, run = run_with(images, output={"groups": groups}, **IMAGES)
    verified(images, manifest)
    found = np.stack(run.to_pandas()["attr.image"].tolist())
    assert found.shape == (20, 5)
    for row in range(20):
        expected = [whole[row][:, maps[row] == group].sum() for group in range(5)]
        np.testing.assert_allclose(found[row], expected, atol=2e-3)


def test_maps_of_text_sources(images: JobFolder) -> None:
    table = images.rows_of("rows.parquet")
    groups = {"image": {"column": "segments", "count": 5}}
    _, parquet = run_with(images, "parquet", output={"groups": groups}, **IMAGES)
    lines = []
    for row in range(20):
        own = {name: table[name][row].tolist() for name in ("id", "pixels", "segments")}
        lines.append(json.dumps(own))
    (images.path / "data" / "rows.parquet").unlink()
    (images.path / "data" / "rows.jsonl").write_text("\n".join(lines))
    _, text = run_with(images, "text", output={"groups": groups}, **IMAGES)
    one, other = (np.stack(run.to_pandas()["attr.image"].tolist()) for run in (parquet, text))
    np.testing.assert_array_equal(one, other)


def test_equal_rows_with_other_maps_are_other_rows(images: JobFolder) -> None:
    table = images.rows_of("rows.parquet")
    pixels = [table["pixels"][0].tolist()] * 2
    maps = [[0] * 12, [1] * 12]
    images.write_table("rows.parquet", pa.table({"id": [0, 1], "pixels": pixels, "segments": maps}))
    groups = {"image": {"column": "segments", "count": 2}}
    _, run = run_with(images, output={"groups": groups}, **IMAGES)
    one, other = run.to_pandas()["attr.image"]
    assert one[1] == other[0] == 0
    assert one[0] == other[1] != 0


def test_rows_with_wrong_maps_are_bad(images: JobFolder) -> None:
    table = images.rows_of("rows.parquet")
    maps = [row.tolist() for row in table["segments"]]
    maps[0], maps[1], maps[2] = None, [9, *maps[1][1:]], maps[2][:-1]
    columns = {"id": range(20), "pixels": [p.tolist() for p in table["pixels"]], "segments": maps}
    images.write_table("rows.parquet", pa.table(columns))
    groups = {"image": {"column": "segments", "count": 5}}
    manifest, run = run_with(images, output={"groups": groups}, **IMAGES)
    verified(images, manifest)
    frame = run.to_pandas()
    assert (frame["status"][:3] == RowStatus.bad_input).all()
    assert (frame["status"][3:] != RowStatus.bad_input).all()
    said = ["segments is null", "expected a group, an integer from 0 to 4", "expected 12"]
    for reason, part in zip(frame["reason"][:3], said, strict=True):
        assert part in reason


@pytest.mark.parametrize("shard_rows", [3, 20])
def test_groups_do_not_depend_on_shards(images: JobFolder, shard_rows: int) -> None:
    groups = {"image": {"column": "segments", "count": 5}}
    of = [
        run_with(
            images,
            f"out{rows}",
            output={"groups": groups},
            compute={"shard_rows": rows, "batch_rows": 16},
            **IMAGES,
        )[1].to_pandas()
        for rows in (shard_rows, 7)
    ]
    pd.testing.assert_frame_equal(*of)


# --- ids -----------------------------------------------------------------------------------------


@pytest.fixture
def worded(texts: JobFolder) -> JobFolder:
    """Texts whose ids are pieces of words of one to three ids; the last has one too many."""
    ids = [row.tolist() for row in texts.rows_of("rows.parquet")["ids"]]
    words = [(np.arange(len(row)) // 2).tolist() for row in ids]
    words[-1] = [*words[-1], 0]
    texts.write_table("rows.parquet", text_table(ids, words=words))
    return texts


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("store", ["full", {"kind": "top_k", "k": 3}], ids=["full", "top_k"])
def test_tokens_to_words(worded: JobFolder, beside: bool, store: Any) -> None:
    fields = text_fields(worded)
    plain = worded.rows(worded.run(**fields | {"output": {"uri": "plain"}}), "plain")
    groups = {"tokens": {"column": "words"}}
    output = {"uri": "out", "groups": groups, "with_features": beside, "store": store}
    manifest = worded.run(**fields | {"output": output})
    verified(worded, manifest)
    frame = worded.rows(manifest)
    words = worded.rows_of("rows.parquet")["words"]
    name = "group.tokens" if beside else "attr.tokens"
    for row in range(len(frame) - 1):
        expected = np.bincount(words[row], plain["attr.tokens"][row])
        if store != "full" and not beside:
            places = np.argsort(-np.abs(expected), kind="stable")[:3]
            assert frame["index.tokens"][row].tolist() == places.tolist()
            expected = expected[places]
        assert len(frame[name][row]) == len(expected)
        np.testing.assert_allclose(frame[name][row], expected, atol=1e-12)
    assert frame["status"].iloc[-1] == RowStatus.bad_input
    assert "groups for" in frame["reason"].iloc[-1]


# --- beside them ---------------------------------------------------------------------------------


def test_mean_gradients(job: JobFolder) -> None:
    job.write_rows(b=np.zeros(20, np.float32))  # as the baseline is
    manifest, run = run_with(job, output={"mean_gradients": True})
    verified(job, manifest)
    frame = run.to_pandas(inputs=True)
    for name in COLUMNS:
        product = frame[f"mean_gradient.{name}"].astype(float) * frame[name]
        np.testing.assert_allclose(frame[f"attr.{name}"], product, rtol=1e-5, atol=1e-6)
    assert (frame["mean_gradient.b"] != 0).all()


@pytest.mark.parametrize("several", [False, True])
def test_reasons_are_those_of_features(job: JobFolder, several: bool) -> None:
    """Whatever stands beside them; an error relative to groups is no smaller than their own."""
    baseline = GAUSSIAN if several else {"kind": "zero"}
    reasons = {"k": 2, "toward": "higher", "when": "f_input > 0"}
    _, plain = run_with(job, "plain", baseline=baseline, output={"reasons": reasons})
    beside = {"groups": THEME, "with_features": True, "mean_gradients": True}
    manifest, run = run_with(job, baseline=baseline, output={"reasons": reasons, **beside})
    verified(job, manifest)
    frame, expected = run.to_pandas(), plain.to_pandas()

    def ranked(given: Any) -> list[str] | None:
        return None if given is None else [reason["feature"] for reason in given]

    certified = frame["reasons_status"] == "certified"
    assert certified.any()
    same = frame["reasons"].map(ranked)[certified] == expected["reasons"].map(ranked)[certified]
    assert same.all()
    if several:
        np.testing.assert_allclose(frame["reasons_agree"], expected["reasons_agree"], atol=0.2)


def test_spread_over_baselines(job: JobFolder) -> None:
    output = {"spread": True, "groups": THEME}
    manifest, run = run_with(job, baseline=GAUSSIAN, output=output)
    verified(job, manifest)
    frame = run.to_pandas()
    assert [n for n in frame.columns if n.startswith("spread.")] == ["spread.theme", "spread.b"]
    assert (frame[["spread.theme", "spread.b"]] > 0).all(axis=None)
    # each term of baseline_spread is a mean of sizes, at most as large as the root of mean squares
    size = frame[["attr.theme", "attr.b"]].abs().sum(1)
    together = frame[["spread.theme", "spread.b"]].sum(1)
    assert (frame["baseline_spread"] * size <= together * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "saliency"},
        {"accuracy": {"kind": "fixed", "rule": "midpoint", "steps": 9}},
        {"target": {"kind": "all"}, "accuracy": ADAPTIVE, "mean_gradients": True},
        {
            "compute": {"precision": "bfloat16"},
            "accuracy": {"kind": "adaptive", "tolerance": 0.1},
            "with_features": True,
        },
        {
            "target": {"kind": "all"},
            "accuracy": ADAPTIVE,
            "baseline": GAUSSIAN,
            "mean_gradients": True,
            "with_features": True,
            "dtype": "float16",
        },
    ],
    ids=["saliency", "fixed", "targets", "bfloat16", "draws"],
)
def test_groups_of_every_kind_of_job(job: JobFolder, changes: dict[str, Any]) -> None:
    asked = {name: changes[name] for name in changes if name in Output.model_fields}
    output = {"uri": "out", "groups": THEME, **asked}
    fields = job.fields(output=output) | {n: changes[n] for n in changes.keys() - asked.keys()}
    if "method" in changes:
        del fields["accuracy"]
    trusted = Operator(trusted=(job.module,))
    spec = parse_spec(fields)
    manifest = run_job(spec, base=str(job.path), operator=trusted, cluster=Cluster("local"))
    verified(job, manifest)
    frame = job.rows(manifest)
    assert set(frame["status"]) <= {"ok", "at_precision_floor", "unchecked"}
    beside = "with_features" in changes
    names = ["group.theme", "group.b"] if beside else attributed(frame)
    total = frame[names].astype(float).sum(1)
    np.testing.assert_allclose(total, frame["attribution_sum"], atol=5e-3)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"groups": {"x": []}}, "at least 1"),
        ({"groups": {"x": ["a", "a"]}}, "named twice: a"),
        ({"groups": {"x": ["a"], "y": ["a", "b"]}}, "several groups: a"),
        ({"groups": {"x": ["aa"]}}, "no feature `aa`"),
        ({"groups": {"b": ["a"]}}, "has this name"),
        ({"groups": {"image": {"patches": 2}}}, "no input of this name"),
        ({"groups": {"features": {"patches": 2}}}, "named features"),
        ({"with_features": True}, "name them in `groups`"),
        ({"spread": True}, "rows have one"),
        (
            {"groups": {"x": ["a", "b"]}, "reasons": {"k": 1, "toward": "higher"}},
            "with_features: true",
        ),
        ({"store": "channel_sum"}, "there is none"),
    ],
)
def test_wrong_groups_are_refused(job: JobFolder, output: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        job.spec(output={"uri": "out", **output})
    assert said in caught.value.seen


def test_mean_gradients_of_another_method_are_refused(job: JobFolder) -> None:
    fields = job.fields(output={"uri": "out", "mean_gradients": True}, method="saliency")
    del fields["accuracy"]
    with pytest.raises(SpecError, match="mean_gradients"):
        parse_spec(fields)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"groups": {"image": {"column": "segments"}}}, "needs `count`"),
        ({"groups": {"image": {"column": "pixels", "count": 3}}}, "12 values"),
        ({"groups": {"image": {"column": "segment", "count": 3}}}, "did you mean `segments`"),
        ({"groups": {"image": {"patches": 2}}, "store": "channel_sum"}, "both group"),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    images: JobFolder, output: dict[str, Any], said: str
) -> None:
    table = images.rows_of("rows.parquet")
    fixed = pa.FixedSizeListArray.from_arrays(np.concatenate(table["pixels"].tolist()), 24)
    segments = table["segments"].map(np.ndarray.tolist).tolist()
    columns = {"id": range(20), "pixels": fixed, "segments": segments}
    images.write_table("rows.parquet", pa.table(columns))
    with pytest.raises(SpecError) as caught:
        images.plan(output={"uri": "out", **output}, **IMAGES)
    assert said in str(caught.value)
