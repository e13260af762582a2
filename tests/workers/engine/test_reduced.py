"""TF32 in step batches: when its switches are on, and that no certificate hides what it costs. Here
by a stand-in that reads the factors of products to 11 bits, as CUDA does.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers import switches
from integrand.workers.engine import prepared as preparing
from integrand.workers.engine.prepared import Prepared, stepping
from integrand.workers.engine.reduced import REDUCED
from integrand.workers.engine.rounding import PROBING
from integrand.workers.methods.attribution import Attribution
from tests.plugins.explaining import attribute_untried
from tests.plugins.rounding import rounding_to

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def is_on() -> bool:
    """Whether CUDA would read float32 factors to 11 bits."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        owners: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
        return [owner.fp32_precision for owner in owners] == ["tf32", "tf32"]
    return torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


class Noted(torch.autograd.Function):
    """The identity; notes in `SEEN` whether TF32 is on in each pass."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        SEEN.append(("forward" if torch.is_grad_enabled() else "outputs", is_on()))
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        SEEN.append(("backward", is_on()))
        return gradients[0]


SEEN: list[tuple[str, bool]] = []


def net(activation: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(16, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_passes_have_tf32_and_outputs_have_not() -> None:
    """Gradients are taken forwards and backwards under it, f at both ends of a path is not."""
    SEEN.clear()
    model = net(nn.GELU)

    def noted(x: Tensor) -> Tensor:
        out: Tensor = Noted.apply(model(x))  # type: ignore[no-untyped-call]
        return out

    with switches.pinned():
        found = attribute_untried(
            stepping(Prepared(noted), "tf32", "cpu", compile=False),
            X[:4],
            target=1,
            accuracy=FixedSteps(steps=3),
            batch_rows=4,
        )
        assert not is_on()
    kinds = set(SEEN)
    assert ("backward", True) in kinds
    assert ("backward", False) not in kinds
    assert ("outputs", False) in kinds
    assert found.status == (RowStatus.unchecked,) * 4


def test_switching_costs_little_beside_a_step() -> None:
    with switches.tf32():
        pass
    started = time.perf_counter()
    for _ in range(100):
        with switches.tf32():
            pass
    assert (time.perf_counter() - started) / 100 < 2e-3


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "REDUCED", REDUCED | {"tf32": rounding_to(11)})


def attributed(model: nn.Module | Prepared, accuracy: Adaptive, x: Tensor = X) -> Attribution:
    forward = model if isinstance(model, Prepared) else Prepared(model)
    return attribute_untried(forward, x, target=1, batch_rows=64, accuracy=accuracy)


def errors(model: nn.Module, found: Attribution) -> np.ndarray:
    """‖a − a*‖₁ / ‖a*‖₁ against float64."""
    accuracy = Adaptive(tolerance=1e-3, max_evaluations=4096, on_unreachable="spend")
    exact = attributed(copy.deepcopy(model).double(), accuracy, X.double())
    assert isinstance(exact.attributions, Tensor)
    assert isinstance(found.attributions, Tensor)
    size = exact.attributions.abs().sum(1)
    return ((found.attributions - exact.attributions).abs().sum(1) / size).numpy()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("activation", "tolerance"), [(nn.GELU, 0.01), (nn.ReLU, 0.05)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_certificate_under_tf32_is_false(
    activation: type[nn.Module], tolerance: float, seed: int
) -> None:
    model = net(activation, seed)
    step = stepping(Prepared(model), "tf32", "cpu", compile=False)
    found = attributed(step, Adaptive(tolerance=tolerance))
    certified = np.array([status is RowStatus.ok for status in found.status])
    assert certified.mean() > 0.5
    assert (errors(model, found)[certified] <= tolerance).all()
    plain = attributed(model, Adaptive(tolerance=tolerance))
    assert torch.equal(found.f_input, plain.f_input)
    assert not torch.equal(found.attributions, plain.attributions)
    if activation is nn.GELU:
        assert (found.evaluations == 7 + PROBING).double().mean() > 0.7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_certificate_under_tf32_is_false_on_a_device() -> None:
    model = net(nn.GELU).cuda()
    with switches.pinned():
        step = stepping(Prepared(model), "tf32", "cuda", compile=False)
        found = attribute_untried(
            step, X.cuda(), target=1, accuracy=Adaptive(tolerance=0.01), batch_rows=64
        )
    certified = np.array([status is RowStatus.ok for status in found.status])
    assert certified.any()
    on_cpu = Attribution(**vars(found) | {"attributions": found.attributions.cpu()})  # type: ignore[union-attr]
    assert (errors(model.cpu(), on_cpu)[certified] <= 0.01).all()
