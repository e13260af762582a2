"""Cases that attribution libraries test themselves on, held to their exact values instead of their
tolerances.

Numbers are those libraries' own cases: 1-23 Captum's integrated gradients, by neuron, layer and
embedding; 25-30 its classification and target tests; 32-34 PAIR saliency; 43 Alibi
(test_targets.py); 44 xplique; 45 and 48 Captum's rules and gradients. Left out, since they test
other methods: 13 (NoiseTunnel), 38 (guided IG), 39 (blur IG), 42 (GradientShap), 46 (feature
ablation) and 47 (infidelity). Expected values are closed forms unless a test says otherwise; where
these libraries return gradients that are not multiplied by x − x', attributions are divided by it
(5, 15).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import Attribution, attribute
from integrand.workers.quadrature.rules import QuadratureRule, left, midpoint, right, trapezoid
from tests.peers.models import (
    F64,
    Mixed,
    Reader,
    Recurrent,
    Scaled,
    b1,
    b2,
    b3,
    b4,
    b5,
    b6,
    conv_net,
    drawn,
    head,
    hidden,
    mlp,
    multidim,
    multilayer,
    normal,
    pooled_net,
    sigmoid_model,
    softmax_model,
    tensor,
    two_branches,
)
from tests.peers.references import kinked_integral, smooth_integral

Model = Callable[..., Tensor]
GAUSS_1000 = FixedSteps(rule="gauss_legendre", steps=1000)
JUMP = math.pi / 2000
"""Largest weight of 1000 Gauss nodes: what one kink of relative height 1 can cost."""


def parts(found: Attribution) -> tuple[Tensor, ...]:
    return found.attributions if isinstance(found.attributions, tuple) else (found.attributions,)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(len(t), -1) for t in tensors], 1)


def check(found: Attribution, expected: Tensor, tolerance: float) -> None:
    """Certified rows are within the tolerance; every row's error is at most twice its estimate, as
    promised; and the gap is what it says it is.
    """
    values = flat(parts(found))
    rounding = 1e-13 * (expected.abs().sum(1) + found.f_input.abs() + found.f_baseline.abs())
    error, size = (values - expected).abs().sum(1), values.abs().sum(1)
    told = torch.where(size > 0, found.error_estimate * size, math.inf)
    assert (error <= 2 * told + rounding).all(), (error / size, found.error_estimate)
    certified = torch.tensor([s == RowStatus.ok for s in found.status])
    assert (error <= tolerance * expected.abs().sum(1) + rounding)[certified].all(), (
        error / expected.abs().sum(1)
    )
    torch.testing.assert_close(
        found.gap, values.sum(1) - (found.f_input - found.f_baseline), rtol=1e-9, atol=1e-12
    )


@dataclass(frozen=True, eq=False)
class Case:
    """`expected` holds the attributions of each input in turn, one row after another."""

    forward: Model
    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...] | float | None = None
    target: int | tuple[int, ...] | Tensor | None = None
    forward_args: tuple[Tensor, ...] = ()

    def attribute(
        self, accuracy: Adaptive | FixedSteps, batch_rows: int | None = None
    ) -> Attribution:
        return attribute(
            self.forward,
            self.inputs,
            baselines=self.baselines,
            target=self.target,
            accuracy=accuracy,
            forward_args=self.forward_args,
            batch_rows=batch_rows,
        )


A, B = tensor([1.5, 2, 34.3], [10, 0.5, 1]), tensor([3, 3.5, 23.2], [1, 2, 0.1])
DIVISOR = tensor([1, 2, 3], [1, 2, 3])
# where a − 1 overtakes b: element 2 of row 0, element 0 of row 1
EARLY, LATE = (
    1 / (34.3 - 23.2 / 3),
    1 / 9,
)
MULTI = tensor([1.5, 2, 1.3], [0.5, 0.1, 2.3], [1.5, 2, 1.3])
THREE, ONE = tensor([3.0]), tensor([1.0])

KINKED: dict[str, Case] = {
    "1 one feature": Case(b1, (tensor([1.0]),), (tensor([1.0]),)),
    "1 beyond the kink": Case(b1, (tensor([2.0], [7.0]),), (tensor([1.0], [1.0]),)),
    "2 away from one": Case(b1, (tensor([-1.0]),), (tensor([-1.00001]),), baselines=1e-5),
    "3 nothing to explain": Case(b1, (tensor([0.0]),), (tensor([0.0]),), baselines=0.0),
    "4 two inputs": Case(b2, (THREE, ONE), (tensor([1.5]), tensor([-0.5]))),
    "6 the same function, implemented otherwise": Case(
        b3, (THREE, ONE), (tensor([1.5]), tensor([-0.5]))
    ),
    "8 arguments beside the inputs": Case(
        b4,
        (A, B),
        (tensor([0, 0, 0], [0.0, 0, 0]), torch.zeros(2, 3, dtype=F64)),
        target=1,
        forward_args=(DIVISOR,),
    ),
    "8 an output that moves": Case(
        b4,
        (A, B),
        (
            tensor([0, 0, 34.3 * (1 - EARLY)], [10 * (1 - LATE), 0, 0]),
            tensor([0, 0, -23.2 / 3 * (1 - EARLY)], [-1 * (1 - LATE), 0, 0]),
        ),
        target=torch.tensor([2, 0]),
        forward_args=(DIVISOR,),
    ),
    "9 two weighted inputs": Case(
        b5, (A[1:], B[1:]), (tensor([20 * 15 / 17, 0, 0]), tensor([-3 * 15 / 17, 0, 0])), target=0
    ),
    "10 a sum of inputs": Case(
        b6,
        (tensor([1.5, 2, 3.3]), tensor([3, 3.5, 2.2])),
        (tensor([0, 2 / 5.5, 0]), tensor([0, 3.5 / 5.5, 0])),
    ),
    "11 a batch": Case(multilayer, (MULTI,), (3 * MULTI,), target=0),
    "14 a kink at a tenth": Case(
        multilayer, (tensor([0.0, 100, 0]),), (tensor([0.0, 390, 0]),), target=0
    ),
    "15 three at once": Case(
        multilayer, (tensor([100.0, 100, 100]),), (tensor([1190.0, 1190, 1190]) / 3,), target=0
    ),
    "30 two branches": Case(
        two_branches,
        (tensor([-10.0, 1, -5]), tensor([3.0, 3, 1])),
        (tensor([0.0, 0, 0]), tensor([6.0, 9, 0])),
    ),
    "maximum of two": Case(
        lambda v: v.amax(1),
        (tensor([3.0, 0]),),
        (tensor([2.25, -0.25]),),
        baselines=(tensor([0.0, 1]),),
    ),
    "absolute value across zero": Case(
        lambda v: v.abs().sum(1),
        (tensor([2.0, -1]),),
        (tensor([1.0, -2]),),
        baselines=(tensor([-1.0, 3]),),
    ),
    "minimum with a buffer": Case(
        lambda v, limit: torch.minimum(v, limit).sum(1),
        (tensor([4.0, 4]),),
        (tensor([1.0, 3]),),
        forward_args=(tensor([1.0, 3]),),
    ),
}


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
@pytest.mark.parametrize("name", KINKED)
def test_kinked_cases_adaptively(name: str, tolerance: float) -> None:
    found = KINKED[name].attribute(Adaptive(tolerance=tolerance, max_evaluations=8192))
    assert {*found.status} <= {RowStatus.ok, RowStatus.at_precision_floor}
    check(found, flat(KINKED[name].expected), tolerance)


@pytest.mark.parametrize("name", KINKED)
def test_kinked_cases_with_many_nodes(name: str) -> None:
    found, expected = KINKED[name].attribute(GAUSS_1000), flat(KINKED[name].expected)
    assert (
        (flat(parts(found)) - expected).abs().sum(1) <= 2 * JUMP * expected.abs().sum(1) + 1e-12
    ).all()


SMOOTH: dict[str, Case] = {
    "22 a layer's activations": Case(
        head,
        (tensor([90.0, 101, 101, 101]),),
        (tensor([90.0, 100, 100, 100]),),
        baselines=(tensor([0.0, 1, 1, 1]),),
        target=0,
    ),
    "28 an output of four dimensions": Case(multidim, (MULTI,), (24 * MULTI,), target=(1, 1, 1)),
    "32 three functions": Case(
        lambda v: 5 * v[:, 0] + v[:, 1] ** 2 + v[:, 2].sin(),
        (tensor([1.0, 2, 3]),),
        (tensor([2.5, 3, math.sin(3) - math.sin(1)]),),
        baselines=(tensor([0.5, 1, 1]),),
    ),
    "33 linear": Case(
        lambda v: 2 * v[:, 0] + v[:, 1],
        (tensor([10.0, 5]),),
        (tensor([22.0, 8]),),
        baselines=(tensor([-1.0, -3]),),
    ),
    "34 linear from zero": Case(
        lambda v: 2 * v[:, 0] + v[:, 1], (tensor([10.0, 5]),), (tensor([20.0, 5]),)
    ),
    "a product": Case(lambda v: v.prod(1), (tensor([3.0, 5]),), (tensor([7.5, 7.5]),)),
    "a product from elsewhere": Case(
        lambda v: v.prod(1),
        (tensor([3.0, 5]),),
        (tensor([2 * 4.5, 1 * 2.0]),),
        baselines=(tensor([1.0, 4]),),
    ),
    "a constant beside zero gradients": Case(
        lambda v: 7 + 0 * v.sum(1), (tensor([3.0, 5]),), (tensor([0.0, 0]),)
    ),
    "cubes held in buffers": Case(
        Scaled(tensor(1.0, 2.0), tensor(1.0, 0.5)).eval(),
        (tensor([2.0, 4]),),
        (tensor([1 - (-1.0), 1 - (-1.0)]),),
    ),
}


@pytest.mark.parametrize(
    "accuracy", [Adaptive(tolerance=1e-9), FixedSteps(steps=50)], ids=lambda a: a.kind
)
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_cases_to_the_last_digits(name: str, accuracy: Adaptive | FixedSteps) -> None:
    found = SMOOTH[name].attribute(accuracy)
    torch.testing.assert_close(
        flat(parts(found)), flat(SMOOTH[name].expected), rtol=1e-12, atol=1e-12
    )
    assert {*found.status} == {"ok" if isinstance(accuracy, Adaptive) else "unchecked"}


@pytest.mark.parametrize(
    ("name", "expected"), [("4 two inputs", [0.5, -0.5]), ("15 three at once", [3.966667] * 3)]
)
def test_gradients_not_multiplied_by_the_difference(name: str, expected: list[float]) -> None:
    """Cases 5 and 15."""
    found = flat(parts(KINKED[name].attribute(Adaptive(tolerance=1e-3, max_evaluations=8192))))
    torch.testing.assert_close(
        found / flat(KINKED[name].inputs), tensor(expected), rtol=1e-3, atol=1e-6
    )


def test_equal_functions_get_equal_sums() -> None:
    """Case 6: B2 and B3."""
    one, other = (KINKED[name].attribute(GAUSS_1000) for name in list(KINKED)[4:6])
    assert torch.equal(flat(parts(one)), flat(parts(other)))


@pytest.mark.parametrize("batch_rows", [1, 5, 10, 20, 64])
@pytest.mark.parametrize("name", ["11 a batch", "14 a kink at a tenth", "8 an output that moves"])
def test_batches_of_any_size_agree(name: str, batch_rows: int) -> None:
    """Cases 11 and 14, with steps of one row in several batches."""
    steps = FixedSteps(steps=100)
    whole, cut = (
        flat(parts(KINKED[name].attribute(steps, batch_rows=rows))) for rows in (None, batch_rows)
    )
    torch.testing.assert_close(whole, cut, rtol=1e-13, atol=1e-13)


def test_a_layer_between_its_own_activations() -> None:
    """Case 22 through the model: activations of the hidden layer at x and x', then the head
    alone.
    """
    x, baseline = tensor([100.0, 0, 0]), tensor([0.0, 0, 0])
    found = attribute(head, hidden(x), baselines=hidden(baseline), target=0)
    torch.testing.assert_close(found.attributions, tensor([90.0, 100, 100, 100]))


def test_a_softmax_classifier() -> None:
    """Case 25: x up to 119, one baseline row for all, another target for each row."""
    x, targets, model = (
        torch.arange(120, dtype=F64).reshape(3, 40),
        torch.tensor([5, 5, 2]),
        softmax_model(),
    )
    found = attribute(
        model,
        x,
        baselines=torch.zeros(1, 40, dtype=F64),
        target=targets,
        accuracy=Adaptive(tolerance=1e-3, max_evaluations=8192),
    )
    assert (found.gap.abs() < 0.005).all()
    change = (model(x) - model(torch.zeros_like(x)))[range(3), targets]
    torch.testing.assert_close(found.attributions.sum(1), change.detach() + found.gap)


def test_a_sigmoid_classifier() -> None:
    """Case 26."""
    x = torch.arange(20, dtype=F64)[None]
    found = attribute(
        sigmoid_model(), x, target=0, accuracy=Adaptive(tolerance=1e-3, max_evaluations=8192)
    )
    assert found.gap.abs() < 0.005


def test_the_trapezoid_of_given_gradients() -> None:
    """Case 44. The function's derivative runs straight between .1, .4, .6, .8, .9, 1 and .8 at
    sixths.
    """
    gradients = tensor(0.1, 0.4, 0.6, 0.8, 0.9, 1.0, 0.8)
    slopes = 6 * gradients.diff()
    bends = torch.cat([slopes[:1], slopes.diff()]) / 2
    places = torch.arange(6, dtype=F64) / 6

    def forward(v: Tensor) -> Tensor:
        return (gradients[0] * v + (bends * (v - places).relu().square()).sum(1, keepdim=True)).sum(
            1
        )

    found = attribute(forward, tensor([1.0]), accuracy=FixedSteps(rule="trapezoid", steps=6))
    assert found.attributions.item() == pytest.approx(0.6916666666666667, abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "nodes", "weights"),
    [
        (left(4), [0, 0.25, 0.5, 0.75], [0.25] * 4),
        (right(4), [0.25, 0.5, 0.75, 1], [0.25] * 4),
        (midpoint(4), [0.125, 0.375, 0.625, 0.875], [0.25] * 4),
        (trapezoid(3), [0, 1 / 3, 2 / 3, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    ],
)
def test_the_nodes_of_the_plain_rules(
    rule: QuadratureRule, nodes: list[float], weights: list[float]
) -> None:
    """Case 45, with the trapezoid's weights as they should be."""
    np.testing.assert_allclose(rule.nodes, nodes, atol=1e-15)
    np.testing.assert_allclose(rule.weights.ravel(), weights, atol=1e-15)


