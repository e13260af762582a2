"""Rules on the tagged table of integrands: what each tag promises holds for all of a family."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from integrand.workers.quadrature.rules import QuadratureRule, gauss_legendre, midpoint, trapezoid
from tests.problems import FAMILIES, Integrand, tagged

Floats = NDArray[np.float64]
DRAWN = 40


def drawn(family: str, features: int = 3) -> list[Integrand]:
    return list(islice(FAMILIES[family].draw(5, features), DRAWN))


def error(rule: QuadratureRule, integrand: Integrand) -> float:
    """In the L1 norm, relative to the largest gradient and antiderivative on the path."""
    found = rule.weights[-1] @ integrand.gradient(rule.nodes)
    places = np.linspace(0, 1, 257)
    size = np.abs(integrand.gradient(places)).max(0) + np.abs(integrand.primitive(places)).max(0)
    return float(np.abs(found - integrand.exact).sum() / size.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_integral_of_each_is_known(family: str) -> None:
    """Held against cells so small that no kind of integrand is hard."""
    fine = midpoint(10_000)
    assert max(error(fine, integrand) for integrand in drawn(family)) < 2e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_derivative_of_f(family: str) -> None:
    """At odd places, where a jump would have to be met exactly to be seen."""
    places, width = np.linspace(0.013, 0.971, 40), 1e-7
    for integrand in drawn(family):
        rise = integrand.primitive(places + width) - integrand.primitive(places - width)
        gradient = integrand.gradient(places)
        scale = np.abs(gradient).max() + np.abs(integrand.primitive(places)).max()
        np.testing.assert_allclose(rise / (2 * width), gradient, atol=1e-5 * scale)


@pytest.mark.parametrize("family", tagged("entire"))
def test_gauss_needs_few_nodes_of_what_is_entire(family: str) -> None:
    """Waves turn up to 16 times on the path: at π points a turn a Gauss rule begins to converge."""
    assert max(error(gauss_legendre(120), integrand) for integrand in drawn(family)) < 1e-12


@pytest.mark.parametrize("family", tagged("analytic"))
def test_plain_rules_converge_on_what_is_analytic(family: str) -> None:
    """Twice the steps, a quarter of the error: the trapezoid has order two."""
    coarse, fine = trapezoid(2000), trapezoid(4000)
    for integrand in drawn(family):
        assert error(fine, integrand) <= 0.27 * error(coarse, integrand) + 1e-12


@pytest.mark.parametrize("family", tagged("jumping"))
def test_no_rule_beats_one_over_n_where_gradients_jump(family: str) -> None:
    for build in (midpoint, trapezoid, gauss_legendre):
        typical = [
            np.median([error(build(steps), integrand) for integrand in drawn(family)])
            for steps in (50, 400)
        ]
        assert 1 / 16 < typical[1] / typical[0] < 1 / 4
