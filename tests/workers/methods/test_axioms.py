"""`attribute` against closed forms in float64, and the axioms (Sundararajan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import DeepLift
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from integrand.workers.quadrature.rules import PLAIN
from tests.toys import assert_close, mlp, rows

F64 = torch.float64
RULES = [*PLAIN]
Model = Callable[..., Tensor]


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accuracy", [Adaptive(), *(FixedSteps(rule=rule, steps=4) for rule in RULES)], ids=str
)
def test_linear_models_are_exact_under_every_rule(accuracy: Any) -> None:
    weights, x, baseline = torch.tensor([2.0, -1, 0.5], dtype=F64), rows(5), rows(1, seed=1)
    found = attribute(lambda v: v @ weights + 7, x, baselines=baseline, accuracy=accuracy)
    assert_close(found.attributions, weights * (x - baseline))
    assert_close(found.gap, torch.zeros(5))
    assert_close(found.f_input, x @ weights + 7)
    assert_close(found.f_baseline, (baseline @ weights + 7).expand(5))


@pytest.mark.parametrize(
    "accuracy",
    [
        Adaptive(tolerance=1e-10),
        *(FixedSteps(rule=r, steps=1) for r in ("midpoint", "trapezoid", "gauss_legendre")),
    ],
    ids=str,
)
def test_quadratic_models_are_exact_from_degree_1_on(accuracy: Any) -> None:
    """f = x'Ax/2: the gradient is linear along the path, so a_i = d_i (A(x + x')/2)_i."""
    matrix = rows(3, seed=2) + rows(3, seed=2).T
    x, baseline = rows(6), rows(6, seed=1)
    found = attribute(
        lambda v: ((v @ matrix) * v).sum(1) / 2, x, baselines=baseline, accuracy=accuracy
    )
    assert_close(found.attributions, (x - baseline) * ((x + baseline) / 2 @ matrix))


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh, nn.SiLU])
def test_completeness(activation: type[nn.Module]) -> None:
    net, x, baseline = mlp(activation, 5), rows(20, 5), rows(20, 5, seed=1)
    found = attribute(net, x, baselines=baseline, target=1, accuracy=Adaptive(tolerance=1e-9))
    assert set(found.status) == {RowStatus.ok}
    assert_close(
        found.attributions.sum(1), (net(x) - net(baseline))[:, 1].detach(), rtol=0, atol=1e-7
    )
    assert_close(found.gap, found.attributions.sum(1) - (found.f_input - found.f_baseline), rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**16))
def test_quadratics_of_any_size(count: int, features: int, seed: int) -> None:
    x, baseline = rows(count, features, seed), rows(count, features, seed + 1)
    found = attribute(lambda v: v.square().sum(1) + v.prod(1) * 0, x, baselines=baseline)
    assert_close(found.attributions, x**2 - baseline**2)
    assert found.evaluations.tolist() == [7] * count


# --- axioms ------------------------------------------------------------------------------------


def test_equal_functions_get_equal_attributions() -> None:
    """Hidden units permuted, scaled and split: another network, the same function."""
    net = mlp(nn.ReLU, gain=1.0)
    first, last = net[0], net[4]
    twin = (
        nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        .double()
        .eval()
    )
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        twin[0].weight.copy_(torch.cat([first.weight * 3, first.weight]))
        twin[0].bias.copy_(torch.cat([first.bias * 3, first.bias]))
        twin[2].weight.copy_(torch.cat([net[2].weight / 6, net[2].weight / 2], 1)[order])
        twin[2].bias.copy_(net[2].bias[order])
        twin[4].weight.copy_(last.weight[:, order])
        twin[4].bias.copy_(last.bias)
    x = rows(10)
    one, other = (attribute(f, x, target=0, accuracy=FixedSteps(steps=20)) for f in (net, twin))
    assert_close(one.attributions, other.attributions, rtol=1e-9, atol=1e-12)


def pair(first: list[float], last: float) -> nn.Module:
    """With (0, 0), −1 it is relu(relu(a) − 1 − relu(b)), with (−1, 0), 0 relu(relu(a − 1) −
    relu(b)): one function. Sundararajan et al. 2017, appendix B.
    """
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU()).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.copy_(torch.tensor(first))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[2].bias.fill_(last)
    return net


def test_deeplift_tells_equal_functions_apart() -> None:
    """What holds of Integrated Gradients by the row above fails for rules that go from layer to
    layer.
    """
    twins = pair([0.0, 0.0], -1.0), pair([-1.0, 0.0], 0.0)
    x = 3 * rows(50, 2)
    assert_close(twins[0](x), twins[1](x))
    one, other = (attribute(net, x, accuracy=Adaptive(tolerance=1e-6)) for net in twins)
    assert_close(one.attributions, other.attributions, atol=1e-9)
    point = torch.tensor([[3.0, 1.0]], dtype=F64)
    exact = torch.tensor([[1.5, -0.5]], dtype=F64)
    for net in twins:
        assert_close(attribute(net, point).attributions, exact)
    by_layer = [DeepLift(net).attribute(point).detach() for net in twins]
    assert_close(by_layer[0], exact)
    assert_close(by_layer[1], torch.tensor([[2.0, -1.0]], dtype=F64))


def test_a_feature_that_the_model_ignores_gets_nothing() -> None:
    net = mlp(features=2)
    found = attribute(lambda v: net(v[:, [0, 2]]), rows(8), target=1)
    assert torch.equal(found.attributions[:, 1], torch.zeros(8, dtype=F64))
    assert found.attributions[:, [0, 2]].all()


def test_symmetric_features_get_the_same() -> None:
    x = rows(6)
    x[:, 1] = x[:, 0]
    found = attribute(lambda v: torch.tanh(v[:, 0] + v[:, 1]) * v[:, 2].exp(), x)
    assert_close(found.attributions[:, 0], found.attributions[:, 1])


def test_a_constant_baseline_is_blind_to_features_equal_to_it() -> None:
    x = rows(6)
    x[2:, 0] = 0.25
    found = attribute(mlp(), x, baselines=0.25, target=0)
    assert torch.equal(found.attributions[:, 0] == 0, torch.tensor([False] * 2 + [True] * 4))


def test_linearity() -> None:
    one, other, x = mlp(seed=1), mlp(nn.Tanh, seed=2), rows(5)
    accuracy = FixedSteps(steps=30)
    both = attribute(lambda v: 2 * one(v) - 3 * other(v), x, target=0, accuracy=accuracy)
    parts = [attribute(f, x, target=0, accuracy=accuracy).attributions for f in (one, other)]
    assert_close(both.attributions, 2 * parts[0] - 3 * parts[1], rtol=1e-9)
