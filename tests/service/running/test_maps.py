"""Whole jobs over models whose output is a map: a place of it, or the sum or the mean of a region,
held against naive float64 references.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.service.checks.verify import verify_run
from tests.plugins.jobs import JobFolder

ROWS, SIDE = 9, 6
MODEL = """
import torch
from torch import nn

class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 3, 3, padding=1)
        self.norm.running_mean.fill_(0.2)
        self.norm.running_var.fill_(1.5)

    def forward(self, image, *more):
        out = self.last(torch.tanh(self.norm(self.conv(image))))
        return out if not more else out * more[0][:, None, None, None]

def build():
    return Segmenter().eval()
"""
Reduce = Callable[[Tensor, pd.Series], Tensor]
"""From outputs [n, 3, side, side] and the row of the source to numbers [n]."""


# --- jobs and references -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """Images with a mask each, of which one is empty and one holds a null."""
    made = JobFolder(tmp_path_factory.mktemp("maps"))
    (made.path / f"{made.module}.py").write_text(MODEL)
    draw = np.random.default_rng(0)
    pixels = draw.normal(size=(ROWS, SIDE * SIDE)).astype(np.float32)
    masks: list[list[Any]] = (draw.random((ROWS, SIDE * SIDE)) > 0.6).astype(float).tolist()
    masks[4] = [0.0] * (SIDE * SIDE)
    masks[5][7] = None
    weights = draw.random((ROWS, SIDE * SIDE))
    weights[2, 3] = -1
    columns = {
        "id": np.arange(ROWS),
        "pixels": pa.array(pixels.tolist(), pa.list_(pa.float32())),
        "mask": pa.array(masks),
        "weights": pa.array(weights.tolist()),
        "small": pa.array([[1.0] * 4] * ROWS),
        "class": draw.integers(0, 3, ROWS),
        "y": pa.array([0, 5, 2, 6, 1, -1, None, 3, 4]),
        "x": pa.array([0, 5, 2, 1, 1, 1, 1, 3, 0]),
        "far": [9] * ROWS,
        "scale": draw.uniform(0.5, 2, ROWS),
    }
    made.write_table("rows.parquet", pa.table(columns), row_group_size=4)
    return made


def fields(target: dict[str, Any], out: str = "out", **changes: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "image", "column": "pixels", "shape": [1, SIDE, SIDE]}],
        "target": target,
        "accuracy": {"kind": "adaptive", "tolerance": 1e-3},
        "compute": {"shard_rows": 4, "batch_rows": 16},
        "output": {"uri": out},
    } | changes


def model(folder: JobFolder) -> nn.Module:
    sys.path.insert(0, str(folder.path))
    built: nn.Module = importlib.import_module(folder.module).build().double()
    return built


def reference(folder: JobFolder, reduce: Reduce) -> pd.DataFrame:
    """Row by row in float64: 64 Gauss-Legendre nodes from zero."""
    net, source = model(folder), folder.rows_of("rows.parquet")
    nodes, weights = np.polynomial.legendre.leggauss(64)
    found = []
    for _, row in source.iterrows():
        x = torch.from_numpy(row["pixels"]).double().reshape(1, 1, SIDE, SIDE)
        path = torch.from_numpy((nodes + 1) / 2)[:, None, None, None] * x
        path.requires_grad_()
        f = reduce(net(path), row)
        (gradient,) = torch.autograd.grad(f, path, torch.from_numpy(weights / 2))
        ends = reduce(net(torch.cat([x, 0 * x])), row).tolist()
        found.append({"attr": (gradient.sum(0) * x[0]).flatten().numpy(), "ends": ends})
    return pd.DataFrame(found)


def check(folder: JobFolder, rows: pd.DataFrame, reduce: Reduce, bad: set[int]) -> None:
    """Clean rows are what the reference says, within their own error estimate, and complete."""
    expected = reference(folder, reduce)
    assert set(rows.index[rows["status"] == "bad_input"]) == bad
    for i in set(rows.index) - bad:
        row, attr = rows.loc[i], expected.loc[i, "attr"]
        apart = np.abs(row["attr.image"] - attr).sum() / np.abs(attr).sum()
        assert row["status"] == "ok", row["reason"]
        assert apart <= row["error_estimate"] + 1e-5
        np.testing.assert_allclose(
            [row["f_input"], row["f_baseline"]], expected.loc[i, "ends"], rtol=1e-4, atol=1e-5
        )
        assert (
            abs(row["attribution_sum"] - (row["f_input"] - row["f_baseline"]))
            < 1e-3 * np.abs(attr).sum()
        )


def weights_of(column: str, row: pd.Series) -> Tensor:
    return torch.tensor(np.array(row[column], float).reshape(SIDE, SIDE)).nan_to_num()


TARGETS: dict[str, tuple[dict[str, Any], Reduce, set[int]]] = {
    "place": ({"kind": "index", "index": [2, 1, 4]}, lambda out, row: out[:, 2, 1, 4], set()),
    "probability": (
        {"kind": "index", "index": [2, 1, 4], "transform": "softmax", "axis": 0},
        lambda out, row: out.softmax(1)[:, 2, 1, 4],
        set(),
    ),
    "sum": (
        {"kind": "region", "index": 1, "ranges": [[0, 3], [2, 6]]},
        lambda out, row: out[:, 1, 0:3, 2:6].sum((1, 2)),
        set(),
    ),
    "mean": (
        {"kind": "region", "index": [1, 5], "ranges": [[2, 6]], "reduce": "mean"},
        lambda out, row: out[:, 1, 5, 2:6].mean(1),
        set(),
    ),
    "whole": (
        {"kind": "region", "ranges": [[0, 3], [0, 6], [0, 6]], "transform": "sigmoid"},
        lambda out, row: out.sigmoid().sum((1, 2, 3)),
        set(),
    ),
    "log-likelihood": (
        {
            "kind": "region",
            "index": 0,
            "ranges": [[0, 6], [0, 6]],
            "transform": "log_softmax",
            "axis": 0,
        },
        lambda out, row: out.log_softmax(1)[:, 0].sum((1, 2)),
        set(),
    ),
    "mask": (
        {"kind": "region", "index": 2, "mask": "mask", "shape": [SIDE, SIDE]},
        lambda out, row: (out[:, 2] * weights_of("mask", row)).sum((1, 2)),
        {4, 5},
    ),
    "weighted mean": (
        {
            "kind": "region",
            "index": 2,
            "mask": "weights",
            "shape": [SIDE, SIDE],
            "reduce": "mean",
            "transform": "softmax",
            "axis": 0,
        },
        lambda out, row: (
            (out.softmax(1)[:, 2] * weights_of("weights", row)).sum((1, 2))
            / weights_of("weights", row).sum()
        ),
        {2},
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_one_number_of_a_map_is_explained(folder: JobFolder, name: str) -> None:
    target, reduce, bad = TARGETS[name]
    manifest = folder.run(**fields(target))
    rows = folder.rows(manifest).sort_values("row_id", ignore_index=True)
    check(folder, rows, reduce, bad)
    told = ["2,1,4"] * ROWS if target["kind"] == "index" else [None] * ROWS
    assert rows["target"].astype(object).where(rows["target"].notna(), None).tolist() == told


def test_masks_beside_forward_arguments(folder: JobFolder) -> None:
    target = {"kind": "region", "index": 2, "mask": "mask", "shape": [SIDE, SIDE]}
    argument = {"name": "scale", "column": "scale", "dtype": "float32"}
    manifest = folder.run(**fields(target, forward_args=[argument]))
    rows = folder.rows(manifest).sort_values("row_id", ignore_index=True)
    check(
        folder,
        rows,
        lambda out, row: row["scale"] * (out[:, 2] * weights_of("mask", row)).sum((1, 2)),
        {4, 5},
    )
    assert "null" in rows.loc[5, "reason"]
    assert "mask is an empty mask" in rows.loc[4, "reason"]


def test_regions_are_the_same_however_rows_are_cut_and_hold(folder: JobFolder) -> None:
    target = {"kind": "region", "index": 2, "mask": "mask", "shape": [SIDE, SIDE], "reduce": "mean"}
    digests = set()
    for out, rows in (("a", 2), ("b", 9)):
        asked = fields(target, out, compute={"shard_rows": rows, "batch_rows": 8})
        digests.add(folder.run(**asked).digest)
        assert folder.run(**asked).digest in digests  # resumed: nothing is computed
        found = verify_run(folder.path / out, sample=ROWS, trusted=(folder.module,))
        assert found.holds, found
    assert len(digests) == 1


def test_savings_see_through_a_region(folder: JobFolder) -> None:
    sliced = folder.plan(**fields({"kind": "region", "index": 1, "ranges": [[0, 3], [2, 6]]}))
    masked = folder.plan(**fields({"kind": "region", "mask": "mask", "index": 1, "shape": [6, 6]}))
    assert sliced.numerics.folded == masked.numerics.folded == (("model.conv", "model.norm"),)


def test_captum_sees_the_number_that_is_explained(folder: JobFolder) -> None:
    target = {"kind": "region", "index": 2, "mask": "mask", "shape": [SIDE, SIDE]}
    asked = fields(target, "captum", method="captum:FeatureAblation")
    del asked["accuracy"]
    with pytest.MonkeyPatch.context() as patch:
        left = {k: v for k, v in folder.fields().items() if k != "accuracy"}
        patch.setattr(folder, "fields", lambda **more: left | more)
        manifest = folder.run(**asked)
    rows = folder.rows(manifest, "captum").sort_values("row_id", ignore_index=True)
    net, source = model(folder), folder.rows_of("rows.parquet")
    for i in (0, 8):
        x = torch.from_numpy(source.loc[i, "pixels"]).double()
        ablated = x * (1 - torch.eye(SIDE * SIDE))
        out = net(torch.cat([x[None], ablated]).reshape(-1, 1, SIDE, SIDE))
        f = (out[:, 2] * weights_of("mask", source.loc[i])).sum((1, 2)).detach()
        np.testing.assert_allclose(rows.loc[i, "attr.image"], f[0] - f[1:], rtol=1e-3, atol=1e-4)


PLACES = {"kind": "column", "columns": ["class", "y", "x"]}


@pytest.mark.parametrize("transform", [{}, {"transform": "softmax", "axis": 0}])
def test_places_that_rows_name(folder: JobFolder, transform: dict[str, Any]) -> None:
    manifest = folder.run(**fields(PLACES | transform, "places"))
    rows = folder.rows(manifest, "places").sort_values("row_id", ignore_index=True)
    source = folder.rows_of("rows.parquet")

    def reduce(out: Tensor, row: pd.Series) -> Tensor:
        y, x = (int(np.nan_to_num(row[name])) % SIDE for name in ("y", "x"))
        out = out.softmax(1) if transform else out
        return out[:, row["class"], y, x]

    check(folder, rows, reduce, {3, 5, 6})
    expected = [f"{c:.0f},{y:.0f},{x:.0f}" for c, y, x in source[["class", "y", "x"]].to_numpy()]
    assert rows["target"].drop([3, 5, 6]).tolist() == [
        told for i, told in enumerate(expected) if i not in (3, 5, 6)
    ]
    assert rows["target"].loc[[3, 5, 6]].isna().all()
    first = source.loc[3, "class"]
    assert rows.loc[3, "reason"] == f"target {first},6,1 is outside 0,0,0..2,5,5"
    assert "y is null" in rows.loc[6, "reason"]


def test_places_are_the_same_however_rows_are_cut_and_hold(folder: JobFolder) -> None:
    digests = set()
    for out, rows in (("c", 2), ("d", 9)):
        compute = {"shard_rows": rows, "batch_rows": 8}
        digests.add(folder.run(**fields(PLACES, out, compute=compute)).digest)
        found = verify_run(folder.path / out, sample=ROWS, trusted=(folder.module,))
        assert found.holds, found
    assert len(digests) == 1


def test_a_mean_baseline_leaves_out_rows_whose_place_is_not_there(folder: JobFolder) -> None:
    manifest = folder.run(**fields(PLACES, "mean", baseline={"kind": "mean"}))
    rows = folder.rows(manifest, "mean")
    assert (rows["status"] == "bad_input").sum() == 3
    x = np.stack(folder.rows_of("rows.parquet")["pixels"]).astype(float)
    mean = np.delete(x, [3, 5, 6], 0).mean(0).reshape(1, 1, SIDE, SIDE)
    out = model(folder)(torch.from_numpy(mean)).detach()[0]
    place = [int(n) for n in rows.sort_values("row_id")["target"].iloc[0].split(",")]
    found = rows.sort_values("row_id")["f_baseline"].iloc[0]
    assert found == pytest.approx(out[tuple(place)].item(), rel=1e-4, abs=1e-5)


# --- tokens and categories -----------------------------------------------------------------------

TAGGER = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix = nn.Embedding(30, 4), nn.Conv1d(4, 3, 3, padding=1)

    def forward(self, ids):
        return torch.tanh(self.mix(self.words(ids).mT)).mT

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.plan, self.first, self.last = nn.Embedding(4, 3), nn.Linear(5, 8), nn.Linear(8, 12)

    def forward(self, amounts, plan):
        seen = torch.cat([amounts, self.plan(plan).flatten(1)], 1)
        return self.last(torch.tanh(self.first(seen))).unflatten(1, (3, 4))

def build(name="Tagger"):
    return globals()[name]().eval()
"""
TEXTS = [[1, 2, 3], [4] * 12, [5, 6], [7, 8, 9, 10], list(range(1, 11))]


