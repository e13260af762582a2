"""The certificate of smooth integrands: what the Legendre spectrum and the values of f on the path
say of the error.

A nested rule's gradients at n nodes give the first n Legendre coefficients of every feature's
integrand. Where they decay geometrically, the first coefficient that the rule does not integrate
exactly is foreseen from the decay; where they do not, as at kinks, nothing is foreseen and their
tail itself counts. f is known at every node for free, so completeness is checked between
neighbouring nodes as well, where a spike cannot cancel against another one.

It is a tested estimate, not a proof: see `tests/bench/bench_certificate.py` for its record and for
what fools it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from integrand.workers.quadrature.rules import legendre_functionals, patterson

Floats = NDArray[np.float64]

FIRST = 7
"""Nodes of the first level that is judged: three coefficients of the coarser one show no decay."""
TAIL = {7: 2, 15: 3, 31: 5, 63: 9}
"""Coefficients that count as the tail: several, since even and odd ones take turns."""
PROJECTED = 31
"""Nodes from which on the integrand between nodes is taken from a projection: interpolants would
amplify rounding.
"""
STEEP = 0.2
"""Tail over middle of a spectrum below which its decay is trusted: jumps of the gradient leave more
than 0.3 in nine rows of ten.
"""
ROUGH = 3.0
"""Error over tail where the decay is not trusted; on ReLU networks it was below 0.9 in 99% of rows
at up to 31 nodes.
"""
SQUARE = 2.0
"""A rule twice as exact as its interpolant squares the tail; a lucky decay is not believed beyond
that.
"""
CONTRACTING, BEFORE = 0.3, {31: 0.5, 63: 0.3}
"""Change from level to level over the change before, now and one level earlier, up to which levels
are taken to converge. Kinks leave about a half; 72,000 integrands with 1 to 30 random jumps gave
one certificate too many at 31 nodes.
"""
EXTRAPOLATED = 1.5
"""Multiple of the error that the contraction foresees."""
DECAYING = 0.5
"""Tail over middle of a spectrum up to which more nodes of the nested rule pay."""
DOUBTED = {31: 3.0, 63: 2.0}
"""Multiple of the local gaps where a contraction stands in for a decaying spectrum."""
CANCELLED = 10.0
"""Most that the gaps at both ends count for: beyond the outermost nodes a jump shows in f alone,
where features cancel.
"""
MOST, NARROW = 0.8, 0.25
"""A stretch of the path this short that holds this much of f's variation is integrated on its own.
"""


@dataclass(frozen=True, eq=False)
class SpectralLevel:
    """One level of Patterson's rule as linear functionals of the gradients.

    functionals  [4 + coefficients, nodes]: integrals of this level and of the three before,
                 Legendre coefficients from `middle` up
    cells        [nodes + 1, nodes]: integrals of the integrand between neighbouring nodes, both
                 ends included
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
    """attributions [rows, elements]; the others [rows] float64.

    deviation    estimated ‖a − a*‖₁ that a certificate needs
    likely       an estimate without the certificate's caution, for rows that end here without one
    converging   whether spectrum or levels converge
    integrand    largest L1 norm among the functionals: how much may cancel in the integral
    """

    attributions: Floats
    deviation: Floats
    likely: Floats
    converging: NDArray[np.bool_]
    integrand: Floats


@cache
def spectral_levels() -> tuple[SpectralLevel, ...]:
    """Levels of 7, 15, 31 and 63 nodes."""
    rule = patterson()
    return tuple(_level(i) for i, count in enumerate(rule.levels) if count >= FIRST)


