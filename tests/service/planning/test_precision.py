"""Precision and compilation as a job asks for them: what is planned, recorded, warned of and
written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.records import Numerics
from integrand.service.planning import planner
from integrand.workers.engine import prepared
from integrand.workers.engine.reduced import REDUCED
from tests.plugins.jobs import COLUMNS, JobFolder
from tests.plugins.rounding import rounding_to

ADAPTIVE = {"kind": "adaptive", "tolerance": 0.05}


TEXT = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.last(self.words(tokens).tanh().sum(1))

def build():
    torch.manual_seed(0)
    return Text().eval()
"""


def compute(**changes: object) -> dict[str, object]:
    return {"shard_rows": 10, "batch_rows": 16} | changes


def test_float64_is_float64_all_the_way(job: JobFolder) -> None:
    """Inputs, mean baseline, scaling, sums and columns: against a model and a rule of our own in
    float64.
    """
    third = 1 / 3 + np.arange(20) * 1e-12
    job.write_rows(a=third, b=-third, c=np.sqrt(third))
    inputs = [{"name": "features", "columns": list(COLUMNS), "divide": 3, "std": 0.7}]
    manifest = job.run(
        compute=compute(precision="float64"), baseline={"kind": "mean"}, inputs=inputs
    )
    found = job.rows(manifest)
    torch.manual_seed(0)
    first, last = torch.nn.Linear(3, 8).double(), torch.nn.Linear(8, 2).double()
    x = torch.from_numpy(np.stack([third, -third, np.sqrt(third)], 1)) / 3 / 0.7
    baseline = x.mean(0, keepdim=True)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (baseline + node * (x - baseline)).requires_grad_()
        total += weight * torch.autograd.grad(last(torch.tanh(first(point)))[:, 1].sum(), point)[0]
    expected = (total * (x - baseline)).numpy()
    values = found[[f"attr.{c}" for c in COLUMNS]].to_numpy()
    assert {str(found[c].dtype) for c in (*[f"attr.{c}" for c in COLUMNS], "f_input", "gap")} == {
        "float64"
    }
    # differences of 1e-12 carry no more digits
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=0)
    assert np.abs(expected).max() < 1e-10
    assert found["f_input"].nunique() == 20


@pytest.mark.needs_strict_kernels
def test_a_model_that_casts_down_is_told(job: JobFolder) -> None:
    job.write_model("return self.logits(x).float()")
    assert any(
        "returns float32 although precision is float64" in w
        for w in job.plan(compute=compute(precision="float64")).warnings
    )
    assert job.plan(compute=compute()).warnings == ()


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_measured_warned_of_and_recorded(job: JobFolder, name: str) -> None:
    plan = job.plan(accuracy=ADAPTIVE, compute=compute(precision=name))
    assert (plan.numerics.precision, plan.numerics.autocast) == ("float32", name)
    assert plan.half_error is not None
    assert plan.half_error.max is not None
    eps = torch.finfo(getattr(torch, name)).eps
    assert 0.01 * eps < plan.half_error.max < 10 * eps
    assert [name in w and "of their size" in w for w in plan.warnings] == [True]
    manifest = job.run(accuracy=ADAPTIVE, compute=compute(precision=name))
    assert (manifest.half_error, manifest.numerics) == (plan.half_error, plan.numerics)
    rows = job.rows(manifest)
    assert {str(rows[f"attr.{c}"].dtype) for c in COLUMNS} == {"float32"}
    assert rows.loc[rows["status"] == "ok", "error_estimate"].max() <= 0.05
    plain = job.rows(job.run(accuracy=ADAPTIVE, compute=compute()))
    assert (rows["f_input"] == plain["f_input"]).all()
    assert not (rows["attr.a"] == plain["attr.a"]).all()


def test_a_tolerance_that_half_precision_cannot_reach_is_warned_of(job: JobFolder) -> None:
    changes = {
        "accuracy": {"kind": "adaptive", "tolerance": 0.005},
        "compute": compute(precision="bfloat16"),
    }
    assert any(
        "no row can be certified to 0.005 under bfloat16" in w for w in job.plan(**changes).warnings
    )
    assert job.run(**changes).statuses == {"at_precision_floor": 20}


def test_precisions_are_different_runs_and_plans_of_older_numerics_still_load(
    job: JobFolder,
) -> None:
    plans = {
        p: job.plan(compute=compute(precision=p))
        for p in ("float32", "float64", "bfloat16", "float16")
    }
    assert len({plan.run_id for plan in plans.values()}) == 4
    older = plans["float32"].numerics.model_dump(exclude={"autocast", "compile", "tf32"})
    assert Numerics.model_validate(older) == plans["float32"].numerics


def test_the_closed_form_needs_no_half_precision(job: JobFolder) -> None:
    """It is taken in float64 without step batches, so that the run is that of float32."""
    job.path.joinpath(f"{job.module}.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()\n"
    )
    half, plain = (
        job.plan(accuracy=ADAPTIVE, compute=compute(precision=p)) for p in ("bfloat16", "float32")
    )
    assert half.numerics.exact
    assert (half.numerics.autocast, half.half_error, half.run_id) == (None, None, plain.run_id)


