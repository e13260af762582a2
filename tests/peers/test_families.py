"""Families of functions whose attributions have a closed form, whatever their curve."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from tests.peers.checking import check
from tests.peers.models import (
    normal,
    tensor,
)

Model = Callable[..., Tensor]


W = tensor(1.5, -0.75, 0.25)
CURVES: dict[str, Model] = {
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": lambda s: (4 * s).cos(),
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "atan": torch.atan,
    "cube": lambda s: s**3,
    "rational": lambda s: 1 / (4 + s**2),
    "log": lambda s: (s + 20).log(),
}
BENDS: dict[str, Model] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "leaky": lambda s: nn.functional.leaky_relu(s, 0.1),
    "relu6": nn.functional.relu6,
    "hardtanh": nn.functional.hardtanh,
    "hardswish": nn.functional.hardswish,
    "elu": nn.functional.elu,
    "softshrink": nn.functional.softshrink,
    "prelu": lambda s: nn.functional.prelu(s, s.new_tensor([0.25])),
}


def ridge(curve: Model, x: Tensor, baseline: Tensor) -> Tensor:
    """Of g(w·x): a_i = w_i d_i (g(s) − g(s')) / (s − s'), since the derivative is the same for
    every feature.
    """
    s, before = x @ W, baseline @ W
    return W * (x - baseline) * ((curve(s) - curve(before)) / (s - before))[:, None]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("name", CURVES)
def test_curves_of_a_weighted_sum(name: str, tolerance: float) -> None:
    x, baseline = normal(12, 3), normal(12, 3, seed=1)
    found = attribute(
        lambda v: CURVES[name](v @ W), x, baselines=baseline, accuracy=Adaptive(tolerance=tolerance)
    )
    assert {*found.status} <= {RowStatus.ok, RowStatus.at_precision_floor}
    check(found, ridge(CURVES[name], x, baseline), tolerance)


@pytest.mark.parametrize("name", BENDS)
def test_bent_curves_of_a_weighted_sum(name: str) -> None:
    x, baseline = 3 * normal(12, 3), 3 * normal(12, 3, seed=1)
    found = attribute(
        lambda v: BENDS[name](v @ W),
        x,
        baselines=baseline,
        accuracy=Adaptive(tolerance=1e-2, max_evaluations=2048),
    )
    assert sum(s == RowStatus.ok for s in found.status) >= 10
    check(found, ridge(BENDS[name], x, baseline), 1e-2)


HOMOGENEOUS: dict[str, tuple[Model, float]] = {
    "square times": (lambda v: v[:, 0] ** 2 * v[:, 1], 3),
    "product of three": (lambda v: v.prod(1), 3),
    "length": (lambda v: v.norm(dim=1), 1),
    "geometric mean": (lambda v: v.prod(1).pow(1 / 3), 1),
    "largest": (lambda v: v.amax(1), 1),
    "quotient": (lambda v: v[:, 0] ** 2 / v[:, 1], 1),
    "quadratic": (lambda v: (v @ v.new_tensor([[1, 2, 0], [0, 3, 1], [1, 0, 1]]) * v).sum(1), 2),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_homogeneous_functions_from_zero(name: str) -> None:
    """Of degree k: the gradient grows like α^(k−1) on the path, so a_i = x_i ∂_i f(x) / k, and
    Euler's theorem adds up.
    """
    forward, degree = HOMOGENEOUS[name]
    x = (normal(8, 3).abs() + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(forward(x).sum(), x)
    # where f(0) itself is 0/0
    baseline = 0.0 if name not in ("quotient", "geometric mean") else 1e-300
    found = attribute(forward, x.detach(), baselines=baseline, accuracy=Adaptive(tolerance=1e-9))
    assert {*found.status} == {RowStatus.ok}
    torch.testing.assert_close(
        found.attributions, (x * gradient / degree).detach(), rtol=1e-11, atol=1e-13
    )


def test_an_infinite_gradient_at_the_baseline() -> None:
    """√x from 0: the integrand is 1/(2√α), and a_i = √x_i. Nodes at α = 0 would give inf."""
    x = normal(6, 3).abs()
    found = attribute(
        lambda v: v.sqrt().sum(1), x, accuracy=Adaptive(tolerance=1e-2, max_evaluations=8192)
    )
    assert {*found.status} == {RowStatus.ok}
    check(found, x.sqrt(), 1e-2)
    at_the_end = attribute(lambda v: v.sqrt().sum(1), x, accuracy=FixedSteps(rule="left", steps=4))
    assert {*at_the_end.status} == {RowStatus.nonfinite}


def test_a_steep_logarithm() -> None:
    """ln x from 1e-4: three quarters of the change happen in the first hundredth of the path."""
    found = attribute(
        lambda v: v.log().sum(1),
        tensor([1.0, 2]),
        baselines=1e-4,
        accuracy=Adaptive(tolerance=1e-2, max_evaluations=8192),
    )
    assert found.status == ("ok",)
    check(found, tensor([math.log(1e4), math.log(2e4)]), 1e-2)


def test_a_step_is_never_certified() -> None:
    """All of f's change happens where no gradient is: every sum is 0 and the gap says so."""
    for forward in (torch.round, lambda v: (v > 0.3).to(v) + 0 * v, torch.floor):
        found = attribute(lambda v, forward=forward: forward(v).sum(1), tensor([2.0, 0.5, 3.7]))
        assert found.status == ("not_converged",)
        assert not found.attributions.any()


def test_features_that_cancel_are_not_taken_for_converged() -> None:
    """sin(40 x) − sin(40 y) with x ≈ y: sum and gap stay near 0 whatever the error of each
    feature.
    """

    def forward(v: Tensor) -> Tensor:
        return (40 * v[:, 0]).sin() - (40 * v[:, 1]).sin()

    x = tensor([1.0, 1.0], [1.0, 1.001], [0.7, 0.7])
    found = attribute(forward, x, accuracy=Adaptive(tolerance=1e-3))
    assert {*found.status} == {RowStatus.ok}
    check(found, torch.stack([(40 * x[:, 0]).sin(), -(40 * x[:, 1]).sin()], 1), 1e-3)


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_units_do_not_matter(scale: float) -> None:
    """Inputs a factor larger or smaller, or outputs: attributions in the same proportion, the same
    statuses.
    """
    x = normal(6, 3)
    plain = attribute(lambda v: v.sin().sum(1), x, accuracy=Adaptive(tolerance=1e-6))
    inputs = attribute(
        lambda v: (v / scale).sin().sum(1), x * scale, accuracy=Adaptive(tolerance=1e-6)
    )
    outputs = attribute(lambda v: v.sin().sum(1) * scale, x, accuracy=Adaptive(tolerance=1e-6))
    torch.testing.assert_close(inputs.attributions, plain.attributions, rtol=1e-9, atol=0)
    torch.testing.assert_close(outputs.attributions / scale, plain.attributions, rtol=1e-9, atol=0)
    assert plain.status == inputs.status == outputs.status == ("ok",) * 6
