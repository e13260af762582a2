"""The same results on every device; what only a CUDA device can show is skipped where there is
none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared, stepping
from integrand.workers.engine.problem import Problem
from integrand.workers.methods import phases
from integrand.workers.methods.attribution import Attribution, prepare
from integrand.workers.methods.criteria import Next
from integrand.workers.methods.fixed import integrate_fixed
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.rules import plain_rule
from integrand.workers.shards.job import Job
from integrand.workers.shards.numerics import pin_numerics
from integrand.workers.shards.shard import read_shard, run_shard
from tests.plugins.explaining import attribute_untried

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors and models are, with kernels pinned as in a worker."""
    strict = torch.get_deterministic_debug_mode()
    pin_numerics(1)
    yield str(request.param)
    torch.set_deterministic_debug_mode(strict)


def mlp(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 6),
        nn.Linear(6, 32),
        activation(),
        nn.Linear(32, 16),
        activation(),
        nn.Linear(16, 3),
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def images() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 8, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


X = torch.randn(21, 6, generator=torch.Generator().manual_seed(1))
PICTURES = torch.randn(9, 2, 8, 8, generator=torch.Generator().manual_seed(2))
CASES: dict[str, tuple[nn.Module, Tensor, Any]] = {
    "adaptive": (mlp(), X, Adaptive(tolerance=1e-3)),
    "kinked": (mlp(nn.ReLU), X, Adaptive(tolerance=0.05)),
    "fixed": (mlp(), X, FixedSteps(steps=15)),
    "images": (images(), PICTURES, Adaptive(tolerance=1e-3)),
}


def run(case: str, device: str, rows: slice | Tensor = slice(None), **options: Any) -> Attribution:
    model, x, accuracy = CASES[case]
    placed = prepare(
        copy.deepcopy(model).to(device), x.to(device), target=[0, 2], accuracy=accuracy
    )
    placed = replace(placed, network=None)  # the closed form runs on the CPU in any case
    return attribute_untried(
        placed,
        x[rows].to(device),
        target=[0, 2],
        accuracy=accuracy,
        batch_rows=32,
        **options,
    )


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_the_plain_model_on_the_cpu(device: str, case: str) -> None:
    """To 1e-5 of a row's attributions, all savings included, or what a flipped ReLU may change."""
    model, x, accuracy = CASES[case]
    plain = attribute_untried(Prepared(model), x, target=[0, 2], accuracy=accuracy, batch_rows=32)
    found = run(case, device)
    assert isinstance(found.attributions, Tensor)
    assert isinstance(plain.attributions, Tensor)
    assert found.attributions.device.type == device
    assert found.status == plain.status
    apart = (found.attributions.cpu() - plain.attributions).flatten(2).abs().sum(2)
    assert (
        apart <= (0.02 if case == "kinked" else 1e-5) * plain.attributions.flatten(2).abs().sum(2)
    ).all()
    torch.testing.assert_close(found.f_input, plain.f_input, rtol=1e-5, atol=1e-6)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("case", CASES)
def test_bits_repeat_whatever_rows_come_along(device: str, case: str) -> None:
    whole, again = run(case, device), run(case, device)
    order = torch.randperm(len(CASES[case][1]), generator=torch.Generator().manual_seed(3))[:7]
    part = run(case, device, order)
    for name in ("attributions", "error_estimate", "gap", "evaluations"):
        found, repeated, alone = (getattr(a, name).cpu() for a in (whole, again, part))
        np.testing.assert_array_equal(found, repeated)
        np.testing.assert_array_equal(found[order], alone)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_rounding_on_every_device(device: str, name: str) -> None:
    model = mlp().to(device)
    half = stepping(Prepared(model), name, device, compile=False)
    found, plain = (
        attribute_untried(m, X.to(device), target=1, accuracy=FixedSteps(steps=15), batch_rows=32)
        for m in (half, Prepared(model))
    )
    assert isinstance(found.attributions, Tensor)
    assert isinstance(plain.attributions, Tensor)
    apart = (found.attributions - plain.attributions).abs().sum(1) / plain.attributions.abs().sum(1)
    assert 0 < apart.max() < 0.1
    assert torch.equal(found.f_input, plain.f_input)


