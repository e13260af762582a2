"""The certificate of smooth integrands: what the Legendre spectrum and the values of f on the path say of the error.

A nested rule's gradients at n nodes give the first n Legendre coefficients of every feature's integrand. Where they
decay geometrically, the first coefficient that the rule does not integrate exactly is foreseen from the decay; where
they do not, as at kinks, nothing is foreseen and their tail itself counts. f is known at every node for free, so
completeness is checked between neighbouring nodes as well, where a spike cannot cancel against another one.

It is a tested estimate, not a proof: see `tests/bench/bench_certificate.py` for its record and for what fools it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from integrand.workers.quadrature import legendre_functionals, patterson

Floats = NDArray[np.float64]

FIRST = 7
"""Nodes of the first level that is judged: three coefficients of the coarser one show no decay."""
TAIL = {7: 2, 15: 3, 31: 5, 63: 9}
"""Coefficients that count as the tail: several, since even and odd ones take turns."""
STEEP = 0.2
"""Tail over middle of a spectrum below which its decay is trusted: jumps of the gradient leave 0.3 to 0.9."""
ROUGH = 3.0
"""Error over tail where the decay is not trusted; on ReLU networks it was below 0.9 in 99% of rows."""
SQUARE = 2.0
"""A rule twice as exact as its interpolant squares the tail; a lucky decay is not believed beyond that."""
MOST, NARROW = 0.8, 0.25
"""A stretch of the path this short that holds this much of f's variation is integrated on its own."""


@dataclass(frozen=True, eq=False)
class SpectralLevel:
    """One level of Patterson's rule as linear functionals of the gradients.

    functionals  [2 + coefficients, nodes]: this level's integral, the coarser one's, coefficients `middle`..n−1
    cells        [nodes + 1, nodes]: integral of the interpolant between neighbouring nodes, both ends included
    order        [nodes]: positions of the nodes from left to right
    """

    count: int
    degree: int
    middle: int
    functionals: Floats
    cells: Floats
    order: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SmoothEstimate:
    """attributions [rows, elements]; deviation, cautious and decay [rows] float64.

    deviation  estimated ‖a − a*‖₁ that a certificate needs
    likely     an estimate without the certificate's caution, for rows that end here without one
    decay      tail over middle of the spectrum, 0 to 1
    integrand  largest L1 norm among the functionals: how much may cancel in the integral
    """

    attributions: Floats
    deviation: Floats
    likely: Floats
    decay: Floats
    integrand: Floats


@cache
def spectral_levels() -> tuple[SpectralLevel, ...]:
    """Levels of 7, 15, 31 and 63 nodes."""
    rule = patterson()
    return tuple(_level(i) for i, count in enumerate(rule.levels) if count >= FIRST)


def _level(index: int) -> SpectralLevel:
    rule = patterson()
    count, coarser = rule.levels[index], rule.levels[index - 1]
    nodes = 2 * rule.nodes[:count] - 1
    spectrum = legendre_functionals(nodes)
    middle = (count - 1) // 2
    weights = np.stack([rule.weights[index, :count], rule.weights[index - 1, :count]])
    assert coarser < count
    order = np.argsort(nodes)
    ends = np.concatenate([[-1.0], nodes[order], [1.0]])
    primitives = np.stack([legendre.legval(ends, legendre.legint(np.eye(count)[j])) for j in range(count)], 1)
    cells = np.diff(primitives, axis=0) / 2 @ spectrum
    return SpectralLevel(count, rule.degree[index], middle, np.concatenate([weights, spectrum[middle:]]), cells, order)


def estimate_smooth(level: SpectralLevel, found: Floats, slopes: Floats, values: Floats, start: Floats, end: Floats
                    ) -> SmoothEstimate:  # fmt: skip
    """Attributions and their deviation at one level.

    found    [rows, functionals, elements]: functionals of the gradients, times x − x'
    slopes   [rows, nodes]: gradients · (x − x')
    values   [rows, nodes]: f at the nodes; `start`, `end` [rows]: f at both ends
    """
    integral, coarser = found[:, 0], found[:, 1]
    sizes = np.abs(found).sum(2)
    predicted, decay = _predicted(level, sizes[:, 2:], sizes[:, 0])
    local = local_gaps(level, slopes, values, start, end)
    deviation = np.maximum(predicted, np.abs(local).sum(1))
    change = np.maximum(2 * np.abs(integral - coarser).sum(1), np.abs(local.sum(1)))
    return SmoothEstimate(integral, deviation, np.minimum(deviation, change), decay, sizes.max(1))


def _predicted(level: SpectralLevel, sizes: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Predicted error and decay from `sizes` [rows, coefficients], the L1 norms of coefficients middle..n−1.

    `size` [rows] is that of the integral itself.
    """
    tail = TAIL[level.count]
    high, top = sizes[:, -tail:].max(1), sizes.max(1)
    centre = level.count - 1 - (tail - 1) / 2
    decay = np.divide(high, top, out=np.zeros_like(high), where=top > 0)
    rate = decay ** (1 / (centre - level.middle))
    predicted = high * rate ** (level.degree + 1 - centre) / (1 - np.minimum(rate, 0.95))
    least = np.where(decay > STEEP, ROUGH * high, SQUARE * high**2 / np.maximum(np.maximum(size, top), 1e-300))
    return np.maximum(predicted, least), decay


def local_gaps(level: SpectralLevel, slopes: Floats, values: Floats, start: Floats, end: Floats) -> Floats:
    """Completeness between neighbouring nodes, [rows, nodes + 1]; their sum is the gap with its sign turned."""
    path = np.concatenate([start[:, None], values[:, level.order], end[:, None]], 1)
    return np.asarray(np.diff(path, axis=1) - (slopes[:, None, :] @ level.cells.T)[:, 0])


def moving_window(level: SpectralLevel, values: Floats, start: float, end: float) -> tuple[int, int] | None:
    """Where one row's f moves, if that is a small part of the path: sorted positions (−1 and n are the ends), else None.

    The shortest stretch of cells with MOST of f's variation, and one cell more on either side.
    """
    path = np.concatenate([[start], values[level.order], [end]])
    moved = np.concatenate([[0.0], np.abs(np.diff(path)).cumsum()])
    places = np.concatenate([[0.0], (patterson().nodes[: level.count])[level.order], [1.0]])
    stop = np.searchsorted(moved, moved + MOST * moved[-1])
    fits = np.flatnonzero(stop < len(moved))
    width, first = min((places[stop[i]] - places[i], i) for i in fits)
    left, right = max(first - 1, 0), min(stop[first] + 1, len(places) - 1)
    return (int(left) - 1, int(right) - 1) if width <= NARROW and moved[-1] > 0 else None