def test_gpus_that_planning_does_not_see_are_refused(job: JobFolder) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SpecError, match=r"compute\.gpus_per_worker") as caught:
        job.plan(compute=compute(gpus_per_worker=1))
    for words in ("a CUDA device where the job is planned", "entrypoint-num-gpus", "worker: 0"):
        assert words in str(caught.value)


@pytest.mark.parametrize("gpus", [1.5, 2.001])
def test_a_worker_has_a_part_of_a_gpu_or_whole_ones(job: JobFolder, gpus: float) -> None:
    with pytest.raises(SpecError, match="a part of one GPU, or whole ones"):
        job.spec(compute=compute(gpus_per_worker=gpus))


# --- compile -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's compiler needs vectors on x86",
)
@pytest.mark.needs_tool("g++")
def test_a_compiled_model_gives_the_same_attributions(job: JobFolder) -> None:
    """Several targets go back through one forward pass; all shards run what was compiled once: as
    the model is, since what is behind a hoisted prefix is built anew by every worker.
    """
    torch._dynamo.utils.counters.clear()
    compiled, plain = (
        job.run(target={"kind": "all"}, compute=compute(compile=flag, savings="none"))
        for flag in (True, False)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled.run_id != plain.run_id
    assert [m.numerics.compile for m in (compiled, plain) if m.numerics] == [True, False]
    names = [f"attr.{c}" for c in COLUMNS]
    values = [job.rows(m)[names].to_numpy() for m in (compiled, plain)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-6)


def test_what_does_not_compile_is_refused_while_planning(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No compiler on the machine, or a model that it does not take."""
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.raises(SpecError, match=r"compute\.compile") as caught:
        job.plan(compute=compute(compile=True))
    assert "no-such-compiler" in str(caught.value)
    assert "compute.compile: false" in str(caught.value)


def test_lists_of_varying_length_are_not_compiled(job: JobFolder) -> None:
    job.path.joinpath(f"{job.module}.py").write_text(TEXT)
    job.write_rows(tokens=[[1] * (1 + i % 4) for i in range(20)])
    inputs = [{"name": "tokens", "ids": "tokens", "embedding": "words", "pad": 0}]
    assert job.plan(inputs=inputs, compute=compute()).inputs[0].varying
    with pytest.raises(SpecError, match="inputs of one shape"):
        job.plan(inputs=inputs, compute=compute(compile=True))


# --- TF32 --------------------------------------------------------------------------------------

TF32 = compute(precision="tf32")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Factors of some bits in the place of TF32, on the CPU, which is not refused."""
    monkeypatch.setattr(planner, "check_precision", lambda spec: None)

    def put(bits: int) -> None:
        monkeypatch.setattr(prepared, "REDUCED", REDUCED | {"tf32": rounding_to(bits)})

    return put


def test_tf32_is_refused_without_gpus(job: JobFolder) -> None:
    with pytest.raises(SpecError, match=r"tf32(.|\n)*gpus_per_worker: 0(.|\n)*precision: float32"):
        job.plan(compute=TF32)


def test_tf32_is_measured_told_recorded_and_run(
    job: JobFolder, stand_in: Callable[[int], None]
) -> None:
    stand_in(11)
    plan = job.plan(accuracy=ADAPTIVE, compute=TF32)
    assert (plan.numerics.precision, plan.numerics.tf32) == ("float32", True)
    assert plan.numerics.autocast is None
    assert plan.half_error is not None
    assert plan.half_error.max is not None
    assert 1e-5 < plan.half_error.max < 1e-2
    assert any("tf32 moves the attributions of the first rows" in w for w in plan.warnings)
    manifest = job.run(accuracy=ADAPTIVE, compute=TF32)
    assert manifest.numerics == plan.numerics
    rows, plain = job.rows(manifest), job.rows(job.run(accuracy=ADAPTIVE, compute=compute()))
    assert (rows["f_input"] == plain["f_input"]).all()
    assert not (rows["attr.a"] == plain["attr.a"]).all()
    assert rows.loc[rows["status"] == "ok", "error_estimate"].max() <= 0.05


@pytest.mark.parametrize(
    ("accuracy", "remedy"),
    [
        (ADAPTIVE, "or a tolerance above"),
        ({"kind": "fixed", "steps": 9}, "set compute.precision: float32"),
    ],
    ids=["adaptive", "fixed"],
)
def test_a_model_that_tf32_spoils_is_refused_with_what_was_measured(
    job: JobFolder, stand_in: Callable[[int], None], accuracy: dict[str, object], remedy: str
) -> None:
    stand_in(4)
    with pytest.raises(SpecError, match=r"tf32(.|\n)*the first rows moved by 0\.0") as refused:
        job.plan(accuracy=accuracy, compute=TF32)
    assert remedy in str(refused.value)
