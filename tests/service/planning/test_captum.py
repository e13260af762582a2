"""Whole jobs by Captum's classes: the numbers are Captum's, whatever the shards, and what cannot
work is refused before any worker starts.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import captum.attr
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.ids import digest_json
from integrand.schemas.specs.job import parse_spec
from integrand.service.checks.verify import verify_run
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.workers.methods.captum.classes import TRAITS
from integrand.workers.methods.captum.running import seeded
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.philox import keys_of
from tests.plugins.jobs import COLUMNS, JobFolder

ROWS, SIDE = 12, 6
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(12, 3)
        self.norm.running_mean.fill_(0.2)

    def forward(self, x):
        return self.last(self.pool(self.relu(self.norm(self.conv(x)))).flatten(1))

def build():
    return Net().eval()
"""
TABLE = """
import torch
from torch import nn

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.plan, self.first = nn.Embedding(4, 3), nn.Linear(4, 8)
        self.relu, self.last = nn.ReLU(), nn.Linear(8, 2)

    def forward(self, amounts, plan):
        seen = torch.cat([amounts, self.plan(plan).flatten(1)], 1)
        return self.last(self.relu(self.first(seen)))

def build():
    return Table().eval()
"""
METHODS: dict[str, Any] = {
    "DeepLift": "captum:DeepLift",
    "DeepLiftShap": "captum:DeepLiftShap",
    "GradientShap": {"kind": "captum", "name": "GradientShap", "arguments": {"n_samples": 4}},
    "FeatureAblation": "captum:FeatureAblation",
    "Occlusion": {
        "kind": "captum",
        "name": "Occlusion",
        "arguments": {"sliding_window_shapes": [1, 3, 3], "strides": [1, 2, 2]},
    },
    "LRP": "captum:LRP",
    "GuidedGradCam": {"kind": "captum", "name": "GuidedGradCam", "arguments": {"layer": "conv"}},
    "Lime": {"kind": "captum", "name": "Lime", "arguments": {"n_samples": 9}, "seed": 3},
    "KernelShap": {"kind": "captum", "name": "KernelShap", "arguments": {"n_samples": 9}},
}
PLAIN = [name for name in METHODS if name != "DeepLiftShap"]
"""Those that one baseline is enough for."""


@pytest.fixture
def images(tmp_path: Any) -> JobFolder:
    folder = JobFolder(tmp_path)
    (tmp_path / f"{folder.module}.py").write_text(MODEL)
    write_images(folder, np.arange(ROWS))
    return folder


def write_images(folder: JobFolder, order: np.ndarray) -> None:
    pixels = np.random.default_rng(0).normal(size=(ROWS, SIDE * SIDE)).astype(np.float32)
    columns = {"id": order, "pixels": pa.array(pixels[order].tolist(), pa.list_(pa.float32()))}
    folder.write_table("rows.parquet", pa.table(columns))