def test_the_gradient_at_a_kink_is_the_one_that_autograd_takes() -> None:
    """Case 48: one right-hand step over a distance of 1 is the gradient at x, with relu'(0) = 0."""
    x = tensor([1.0], [2.0], [3.0], [0.0], [-1.0], [7.0])
    found = attribute(b1, x, baselines=x - 1, accuracy=FixedSteps(rule="right", steps=1))
    assert found.attributions.flatten().tolist() == [0, 0, 0, 1, 1, 0]


# --- families with a closed form ---------------------------------------------------------------

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


# --- networks ----------------------------------------------------------------------------------


def check_network(
    forward: Model,
    inputs: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    *,
    kinked: bool,
    tolerance: float,
    forward_args: tuple[Tensor, ...] = (),
) -> None:
    """Output 1 of `forward`, row by row against an integral made without the package."""
    integral = kinked_integral if kinked else smooth_integral
    rows = []
    for i in range(len(inputs[0])):
        fixed = [a[i : i + 1] for a in forward_args]

        def explained(*points: Tensor, fixed: list[Tensor] = fixed) -> Tensor:
            return forward(*points, *[a.expand(len(points[0]), *a.shape[1:]) for a in fixed])[:, 1]

        rows.append(
            integral(
                explained, tuple(x[i : i + 1] for x in inputs), tuple(b[:1] for b in baselines)
            )
        )
    found = attribute(
        forward,
        inputs,
        baselines=tuple(b[:1] for b in baselines),
        target=1,
        forward_args=forward_args,
        accuracy=Adaptive(tolerance=tolerance, max_evaluations=4096),
    )
    assert {*found.status} == {RowStatus.ok}
    check(found, torch.stack(rows), tolerance)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus, nn.Mish])
