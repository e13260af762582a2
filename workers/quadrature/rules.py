"""Quadrature on [0, 1] as data: nodes, weights and what they are declared to integrate exactly.

Every rule here has weights that sum to 1 and float64 nodes; tests hold each to its declared degree
and error slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.specs.part import Rule
from integrand.workers.quadrature.patterson import POSITIVE_NODES

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class QuadratureRule:
    """Nodes in the order of evaluation, and one weight vector per level.

    A plain rule has one level. A nested rule has several: level `i` uses the first `levels[i]`
    nodes, so that every earlier gradient is used again.

    nodes    [nodes] float64 in [0, 1]
    weights  [levels, nodes] float64; row i sums to 1 and is 0 beyond `levels[i]`
    levels   number of nodes of each level
    degree   degree up to which polynomials are integrated exactly, by level
    order    p where the error on smooth integrands falls like steps**-p; None if faster than any
             power
    """

    name: str
    nodes: Floats
    weights: Floats
    levels: tuple[int, ...]
    degree: tuple[int, ...]
    order: int | None

    def __post_init__(self) -> None:
        if self.weights.shape != (len(self.levels), len(self.nodes)) or len(self.degree) != len(
            self.levels
        ):
            raise ValueError(
                f"rule {self.name}: weights {self.weights.shape} do not fit {self.levels}"
            )
        if np.any(np.abs(self.weights.sum(1) - 1) > 1e-12):
            raise ValueError(f"rule {self.name}: weights sum to {self.weights.sum(1)}, not 1")


def plain_rule(accuracy: FixedSteps) -> QuadratureRule:
    """The rule of a fixed accuracy."""
    return PLAIN[accuracy.rule](accuracy.steps)


def _plain(
    name: str, nodes: Floats, weights: Floats, degree: int, order: int | None
) -> QuadratureRule:
    return QuadratureRule(name, nodes, weights[None, :], (len(nodes),), (degree,), order)


def left(steps: int) -> QuadratureRule:
    return _plain("left", np.arange(steps) / steps, np.full(steps, 1 / steps), 0, 1)


def right(steps: int) -> QuadratureRule:
    """Riemann right sum, the one of Sundararajan et al. 2017, §5."""
    return _plain("right", np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps), 0, 1)


def midpoint(steps: int) -> QuadratureRule:
    return _plain("midpoint", (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps), 1, 2)


def trapezoid(steps: int) -> QuadratureRule:
    """Both ends at half weight: steps + 1 nodes. (A common copy of it has weights that sum to 1 −
    1/n.)
    """
    weights = np.full(steps + 1, 1 / steps)
    weights[[0, -1]] /= 2
    return _plain("trapezoid", np.arange(steps + 1) / steps, weights, 1, 2)


def endpoints_mean(steps: int) -> QuadratureRule:
    """Plain mean over i/steps for i = 0..steps: the notebook's rule, biased towards the ends."""
    return _plain(
        "endpoints_mean", np.arange(steps + 1) / steps, np.full(steps + 1, 1 / (steps + 1)), 1, 1
    )


@cache
def gauss_legendre(steps: int) -> QuadratureRule:
    """Exact to degree 2·steps − 1; converges exponentially where f is smooth along the path."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return _plain("gauss_legendre", (nodes + 1) / 2, weights / weights.sum(), 2 * steps - 1, None)


PLAIN: dict[Rule, Callable[[int], QuadratureRule]] = {
    "left": left,
    "right": right,
    "midpoint": midpoint,
    "trapezoid": trapezoid,
    "endpoints_mean": endpoints_mean,
    "gauss_legendre": gauss_legendre,
}
"""By the name in a spec: from a number of steps to a rule. Tests hold all of them to what they
declare.
"""


@cache
def patterson() -> QuadratureRule:
    """Patterson's nested extensions of the 3-point Gauss rule: 3, 7, 15, 31 and 63 nodes, every one
    used again.

    Degree (3n + 1) / 2, positive weights. T. N. L. Patterson, The optimum addition of points to
    quadrature formulae, Math. Comp. 22 (1968).
    """
    levels = tuple(POSITIVE_NODES)
    nodes = np.concatenate([_mirrored(POSITIVE_NODES[n], middle=n == levels[0]) for n in levels])
    weights = np.zeros((len(levels), levels[-1]))
    for row, count in enumerate(levels):
        moments = np.polynomial.legendre.legvander(nodes[:count], count - 1).T
        weights[row, :count] = np.linalg.solve(moments, np.eye(count)[0])
    degree = tuple((3 * n + 1) // 2 for n in levels)
    return QuadratureRule("patterson", (nodes + 1) / 2, weights, levels, degree, None)


def legendre_functionals(nodes: Floats) -> Floats:
    """Row j gives the Legendre coefficient j of the interpolant at nodes in [-1, 1]; row 0 its
    mean. [nodes, nodes].
    """
    return np.asarray(np.linalg.solve(legvander(nodes, len(nodes) - 1).T, np.eye(len(nodes))).T)


def _mirrored(positive: tuple[float, ...], *, middle: bool) -> Floats:
    """Nodes on [-1, 1] from the positive ones, left to right."""
    right = np.array(positive)
    return np.concatenate([-right[::-1], [0.0] if middle else [], right])
