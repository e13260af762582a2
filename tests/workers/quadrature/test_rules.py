"""Every rule does what it declares: weights, degree (and no more), error slope, nesting, float64
throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.specs.part import Rule
from integrand.workers.methods.attribution import attribute
from integrand.workers.quadrature.rules import (
    PLAIN,
    Floats,
    QuadratureRule,
    endpoints_mean,
    gauss_legendre,
    left,
    midpoint,
    patterson,
    plain_rule,
    right,
    trapezoid,
)

Build = Callable[[int], QuadratureRule]
RULES = [pytest.param(build, id=name) for name, build in PLAIN.items()]


def integral(
    rule: QuadratureRule, integrand: Callable[[Floats], Floats], level: int = -1
) -> Floats:
    """∫₀¹ integrand at one level; `integrand` maps nodes [n] to values [n, ...]."""
    return np.tensordot(rule.weights[level], integrand(rule.nodes), 1)


def error(rule: QuadratureRule, degree: int, level: int = -1) -> float:
    """|error| on the Legendre polynomial of that degree on [0, 1], whose integral is 0 from degree
    1 on.
    """
    polynomial = np.polynomial.legendre.Legendre.basis(degree, domain=[0, 1])
    return abs(float(integral(rule, polynomial, level)) - (degree == 0))


def assert_degree(rule: QuadratureRule, level: int, beyond: float = 1e-5) -> None:
    """Exact up to the declared degree, wrong by more than `beyond` at the next one."""
    degree = rule.degree[level]
    worst = max(
        error(rule, d, level) for d in {*range(min(degree, 110) + 1), max(0, degree - 1), degree}
    )
    assert worst < 1e-14 * max(20, degree)
    assert error(rule, degree + 1, level) > beyond


@pytest.mark.parametrize("build", RULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_weights_and_degree(build: Build, steps: int) -> None:
    rule = build(steps)
    assert abs(rule.weights.sum() - 1) < 1e-14
    assert (rule.weights > 0).all()
    assert ((rule.nodes >= 0) & (rule.nodes <= 1)).all()
    beyond = 1e-5 if rule.order is None else 0.1 * steps**-rule.order
    assert_degree(rule, 0, beyond)


def test_the_table_has_the_rules_that_a_spec_may_name() -> None:
    assert set(PLAIN) == set(get_args(Rule))
    assert {name: build(3).name for name, build in PLAIN.items()} == {name: name for name in PLAIN}


@pytest.mark.parametrize("build", RULES)
def test_the_error_falls_with_the_declared_order(build: Build) -> None:
    def wrong(steps: int) -> float:
        return abs(float(integral(build(steps), np.exp)) - np.expm1(1))

    declared = build(1).order
    if declared is None:
        assert wrong(8) < 1e-14
    else:
        assert np.log2(wrong(64) / wrong(128)) == pytest.approx(declared, abs=0.05)


@pytest.mark.parametrize("build", RULES)
def test_the_error_on_a_jump_falls_like_one_over_n(build: Build) -> None:
    """No rule does better where gradients jump: the mean over many places of the jump halves when
    steps double.
    """
    places = (np.arange(1999) + 0.5) / 1999

    def wrong(steps: int) -> float:
        found = integral(build(steps), lambda nodes: 1.0 * (nodes[:, None] > places))
        return float(np.abs(found - (1 - places)).mean())

    assert np.log2(wrong(32) / wrong(64)) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("build", "nodes"),
    [
        (left, [0, 0.25, 0.5, 0.75]),
        (right, [0.25, 0.5, 0.75, 1]),
        (midpoint, [0.125, 0.375, 0.625, 0.875]),
        (trapezoid, [0, 0.25, 0.5, 0.75, 1]),
        (endpoints_mean, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_nodes_of_four_steps(build: Build, nodes: list[float]) -> None:
    assert build(4).nodes.tolist() == nodes


def test_the_trapezoid_has_half_weights_at_its_ends() -> None:
    """Captum's and Alibi's copy sums to 1 − 1/n."""
    assert trapezoid(4).weights[0].tolist() == [0.125, 0.25, 0.25, 0.25, 0.125]


def test_gauss_reaches_1000_steps() -> None:
    rule = gauss_legendre(1000)
    assert_degree(rule, 0)
    assert rule.degree == (1999,)
    with pytest.raises(ValidationError, match="at most 1000"):
        FixedSteps(rule="gauss_legendre", steps=1001)


# --- Patterson's nested rules ------------------------------------------------------------------


@pytest.mark.parametrize("level", range(5))
def test_every_level_of_pattersons_rule(level: int) -> None:
    """Positive weights on a prefix of the nodes, mirrored about ½. The finest level is all but
    exact beyond its degree: wrong by 4e-11 at degree 96, and by 1e-4 only at 104.
    """
    rule = patterson()
    count, weights = rule.levels[level], rule.weights[level]
    assert count == 2 ** (level + 2) - 1
    assert rule.degree[level] == (3 * count + 1) // 2
    assert (weights[:count] > 0).all()
    assert not weights[count:].any()
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    nodes = np.sort(rule.nodes[:count])
    assert (np.diff([0, *nodes, 1]) > 0).all()
    np.testing.assert_allclose(nodes + nodes[::-1], 1, atol=1e-15)
    assert_degree(rule, level, beyond=1e-5 if level < 3 else 1e-11)


def test_new_nodes_lie_between_the_old_ones() -> None:
    """One between any two neighbours, and one beyond each end: no part of the path is looked at
    twice.
    """
    rule = patterson()
    for old, new in pairwise(rule.levels):
        between = np.searchsorted(np.sort(rule.nodes[:old]), np.sort(rule.nodes[old:new]))
        assert between.tolist() == list(range(old + 1))


def test_the_first_level_is_a_gauss_rule() -> None:
    gauss = gauss_legendre(3)
    order = np.argsort(patterson().nodes[:3])
    np.testing.assert_allclose(patterson().nodes[:3][order], gauss.nodes, atol=1e-15)
    np.testing.assert_allclose(patterson().weights[0, :3][order], gauss.weights[0], atol=1e-15)


def test_levels_converge_faster_than_any_power() -> None:
    rule = patterson()
    errors = [
        abs(
            float(integral(rule, lambda t: 1 / (1 + 25 * (2 * t - 1) ** 2), level))
            - np.arctan(5) / 5
        )
        for level in range(len(rule.levels))
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.diff(orders) > 1).all()
    assert errors[-1] < 1e-9


def test_the_least_that_an_adaptive_accuracy_may_spend_is_the_second_level() -> None:
    assert patterson().levels[:2] == (3, 7)
    with pytest.raises(ValidationError, match="max_evaluations"):
        Adaptive(max_evaluations=6)
    assert attribute(
        lambda v: v.square().sum(1), torch.ones(1, 2), accuracy=Adaptive(max_evaluations=7)
    ).status == ("ok",)


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [*(build(9) for build in PLAIN.values()), patterson()], ids=lambda rule: rule.name
)
def test_nodes_and_weights_are_float64(rule: QuadratureRule) -> None:
    assert rule.nodes.dtype == rule.weights.dtype == np.float64


@pytest.mark.parametrize(
    ("accuracy", "atol"),
    [(FixedSteps(steps=50), 1e-13), (Adaptive(tolerance=1e-12), 1e-12)],
    ids=["fixed", "adaptive"],
)
def test_nothing_is_cast_down_for_float64_inputs(
    accuracy: FixedSteps | Adaptive, atol: float
) -> None:
    """Nodes or weights in float32 leave an error of 1e-9 here: f = Σ exp(v_i), ∫ e^{αx} x dα = e^x
    − 1.
    """
    x = torch.tensor([[0.7, -1.3, 1.9]], dtype=torch.float64)
    found = attribute(lambda v: v.exp().sum(1), x, accuracy=accuracy)
    torch.testing.assert_close(found.attributions, x.expm1(), rtol=0, atol=atol)
    assert found.attributions.dtype == torch.float64


# --- rules as data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre"]
)
def test_an_accuracy_names_its_rule(name: str) -> None:
    rule = plain_rule(FixedSteps(rule=name, steps=5))
    assert (rule.name, len(rule.levels)) == (name, 1)
    assert rule.levels[0] == (6 if name in ("trapezoid", "endpoints_mean") else 5)


def test_weights_that_do_not_sum_to_one_are_no_rule() -> None:
    with pytest.raises(ValueError, match="not 1"):
        QuadratureRule("short", np.array([0.5]), np.array([[0.9]]), (1,), (0,), 1)


def test_weights_that_do_not_fit_the_levels_are_no_rule() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        QuadratureRule("two levels", np.array([0.5]), np.array([[1.0]]), (1, 2), (0, 1), 1)