@pytest.fixture
def tagger(job: JobFolder) -> JobFolder:
    (job.path / f"{job.module}.py").write_text(TAGGER)
    (job.path / "data" / "rows.parquet").unlink()
    columns = {
        "id": np.arange(5),
        "ids": pa.array(TEXTS, pa.list_(pa.int32())),
        "token": [2, 11, 8, 0, 9],
        "tag": [0, 1, 2, 2, 3],
        "plan_id": [0, 1, 2, 3, 1],
        "age": [0.1, 0.2, 0.3, 0.4, 0.5],
        "income": [1.0, -1.0, 0.5, 2.0, -2.0],
        "mask": pa.array([[0.0, 1.0, 2.0, 0.0]] * 5),
    }
    job.write_table("rows.parquet", pa.table(columns))
    return job


TOKENS = {"name": "tokens", "ids": "ids", "embedding": "words", "pad": 0, "max_length": 20}


ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}


def test_token_logits_at_places_that_rows_name(tagger: JobFolder) -> None:
    """Outputs are as long as the padded list: what no text of a length has is bad there."""
    target = {"kind": "column", "columns": ["token", "tag"]}
    rows = tagger.rows(tagger.run(inputs=[TOKENS], target=target, accuracy=ADAPTIVE)).sort_values(
        "row_id"
    )
    assert rows["status"].tolist() == ["ok", "ok", "bad_input", "ok", "bad_input"]
    assert rows["reason"].tolist()[2] == "target 8,2 is outside 0,0..7,2"
    assert rows["reason"].tolist()[4] == "target 9,3 is outside 0,0..15,2"
    assert rows["target"].tolist()[:2] == ["2,0", "11,1"]
    net = model(tagger)
    for i, place in ((0, (2, 0)), (1, (11, 1)), (3, (0, 2))):
        padded = TEXTS[i] + [0] * (-len(TEXTS[i]) % 8)
        out = net(torch.tensor([padded]))
        assert rows["f_input"].iloc[i] == pytest.approx(out[(0, *place)].item(), rel=1e-4)