def run(folder: JobFolder, method: Any, **changes: Any) -> tuple[pd.DataFrame, Any]:
    fields = {
        "inputs": [{"name": "image", "column": "pixels", "shape": [1, SIDE, SIDE]}],
        "method": method,
        "compute": {"shard_rows": 5, "batch_rows": 16},
        "output": {"uri": "out"},
    } | changes
    left_out = folder.fields()
    left_out.pop("accuracy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "fields", lambda **more: left_out | more, raising=False)
        manifest = folder.run(**fields)
    rows = folder.rows(manifest, fields["output"]["uri"]).sort_values("row_id", ignore_index=True)
    return rows, manifest


def attributions(rows: pd.DataFrame) -> Tensor:
    stacked = np.stack([np.asarray(v, np.float32) for v in rows["attr.image"]])
    return torch.from_numpy(stacked).reshape(-1, 1, SIDE, SIDE)


def directly(folder: JobFolder, name: str) -> Tensor:
    """Captum called by hand on the same model and rows, row by row where it draws."""
    spec = METHODS[name] if isinstance(METHODS[name], dict) else {}
    arguments = {k: tuples(v) for k, v in spec.get("arguments", {}).items()}
    sys.path.insert(0, str(folder.path))
    net = importlib.import_module(folder.module).build()
    made = [getattr(net, arguments.pop("layer"))] if "layer" in arguments else []
    if name == "GradientShap":
        arguments["baselines"] = torch.zeros(1, 1, SIDE, SIDE)
    pixels = folder.rows_of("rows.parquet").sort_values("id")["pixels"]
    x = torch.from_numpy(np.stack(pixels)).reshape(-1, 1, SIDE, SIDE)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, row in enumerate(x[:, None]):
            named = RowTensors((row,), keys=keys_of([str(number)]))
            with seeded(spec.get("seed", 0), named, 0):
                instance = getattr(captum.attr, name)(net, *made)
                found.append(instance.attribute(row.clone(), target=1, **arguments).detach())
    return torch.cat(found)


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("name", PLAIN)
def test_a_job_says_what_captum_says(name: str, images: JobFolder) -> None:
    rows, manifest = run(images, METHODS[name])
    assert manifest.statuses == {"unchecked": ROWS}
    assert manifest.promises_completeness == TRAITS[name].complete
    assert rows["error_estimate"].isna().all()
    found = attributions(rows)
    torch.testing.assert_close(found, directly(images, name), rtol=1e-5, atol=1e-6)
    change = (rows["f_input"] - rows["f_baseline"]).to_numpy()
    total = found.double().flatten(1).sum(1).numpy()
    np.testing.assert_allclose(rows["gap"], total - change, rtol=1e-5, atol=1e-6)
    assert (rows["evaluations"] >= 1).all()
    assert manifest.numerics.savings == ()


@pytest.mark.parametrize("name", PLAIN)
def test_no_number_depends_on_how_the_work_was_cut(name: str, images: JobFolder) -> None:
    first, manifest = run(images, METHODS[name])
    assert manifest.determinism == "bitwise"
    write_images(images, np.arange(ROWS)[::-1])
    compute = {"shard_rows": 7, "batch_rows": 16}
    other, _ = run(images, METHODS[name], compute=compute, output={"uri": "other"})
    pd.testing.assert_frame_equal(first, other)


def test_a_distribution_of_baselines_is_taken_together(images: JobFolder) -> None:
    """DeepLiftShap over K baselines is DeepLift averaged over the same ones, each row its own."""
    baseline = {"kind": "gaussian", "sigma": 0.5, "clip": False, "draws": 3, "seed": 2}
    together, manifest = run(images, METHODS["DeepLiftShap"], baseline=baseline)
    averaged, _ = run(images, METHODS["DeepLift"], baseline=baseline, output={"uri": "other"})
    assert set(together["evaluations"]) == {6}
    assert manifest.promises_completeness
    torch.testing.assert_close(attributions(together), attributions(averaged), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(together["gap"], averaged["gap"], rtol=1e-4, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no class of Captum": ({"method": "captum:DeepLyft"}, "captum:DeepLift"),
    "an unknown argument": (
        {"method": METHODS["Lime"] | {"arguments": {"samples": 3}}},
        "n_samples",
    ),
    "one baseline for a distribution": ({"method": "captum:DeepLiftShap"}, "`draws`"),
    "a layer that is not there": (
        {"method": METHODS["GuidedGradCam"] | {"arguments": {"layer": "convs"}}},
        "`conv`",
    ),
    "an accuracy": (
        {"method": "captum:LRP", "accuracy": {"kind": "fixed", "steps": 9}},
        "approximates nothing",
    ),
    "a compiled model": (
        {"method": "captum:DeepLift", "compute": {"compile": True}},
        "compile false",
    ),
    "reduced precision": (
        {"method": "captum:DeepLift", "compute": {"precision": "bfloat16"}},
        "float32 or float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_any_worker_starts(
    name: str, images: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = REFUSED[name]
    monkeypatch.setattr("integrand.workers.shards.worker.Worker.__init__", None)
    with pytest.raises(SpecError, match=words):
        run(images, changes["method"], **{k: v for k, v in changes.items() if k != "method"})


@pytest.mark.parametrize(
    ("forward", "method", "told"),
    [
        ("return self.logits(x)", "captum:DeepLift", True),  # torch.tanh, a function
        ("return self.first(x)", "captum:DeepLift", False),
        ("return self.logits(x)", "captum:IntegratedGradients", False),
        ("return self.logits(x)", "captum:Saliency", False),
    ],
)
def test_a_plan_tells_where_a_promise_is_not_kept(
    forward: str, method: str, told: bool, job: JobFolder
) -> None:
    job.write_model(forward)
    fields = job.fields(method=method)
    fields.pop("accuracy")
    operator = Operator(trusted=(job.module,))
    plan = plan_job(parse_spec(fields), base=str(job.path), operator=operator)
    assert any("miss f(x) − f(x')" in warning for warning in plan.warnings) == told


@pytest.mark.parametrize("method", ["captum:GradientShap", "captum:Saliency", "saliency"])
def test_baselines_that_are_taken_together_have_no_spread(method: str, images: JobFolder) -> None:
    baseline = {"kind": "gaussian", "sigma": 0.5, "clip": False, "draws": 3}
    with pytest.raises(SpecError, match=f"output.spread(.|\n)*method {method}"):
        run(images, method, baseline=baseline, output={"uri": "out", "spread": True})


@pytest.mark.parametrize("name", ["DeepLift", "FeatureAblation", "Lime"])
def test_rows_are_the_same_when_they_are_attributed_again(name: str, images: JobFolder) -> None:
    run(images, METHODS[name])
    found = verify_run(images.path / "out", sample=ROWS, trusted=(images.module,))
    assert found.findings == ()
    assert found.bitwise == found.sampled == ROWS


def test_the_output_transform_is_a_layer_that_a_class_sees(images: JobFolder) -> None:
    """DeepLift of a probability adds up to a difference of probabilities."""
    target = {"kind": "index", "index": 1, "transform": "softmax"}
    rows, _ = run(images, METHODS["GradientShap"], target=target)
    assert rows["f_input"].between(0, 1).all()
    rows, _ = run(images, METHODS["DeepLift"], target=target, output={"uri": "other"})
    assert (rows["gap"].abs() < 0.2).all()


def test_a_plan_names_the_class(images: JobFolder) -> None:
    spec = images.spec(method="captum:Saliency", accuracy={"kind": "adaptive"})
    assert spec.method.title == "captum:Saliency"
    assert images.spec().method.title == "integrated_gradients"


def test_reasons_need_contributions_and_not_slopes(images: JobFolder) -> None:
    output = {"uri": "out", "reasons": {"k": 1, "toward": "higher"}}
    features = [{"name": "features", "columns": list(COLUMNS)}]
    images.write_model()
    images.write_rows()
    with pytest.raises(SpecError, match="captum:GuidedBackprop"):
        run(images, "captum:GuidedBackprop", inputs=features, output=output)
    rows, _ = run(images, "captum:FeatureAblation", inputs=features, output=output)
    assert rows["reasons"].map(len).eq(1).any()


def test_ids_are_attributed_through_their_embeddings(tmp_path: Any) -> None:
    """Numbers and ids beside them, by classes that hook into layers and by some that do not."""
    folder = JobFolder(tmp_path)
    (tmp_path / f"{folder.module}.py").write_text(TABLE)
    random = np.random.default_rng(1)
    columns = {"id": np.arange(ROWS), "plan": random.integers(0, 4, ROWS)}
    columns["age"] = random.normal(size=ROWS)
    folder.write_table("rows.parquet", pa.table(columns))
    inputs = [
        {"name": "amounts", "columns": ["age"]},
        {"name": "plan", "ids": ["plan"], "embedding": "plan", "baseline": {"kind": "zero"}},
    ]
    for method in ("captum:DeepLift", "captum:FeatureAblation", METHODS["KernelShap"]):
        out = f"out-{digest_json(method)[:6]}"
        rows, manifest = run(folder, method, inputs=inputs, output={"uri": out})
        assert manifest.statuses == {"unchecked": ROWS}
        assert {"attr.age", "attr.plan"} <= set(rows)
        if manifest.promises_completeness:
            assert (rows["gap"].abs() < 1e-4).all()
