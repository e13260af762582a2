"""Quadrature on [0, 1] as data: nodes, weights and what they are declared to integrate exactly.

Every rule here has weights that sum to 1 and float64 nodes; tests hold each to its declared degree and error slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.specs import Adaptive, FixedSteps

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class QuadratureRule:
    """Nodes in the order of evaluation, and one weight vector per level.

    A plain rule has one level. A nested rule has several: level `i` uses the first `levels[i]` nodes, so that every
    earlier gradient is used again.

    nodes    [nodes] float64 in [0, 1]
    weights  [levels, nodes] float64; row i sums to 1 and is 0 beyond `levels[i]`
    levels   number of nodes of each level
    degree   degree up to which polynomials are integrated exactly, by level
    order    p where the error on smooth integrands falls like steps**-p; None if faster than any power
    """

    name: str
    nodes: Floats
    weights: Floats
    levels: tuple[int, ...]
    degree: tuple[int, ...]
    order: int | None

    def __post_init__(self) -> None:
        if self.weights.shape != (len(self.levels), len(self.nodes)) or len(self.degree) != len(self.levels):
            raise ValueError(f"rule {self.name}: weights {self.weights.shape} do not fit {self.levels}")
        if np.any(np.abs(self.weights.sum(1) - 1) > 1e-12):
            raise ValueError(f"rule {self.name}: weights sum to {self.weights.sum(1)}, not 1")

    def integrate(self, integrand: Callable[[Floats], Floats], level: int = -1) -> Floats:
        """∫₀¹ integrand at one level; `integrand` maps nodes [n] to values [n, ...]."""
        return np.tensordot(self.weights[level], integrand(self.nodes), 1)


def build_rule(accuracy: FixedSteps | Adaptive) -> QuadratureRule:
    """The rule that an accuracy asks for."""
    if isinstance(accuracy, Adaptive):
        return nested_fejer(accuracy.max_evaluations)
    return _PLAIN[accuracy.rule](accuracy.steps)


def _plain(name: str, nodes: Floats, weights: Floats, degree: int, order: int | None) -> QuadratureRule:
    return QuadratureRule(name, nodes, weights[None, :], (len(nodes),), (degree,), order)


def left(steps: int) -> QuadratureRule:
    return _plain("left", np.arange(steps) / steps, np.full(steps, 1 / steps), 0, 1)


def right(steps: int) -> QuadratureRule:
    """Riemann right sum, the one of Sundararajan et al. 2017, §5."""
    return _plain("right", np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps), 0, 1)


def midpoint(steps: int) -> QuadratureRule:
    return _plain("midpoint", (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps), 1, 2)


def trapezoid(steps: int) -> QuadratureRule:
    """Both ends at half weight: steps + 1 nodes. (A common copy of it has weights that sum to 1 − 1/n.)"""
    weights = np.full(steps + 1, 1 / steps)
    weights[[0, -1]] /= 2
    return _plain("trapezoid", np.arange(steps + 1) / steps, weights, 1, 2)


def endpoints_mean(steps: int) -> QuadratureRule:
    """Plain mean over i/steps for i = 0..steps: the notebook's rule, biased towards the ends."""
    return _plain("endpoints_mean", np.arange(steps + 1) / steps, np.full(steps + 1, 1 / (steps + 1)), 1, 1)


@cache
def gauss_legendre(steps: int) -> QuadratureRule:
    """Exact to degree 2·steps − 1; converges exponentially where f is smooth along the path."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return _plain("gauss_legendre", (nodes + 1) / 2, weights / weights.sum(), 2 * steps - 1, None)


_PLAIN = {"left": left, "right": right, "midpoint": midpoint, "trapezoid": trapezoid,
          "endpoints_mean": endpoints_mean, "gauss_legendre": gauss_legendre}  # fmt: skip


@cache
def nested_fejer(max_evaluations: int) -> QuadratureRule:
    """Fejér's second rule with 3, 7, 15, … nodes, each level containing the one before.

    Nodes cos(kπ/(n+1)); positive weights; degree n. Fejér 1933; Davis & Rabinowitz, Methods of Numerical
    Integration, §2.5.5. Raises SpecError below 7 evaluations: two levels are needed for a difference.
    """
    if max_evaluations < 7:
        raise SpecError("accuracy.max_evaluations", expected="at least 7 (levels of 3 and 7 nodes)",
                        seen=str(max_evaluations), next_step="allow more, or use a fixed rule")  # fmt: skip
    levels = [3]
    while 2 * levels[-1] + 1 <= max_evaluations:
        levels.append(2 * levels[-1] + 1)
    order = _nested_order(levels)
    weights = np.zeros((len(levels), levels[-1]))
    for row, count in enumerate(levels):
        stride = (levels[-1] + 1) // (count + 1)
        of_position = dict(zip(range(stride, levels[-1] + 1, stride), _fejer_weights(count), strict=True))
        weights[row] = [of_position.get(position, 0.0) for position in order]
    nodes = (1 - np.cos(np.array(order) * np.pi / (levels[-1] + 1))) / 2
    return QuadratureRule("nested_fejer", nodes, weights, tuple(levels), tuple(levels), None)


def _nested_order(levels: list[int]) -> list[int]:
    """Positions 1..n of the finest level, coarse levels first and each level from left to right."""
    order: list[int] = []
    for count in levels:
        stride = (levels[-1] + 1) // (count + 1)
        order += [p for p in range(stride, levels[-1] + 1, stride) if p not in set(order)]
    return order


def _fejer_weights(count: int) -> Floats:
    """Weights on [0, 1] of Fejér's second rule with `count` (odd) nodes, by node position; they sum to 1."""
    theta = np.arange(1, count + 1) * np.pi / (count + 1)
    odd = np.arange(1, count + 1, 2)
    weights = np.sin(theta) * (np.sin(np.outer(theta, odd)) / odd).sum(1) * 2 / (count + 1)
    return np.asarray(weights / weights.sum())