def test_one_token_of_texts_that_may_be_shorter(tagger: JobFolder) -> None:
    asked = {"inputs": [TOKENS], "accuracy": ADAPTIVE}
    rows = tagger.rows(tagger.run(target={"kind": "index", "index": [7, 1]}, **asked))
    assert (rows["status"] == "ok").all()
    (tagger.path / "out").rename(tagger.path / "before")
    more = tagger.rows_of("rows.parquet")
    more["ids"] = [[1] * 12] * 4 + [[2]]
    tagger.write_table("rows.parquet", pa.Table.from_pandas(more))
    found = tagger.rows(tagger.run(target={"kind": "index", "index": [9, 1]}, **asked))
    assert found.sort_values("row_id")["status"].tolist() == ["ok"] * 4 + ["bad_input"]


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "region", "index": 1, "ranges": [[1, 3]]},
        {"kind": "region", "index": 1, "mask": "mask", "shape": [4], "reduce": "mean"},
    ],
)
def test_regions_of_a_model_with_categories(tagger: JobFolder, target: dict[str, Any]) -> None:
    inputs = [
        {"name": "amounts", "columns": ["age", "income"]},
        {"name": "plan", "ids": ["plan_id"], "embedding": ["plan"], "baseline": {"kind": "zero"}},
    ]
    asked = {"model": tagger.model(name="Table"), "inputs": inputs, "target": target}
    asked["accuracy"] = ADAPTIVE
    rows = tagger.rows(tagger.run(**asked)).sort_values("row_id", ignore_index=True)
    sys.path.insert(0, str(tagger.path))
    net = importlib.import_module(tagger.module).build("Table").double()
    source = tagger.rows_of("rows.parquet")
    amounts = torch.tensor(source[["age", "income"]].to_numpy())
    out = net(amounts, torch.tensor(source[["plan_id"]].to_numpy()))[:, 1]
    weights = torch.tensor([0.0, 1, 1, 0] if "ranges" in target else [0, 1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(rows["f_input"], (out @ weights.double()).detach(), rtol=1e-4)
    assert (rows["status"] == "ok").all()
    assert rows["target"].isna().all()
    found = verify_run(tagger.path / "out", sample=5, trusted=(tagger.module,))
    assert found.holds, found


def test_regions_of_texts_are_refused(tagger: JobFolder) -> None:
    with pytest.raises(SpecError, match="inputs of one shape"):
        tagger.plan(inputs=[TOKENS], target={"kind": "region", "ranges": [[0, 8], [0, 1]]})


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"kind": "index", "index": [3, 0, 0]}, "from 0, 0, 0 to 2, 5, 5"),
        ({"kind": "index", "index": [0, 0]}, "target"),
        ({"kind": "region", "index": 3, "ranges": [[0, 1], [0, 1]]}, "target.index"),
        ({"kind": "region", "index": [0, 0, 0], "ranges": [[0, 1]]}, "target.index"),
        ({"kind": "region", "index": 0, "ranges": [[0, 7], [0, 1]]}, "target.ranges"),
        ({"kind": "region", "index": 0, "ranges": [[0, 1]]}, "target.ranges"),
        ({"kind": "region", "index": 0, "mask": "small", "shape": [2, 2]}, "target.mask small"),
        ({"kind": "region", "index": 0, "mask": "small"}, "a shape, since its lists vary"),
        ({"kind": "region", "index": 0, "mask": "nope", "shape": [2, 2]}, "column `nope`"),
        (
            {"kind": "index", "index": [0, 0, 0], "transform": "softmax", "axis": 3},
            "target.axis",
        ),
        ({"kind": "column", "columns": ["class", "y"]}, "one for each axis"),
        ({"kind": "column", "columns": ["class", "y", "far"]}, "to 2,5,5"),
        ({"kind": "column", "columns": ["class", "y", "pixels"]}, "numeric column"),
        ({"kind": "column", "columns": ["class"], "column": "y"}, "give `column`"),
        ({"kind": "column"}, "give `column`"),
        ({"kind": "column", "column": "class"}, "use `scalar`"),
        ({"kind": "region"}, "give `ranges`"),
        ({"kind": "region", "ranges": [[0, 1]], "mask": "mask"}, "give `ranges`"),
        ({"kind": "region", "ranges": [[2, 2]]}, "first below last"),
        ({"kind": "region", "ranges": [[0, 1]], "shape": [1]}, "that of a mask"),
        ({"kind": "region", "ranges": [[0, 1]], "transform": "softmax"}, "over which axis"),
        ({"kind": "index", "index": 0, "axis": 0}, "that of transform softmax"),
    ],
)
def test_regions_that_are_not_there_are_refused(
    folder: JobFolder, target: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        folder.plan(**fields(target))
