"""Every rule does what it declares: weights, degree (and not one more), error slope, nesting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from integrand.schemas.errors import SpecError
from integrand.schemas.specs import Adaptive, FixedSteps
from integrand.workers.quadrature import (
    QuadratureRule,
    build_rule,
    endpoints_mean,
    gauss_legendre,
    left,
    midpoint,
    nested_fejer,
    right,
    trapezoid,
)

RULES = [left, right, midpoint, trapezoid, endpoints_mean, gauss_legendre]
Build = Callable[[int], QuadratureRule]


def error(rule: QuadratureRule, degree: int, level: int = -1) -> float:
    """|error| on the Legendre polynomial of that degree on [0, 1], whose integral is 0 from degree 1 on."""
    polynomial = np.polynomial.legendre.Legendre.basis(degree, domain=[0, 1])
    return abs(float(rule.integrate(polynomial, level)) - (degree == 0))


def assert_degree(rule: QuadratureRule, level: int) -> None:
    degree = rule.degree[level]
    worst = max(error(rule, d, level) for d in {*range(min(degree, 40) + 1), max(0, degree - 1), degree})
    assert worst < 1e-12 * max(1, degree)
    assert error(rule, degree + 1, level) > 1e-5


@pytest.mark.parametrize("build", RULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_weights_and_degree(build: Build, steps: int) -> None:
    rule = build(steps)
    assert abs(rule.weights.sum() - 1) < 1e-14
    assert (rule.weights > 0).all()
    assert ((rule.nodes >= 0) & (rule.nodes <= 1)).all()
    assert_degree(rule, 0)


@pytest.mark.parametrize("build", RULES)
def test_the_error_falls_with_the_declared_order(build: Build) -> None:
    def wrong(steps: int) -> float:
        return abs(float(build(steps).integrate(np.exp)) - np.expm1(1))

    declared = build(1).order
    if declared is None:
        assert wrong(8) < 1e-14
    else:
        assert np.log2(wrong(64) / wrong(128)) == pytest.approx(declared, abs=0.05)


@pytest.mark.parametrize(("build", "nodes"), [
    (left, [0, 0.25, 0.5, 0.75]), (right, [0.25, 0.5, 0.75, 1]), (midpoint, [0.125, 0.375, 0.625, 0.875]),
    (trapezoid, [0, 0.25, 0.5, 0.75, 1]), (endpoints_mean, [0, 0.25, 0.5, 0.75, 1]),
])  # fmt: skip
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


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 2048))
def test_levels_are_fejer_rules_on_a_prefix_of_the_nodes(most: int) -> None:
    rule = nested_fejer(most)
    assert rule.levels[-1] <= most < 2 * rule.levels[-1] + 1
    assert rule.levels == tuple(2 ** (i + 2) - 1 for i in range(len(rule.levels)))
    for weights, count in zip(rule.weights, rule.levels, strict=True):
        expected = (1 - np.cos(np.arange(1, count + 1) * np.pi / (count + 1))) / 2
        np.testing.assert_allclose(np.sort(rule.nodes[:count]), expected, atol=1e-14)
        assert (weights[:count] > 0).all()
        assert not weights[count:].any()
        assert weights.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("level", range(8))
def test_degree_of_every_level(level: int) -> None:
    assert_degree(nested_fejer(512), level)


def test_levels_converge_faster_than_any_power() -> None:
    rule = nested_fejer(63)
    errors = [abs(float(rule.integrate(np.exp, level)) - np.expm1(1)) for level in range(len(rule.levels))]
    assert errors[0] < 1e-3
    assert errors[1] < 1e-8
    assert max(errors[2:]) < 1e-14


def test_two_levels_are_the_least() -> None:
    assert nested_fejer(7).levels == (3, 7)
    with pytest.raises(SpecError, match=r"at least 7(.|\n)*seen: 6(.|\n)*next:"):
        nested_fejer(6)
    with pytest.raises(ValidationError, match="max_evaluations"):
        Adaptive(max_evaluations=6)


@pytest.mark.parametrize("name", ["left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre"])
def test_an_accuracy_names_its_rule(name: str) -> None:
    rule = build_rule(FixedSteps(rule=name, steps=5))
    assert (rule.name, len(rule.levels)) == (name, 1)
    assert rule.levels[0] == (6 if name in ("trapezoid", "endpoints_mean") else 5)


def test_weights_that_do_not_sum_to_one_are_no_rule() -> None:
    with pytest.raises(ValueError, match="not 1"):
        QuadratureRule("short", np.array([0.5]), np.array([[0.9]]), (1,), (0,), 1)