class Crowded(nn.Module):
    """Raises what CUDA raises for lack of memory above some rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = mlp(), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.net(x)


def test_step_batches_are_halved_where_memory_runs_out(device: str) -> None:
    crowded, roomy = (
        attribute_untried(Crowded(most).eval().to(device), X.to(device), target=1, batch_rows=64)
        for most in (20, 64)
    )
    assert (crowded.batch_rows, roomy.batch_rows) == (16, 64)
    torch.testing.assert_close(crowded.attributions, roomy.attributions, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_larger_than_the_memory_is_halved() -> None:
    model = (
        nn.Sequential(nn.Linear(6, 1 << 16), nn.GELU(), nn.Linear(1 << 16, 1))
        .eval()
        .requires_grad_(False)
        .cuda()
    )
    fits = torch.cuda.mem_get_info()[0] // (4 * 3 << 16)
    found = attribute_untried(
        Prepared(model),
        X.cuda(),
        accuracy=FixedSteps(steps=3),
        batch_rows=1 << fits.bit_length(),
    )
    assert found.batch_rows < 1 << fits.bit_length()
    assert torch.isfinite(torch.as_tensor(found.attributions)).all()


def test_a_shard_is_computed_on_the_workers_device(
    device: str, make_job: Callable[..., Job]
) -> None:
    """As planned for the CPU, moved to the device by hand: its rows follow."""
    table = pa.table(
        {c: np.random.default_rng(i).normal(size=30) for i, c in enumerate("abc")}
        | {"id": np.arange(30)}
    )
    job = make_job(table, compute={"batch_rows": 16, "shard_rows": 30, "precision": "float32"})
    assert isinstance(job.forward, nn.Module)
    moved = replace(
        job,
        forward=job.forward.to(device),
        prepared=Prepared(job.forward.to(device)),
        device=device,
    )
    footer = run_shard(
        moved, moved.plan.shards[0], read_shard(moved, moved.plan.shards[0]), 0.0, lambda: None
    )
    assert footer.statuses == {"ok": 30}


# --- without a CUDA device ---------------------------------------------------------------------

DONE, FINER, GRID = Next.DONE, Next.FINER, Next.GRID


@pytest.mark.parametrize("steps", [[], [FINER, FINER], [GRID, FINER, FINER], [FINER, GRID, FINER]])
@pytest.mark.parametrize("targets", [1, 2])
def test_no_step_mixes_devices(
    steps: list[Next], targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's device without numbers, where tensors of the CPU are refused beside its own: the
    adaptive mode, sent where a list says, and a plain rule.
    """
    model = nn.Sequential(nn.Linear(6, 8, device="meta"), nn.ReLU(), nn.Linear(8, 3, device="meta"))
    x = torch.empty(40, 6, device="meta")
    table = torch.empty(40, targets, 1, dtype=torch.int64, device="meta")
    tensors = RowTensors((x,), (x[:1],), target=table)
    problem = Problem(model.requires_grad_(False), tensors, 64, smaller=(32,))
    rows = torch.empty(40, dtype=torch.int64, device="meta")
    f = torch.empty(40, targets, dtype=torch.float64, device="meta")
    following = list(steps)

    class Sent:
        def __init__(self, numbers: Tensor) -> None:
            assert numbers.device.type == "meta"
            self.count = len(numbers)

        def arrived(self) -> np.ndarray:
            return np.full(self.count, following.pop(0) if following else DONE)

    monkeypatch.setattr(phases, "OnItsWay", Sent)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: torch.arange(len(tensor)))
    accuracy = Adaptive(tolerance=1e-3)
    adaptive = list(phases.integrate_adaptively(Evaluator(problem), accuracy, rows, f, f))
    rule = plain_rule(FixedSteps(steps=70))
    fixed = list(integrate_fixed(Evaluator(problem), rule, rows, f, f))
    assert not following
    for verdicts in (adaptive, fixed):
        assert sum(len(verdict.status) for verdict in verdicts) == 40 * targets
        assert {verdict.attributions.device.type for verdict in verdicts} == {"meta"}


def test_tensors_of_two_devices_are_refused_there() -> None:
    """So that the test above has something to find."""
    with pytest.raises(RuntimeError):
        _ = torch.empty(3, device="meta") + torch.ones(3)
