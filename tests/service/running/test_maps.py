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