def _level(index: int) -> SpectralLevel:
    rule = patterson()
    count, middle = rule.levels[index], (rule.levels[index] - 1) // 2
    nodes, weights = 2 * rule.nodes[:count] - 1, rule.weights[:, :count]
    order = np.argsort(nodes)
    interpolant = legendre_functionals(nodes)
    projection = _projection(nodes, weights[index], rule.degree[index] // 2)
    ends = np.concatenate([[-1.0], nodes[order], [1.0]])
    cells = _between(ends, projection if count >= PROJECTED else interpolant)
    spectrum = projection if count > PROJECTED else interpolant
    integrals = weights[[max(index - before, 0) for before in range(4)]]
    return SpectralLevel(
        count,
        rule.degree[index],
        middle,
        np.concatenate([integrals, spectrum[middle:]]),
        cells,
        order,
    )


def _projection(nodes: Floats, weights: Floats, degree: int) -> Floats:
    """Functionals of the Legendre coefficients up to `degree` by the rule itself, which is exact
    for their products.

    Hyperinterpolation (Sloan 1995); `weights` sum to 1.
    """
    return (legendre.legvander(nodes, degree) * weights[:, None]).T * (
        2 * np.arange(degree + 1) + 1
    )[:, None]


def _between(ends: Floats, spectrum: Floats) -> Floats:
    """Integrals between neighbouring ends, of the unit path, of what Legendre coefficients
    `spectrum` describe.
    """
    one = np.eye(len(spectrum))
    primitives = np.stack([legendre.legval(ends, legendre.legint(row)) for row in one], 1)
    return np.asarray(np.diff(primitives, axis=0) / 2 @ spectrum)


def estimate_smooth(
    level: SpectralLevel, found: Floats, slopes: Floats, values: Floats, start: Floats, end: Floats
) -> SmoothEstimate:
    """Attributions and their deviation at one level.

    found    [rows, functionals, elements]: functionals of the gradients, times x − x'
    slopes   [rows, nodes]: gradients · (x − x')
    values   [rows, nodes]: f at the nodes; `start`, `end` [rows]: f at both ends
    """
    sizes = np.abs(found).sum(2)
    predicted, decay = _predicted(level, sizes[:, 4:], sizes[:, 0])
    changes = np.abs(np.diff(found[:, :4], axis=1)).sum(2)
    gaps = local_gaps(level, slopes, values, start, end)
    doubts = np.abs(gaps).sum(1) + (cancellation(found[:, 0]) - 1) * np.abs(gaps[:, [0, -1]]).sum(1)
    contracting, left = _extrapolated(level, changes)
    by_levels = np.where(
        contracting, np.maximum(left, DOUBTED.get(level.count, 1.0) * doubts), np.inf
    )
    deviation = np.minimum(np.maximum(predicted, doubts), by_levels)
    likely = np.minimum(deviation, np.maximum(2 * changes[:, 0], np.abs(gaps.sum(1))))
    return SmoothEstimate(
        found[:, 0], deviation, likely, (decay <= DECAYING) | contracting, sizes.max(1)
    )


def cancellation(attributions: Floats) -> Floats:
    """How much larger errors of single features may be than their sum shows, [rows] from 1 to
    CANCELLED: ‖a‖₁ / |Σa|.
    """
    size, total = np.abs(attributions).sum(1), np.abs(attributions.sum(1))
    ratio = np.divide(size, total, out=np.full_like(size, CANCELLED), where=total > 0)
    return np.asarray(np.clip(ratio, 1.0, CANCELLED))


def _extrapolated(level: SpectralLevel, changes: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Whether levels contract, and the error left if they go on as they did; `changes` [rows, 3],
    the latest first.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        now, before = (
            np.nan_to_num(changes[:, i] / changes[:, i + 1], nan=0.0, posinf=np.inf) for i in (0, 1)
        )
    left = EXTRAPOLATED * changes[:, 0] * now / (1 - np.minimum(now, 0.9))
    return (now <= CONTRACTING) & (before <= BEFORE.get(level.count, -1.0)), np.nan_to_num(
        left, posinf=np.inf
    )


def _predicted(level: SpectralLevel, sizes: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Predicted error and decay from `sizes` [rows, coefficients], the L1 norms of coefficients
    middle..last.

    `size` [rows] is that of the integral itself.
    """
    tail = TAIL[level.count]
    high, top = sizes[:, -tail:].max(1), sizes.max(1)
    centre = level.middle + sizes.shape[1] - 1 - (tail - 1) / 2
    decay = np.divide(high, top, out=np.zeros_like(high), where=top > 0)
    rate = decay ** (1 / (centre - level.middle))
    predicted = high * rate ** (level.degree + 1 - centre) / (1 - np.minimum(rate, 0.95))
    least = np.where(
        decay > STEEP, ROUGH * high, SQUARE * high**2 / np.maximum(np.maximum(size, top), 1e-300)
    )
    return np.maximum(predicted, least), decay


def local_gaps(
    level: SpectralLevel, slopes: Floats, values: Floats, start: Floats, end: Floats
) -> Floats:
    """Completeness between neighbouring nodes, [rows, nodes + 1]; their sum is the gap with its
    sign turned.
    """
    path = np.concatenate([start[:, None], values[:, level.order], end[:, None]], 1)
    return np.asarray(np.diff(path, axis=1) - (slopes[:, None, :] @ level.cells.T)[:, 0])


def moving_window(
    level: SpectralLevel, values: Floats, start: float, end: float
) -> tuple[int, int] | None:
    """Where one row's f moves, if that is a small part of the path: sorted positions (−1 and n are
    the ends), else None.

    The shortest stretch of cells with MOST of f's variation, and one cell more on either side.
    """
    path = np.concatenate([[start], values[level.order], [end]])
    moved = np.concatenate([[0.0], np.abs(np.diff(path)).cumsum()])
    places = np.concatenate([[0.0], (patterson().nodes[: level.count])[level.order], [1.0]])
    stop = np.searchsorted(moved, moved + MOST * moved[-1])
    fits = np.flatnonzero(stop < len(moved))
    widths = places[stop[fits]] - places[fits]
    shortest = np.argmin(widths)
    if not (widths[shortest] <= NARROW and moved[-1] > 0):
        return None
    first = int(fits[shortest])
    left, right = max(first - 1, 0), min(int(stop[first]) + 1, len(places) - 1)
    return left - 1, right - 1
