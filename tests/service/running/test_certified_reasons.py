"""What a whole job certifies of reasons is so: held against references in float64, over 1,000 rows
of each of three models.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn

from integrand.schemas.errors import SpecError
from integrand.service.cli.specfile import load_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.service.runs.query import Run, open_run

CREDIT = Path(__file__).parents[3] / "examples/credit"
ROWS, FEATURES, K = 1000, tuple("abcdefgh"), 4
MODELS = """
import torch
from torch import nn

class Score(nn.Module):
    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        act = getattr(nn, activation)
        self.net = nn.Sequential(
            nn.Linear(8, 24), act(), nn.Linear(24, 24), act(), nn.Linear(24, 24), act(),
            nn.Linear(24, 1),
        )

    def forward(self, x):
        return torch.sigmoid(4 * self.net(x)).squeeze(1)

class Twins(nn.Module):
    '''Features a to h of weights 8 to 1, but for d and e, which weigh the same up to `apart`.'''

    def __init__(self, apart):
        super().__init__()
        weights = torch.arange(8.0, 0.0, -1.0)
        weights[3:5] = torch.tensor([4.5 + apart, 4.5])
        self.register_buffer("weights", -weights / 20)

    def forward(self, x):
        return torch.tanh(x @ self.weights)

def build(name, argument):
    return globals()[name](argument).eval()