def test_smooth_mlps(activation: type[nn.Module]) -> None:
    check_network(
        mlp(activation), (normal(6, 5),), (normal(1, 5, seed=1),), kinked=False, tolerance=1e-8
    )


def test_a_probability() -> None:
    model = nn.Sequential(mlp(nn.GELU), nn.Softmax(1)).eval()
    check_network(
        model, (2 * normal(6, 5),), (torch.zeros(1, 5, dtype=F64),), kinked=False, tolerance=1e-6
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_kinked_mlps(activation: type[nn.Module]) -> None:
    check_network(
        mlp(activation), (normal(4, 5),), (normal(1, 5, seed=1),), kinked=True, tolerance=1e-2
    )


def test_convolutions_with_batch_norm() -> None:
    check_network(
        conv_net(nn.SiLU),
        (normal(3, 2, 8, 8),),
        (torch.zeros(1, 2, 8, 8, dtype=F64),),
        kinked=False,
        tolerance=1e-8,
    )


def test_convolutions_with_kinks_and_max_pooling() -> None:
    check_network(
        pooled_net(),
        (normal(2, 1, 8, 8),),
        (torch.zeros(1, 1, 8, 8, dtype=F64),),
        kinked=True,
        tolerance=2e-2,
    )


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_networks(cell: type[nn.RNNBase]) -> None:
    check_network(
        drawn(Recurrent(cell)),
        (normal(3, 5, 4),),
        (torch.zeros(1, 5, 4, dtype=F64),),
        kinked=False,
        tolerance=1e-8,
    )


def test_embeddings_of_a_transformer_with_a_mask() -> None:
    """Case 23: tokens are explained at the output of the embedding, padding masked, against the
    embedding of token 0.
    """
    model = drawn(Reader())
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
    mask, pad = ids > 0, torch.zeros_like(ids[:1])
    embedded, baseline = model.embedding(ids).detach(), model.embedding(pad).detach()
    check_network(
        model.read, (embedded,), (baseline,), kinked=False, tolerance=1e-6, forward_args=(mask,)
    )
    found = attribute(model.read, embedded, baselines=baseline, target=1, forward_args=mask)
    torch.testing.assert_close(
        found.f_input, model(ids, mask)[:, 1].detach(), rtol=1e-12, atol=1e-12
    )
    assert not found.attributions[1, 4:].any()


def test_numbers_an_image_and_a_category() -> None:
    """Integers go in as an argument, or at the output of their embedding; the model is the same."""
    model, category = drawn(Mixed()), torch.tensor([0, 3, 4])
    numbers, image = normal(3, 4), normal(3, 1, 4, 4, seed=1)
    found = attribute(
        model, (numbers, image), forward_args=category, accuracy=Adaptive(tolerance=1e-9)
    )
    for i in range(3):
        row = tuple(v[i : i + 1] for v in (numbers, image))
        exact = smooth_integral(
            lambda n, p, i=i: model(n, p, category[i].expand(len(n)))[:, 0],
            row,
            tuple(map(torch.zeros_like, row)),
        )
        torch.testing.assert_close(flat(parts(found))[i], exact, rtol=1e-8, atol=1e-11)
