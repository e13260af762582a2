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
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import Attribution, attribute
from integrand.workers.quadrature.rules import QuadratureRule, left, midpoint, right, trapezoid
from tests.peers.checking import check, flat, parts
from tests.peers.models import (
    F64,
    Scaled,
    b1,
    b2,
    b3,
    b4,
    b5,
    b6,
    head,
    hidden,
    multidim,
    multilayer,
    sigmoid_model,
    softmax_model,
    tensor,
    two_branches,
)

Model = Callable[..., Tensor]
GAUSS_1000 = FixedSteps(rule="gauss_legendre", steps=1000)
JUMP = math.pi / 2000
"""Largest weight of 1000 Gauss nodes: what one kink of relative height 1 can cost."""


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
EARLY = 1 / (34.3 - 23.2 / 3)
LATE = 1 / 9
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
    x = torch.arange(120, dtype=F64).reshape(3, 40)
    targets = torch.tensor([5, 5, 2])
    model = softmax_model()
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