"""


def write_job(job: Any, rows: int, value: float | None = None) -> None:
    (job.path / f"{job.module}.py").write_text(MODELS)
    drawn = 2 * np.random.default_rng(5).normal(size=(rows, len(FEATURES)))
    values = drawn if value is None else np.full(drawn.shape, value)
    columns = dict(zip(FEATURES, values.T.astype(np.float32), strict=True))
    job.write_table("rows.parquet", pa.table({"id": np.arange(rows), **columns}))


def run_model(job: Any, name: str, argument: Any, **accuracy: Any) -> Run:
    manifest = job.run(
        model=job.model(name=name, argument=argument),
        inputs=[{"name": "features", "columns": list(FEATURES)}],
        target={"kind": "scalar"},
        accuracy={"kind": "adaptive"} | accuracy,
        output={"uri": "out", "reasons": {"k": K, "toward": "lower"}},
        compute={"shard_rows": 500},
    )
    return open_run(job.run_uri(manifest))


def reference(model: nn.Module, x: np.ndarray, baseline: np.ndarray, panels: int) -> np.ndarray:
    """Integrated Gradients in float64 by 4 Gauss nodes on each panel, written out here."""
    model, inputs = model.double(), torch.tensor(x)
    start = torch.from_numpy(baseline)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    total = torch.zeros_like(inputs)
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            alpha = (panel + (node + 1) / 2) / panels
            point = (start + alpha * (inputs - start)).requires_grad_()
            (found,) = torch.autograd.grad(model(point).sum(), point)
            total += weight / 2 / panels * found
    return ((inputs - start) * total).numpy()


def largest(pushes: np.ndarray) -> set[int]:
    order = np.argsort(-pushes)[:K]
    return {int(i) for i in order if pushes[i] > 0}


def assert_certified_sets_are_true(frame: pd.DataFrame, true: np.ndarray, codes: list[str]) -> None:
    """`true` are contributions by code, [rows, codes]."""
    statuses = frame["reasons_status"]
    wrong = []
    for i in np.flatnonzero(statuses == "certified"):
        told = {codes.index(reason["code"]) for reason in frame["reasons"][i]}
        if told != largest(-true[i]):
            wrong.append(i)
        assert all(true[i, code] < 0 for code in told)
    assert wrong == []
    for i in np.flatnonzero(statuses == "none_toward"):
        assert (true[i] >= 0).all()


@pytest.mark.parametrize(
    ("activation", "panels", "least"), [("GELU", 32, 0.995), ("ReLU", 500, 0.6)]
)
@pytest.mark.parametrize("until", ["tolerance", "reasons"])
def test_no_certified_set_of_1000_rows_differs(
    job: Any, activation: str, panels: int, least: float, until: str
) -> None:
    write_job(job, ROWS)
    run = run_model(job, "Score", activation, tolerance=5e-2, max_evaluations=256, until=until)
    frame = run.to_pandas(inputs=True)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    x = frame[list(FEATURES)].to_numpy(np.float64)
    true = reference(scope["build"]("Score", activation), x, np.zeros((1, 8)), panels)
    assert_certified_sets_are_true(frame, true, list(FEATURES))
    certified = (frame["reasons_status"] == "certified").mean()
    assert certified > (least if until == "reasons" else 0.3)
    assert (frame["status"] == "ok").mean() > 0.98


@pytest.mark.parametrize("apart", [0.0, 1e-6, -1e-6])
@pytest.mark.parametrize("until", ["tolerance", "reasons"])
def test_near_equals_at_the_edge_are_uncertain_whichever_is_ahead(
    job: Any, apart: float, until: str
) -> None:
    write_job(job, 3, value=0.5)
    frame = run_model(job, "Twins", apart, until=until).to_pandas()
    assert set(frame["reasons_status"]) == {"order_uncertain"}
    for reasons in frame["reasons"]:
        assert [r["feature"] for r in reasons][:3] == ["a", "b", "c"]
        assert [r["separated"] for r in reasons] == [True, True, True, False]


def test_twins_within_the_set_leave_it_certain(job: Any) -> None:
    write_job(job, 3, value=0.5)
    apart = run_model(job, "Twins", 0.25).to_pandas()
    assert set(apart["reasons_status"]) == {"certified"}
    assert [r["feature"] for r in apart["reasons"][0]] == list("abcd")


def test_reasons_of_real_credits_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the documentation, whose codes add up features."""
    shutil.copytree(CREDIT, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "credit_model", raising=False)
    import credit_model  # type: ignore[import-not-found]

    model = credit_model.fit(tmp_path / "applications.csv")
    credit_model.save(model, tmp_path / "credit.safetensors")
    spec, base = load_spec(tmp_path / "credit.yaml")
    trusted = Operator(trusted=("credit_model",))
    run_job(spec, base=base, operator=trusted, cluster=Cluster("local"))
    frame = open_run(tmp_path / "out").to_pandas(inputs=True)
    assert (frame["reasons"].notna() == (frame["f_input"] < 0.5)).all()
    x = frame[list(credit_model.FEATURES)].to_numpy(np.float64)
    true = reference(model, x, x.mean(0, keepdims=True), 32)
    lines = pd.read_csv(tmp_path / "reasons.csv", index_col="feature_or_group")
    codes = sorted(set(lines["code"]))
    sums = np.zeros((len(x), len(codes)))
    for place, name in enumerate(credit_model.FEATURES):
        if name in lines.index:
            sums[:, codes.index(lines.loc[name, "code"])] += true[:, place]
    assert_certified_sets_are_true(frame, sums, codes)
    assert (frame["reasons_status"] == "certified").sum() > 150


# --- asked for in vain ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": {"uri": "out"}}, r"no output\.reasons"),
        ({"method": "saliency"}, "approximates nothing"),
        ({"method": {"kind": "smoothgrad", "sigma": 1}}, "for integrated_gradients"),
    ],
)
def test_until_reasons_needs_reasons_and_a_method_that_goes_on(
    job: Any, changes: dict[str, Any], said: str
) -> None:
    asked = {"uri": "out", "reasons": {"toward": "lower"}}
    accuracy = {"kind": "adaptive", "until": "reasons"}
    with pytest.raises(SpecError, match=said):
        job.spec(**({"accuracy": accuracy, "output": asked} | changes))


def test_until_reasons_is_another_run_and_its_default_is_not(job: Any) -> None:
    output = {"uri": "out", "reasons": {"toward": "lower"}}
    ids = []
    for accuracy in ({}, {"until": "tolerance"}, {"until": "reasons"}):
        ids.append(job.plan(accuracy={"kind": "adaptive"} | accuracy, output=output).run_id)
    assert ids[0] == ids[1] != ids[2]
