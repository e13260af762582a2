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
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.quadrature.noise import Evidence, Noise, Spreads, spreads_of
from integrand.workers.quadrature.rules import legendre_functionals, patterson

Floats = NDArray[np.float64]
CPU = torch.device("cpu")

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
    """One level of Patterson's rule as linear functionals of the gradients, on one device.

    functionals  [integrals + coefficients, nodes] float64: integrals of this level and of those
                 before, Legendre coefficients from `middle` up
    integrals    how many of them: this level's and the one's before, or of four levels where
                 levels are taken to converge
    cells        [nodes + 1, nodes] float64: integrals of the integrand between neighbouring nodes,
                 both ends included
    order        [nodes]: positions of the nodes from left to right
    places       [nodes + 2] float64: both ends and the nodes between them, from left to right
    spreads      by how much rounding of single gradients is multiplied in each of them
    """

    count: int
    degree: int
    middle: int
    functionals: Tensor
    integrals: int
    cells: Tensor
    order: Tensor
    places: Tensor
    spreads: Spreads

    def along_path(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """f at the places, [rows, nodes + 2], from f at the nodes [rows, nodes] and at both ends
        [rows].
        """
        return torch.cat([start[:, None], values[:, self.order], end[:, None]], 1)


@dataclass(frozen=True, eq=False)
class SmoothEstimate:
    """attributions [rows, elements]; the others [rows] float64.

    size, total  ‖attributions‖₁ and their sum
    cancelled    how much larger errors of single features may be than their sum shows
    deviation    estimated ‖a − a*‖₁ that a certificate needs
    likely       an estimate without the certificate's caution, for rows that end here without one
    converging   whether spectrum or levels converge
    drowned      whether f is too noisy between nodes for gaps to tell, however many nodes there are
    integrand    largest L1 norm among the functionals: how much may cancel in the integral
    """

    attributions: Tensor
    size: Tensor
    total: Tensor
    cancelled: Tensor
    deviation: Tensor
    likely: Tensor
    converging: Tensor
    drowned: Tensor
    integrand: Tensor


@cache
def spectral_levels(device: torch.device = CPU) -> tuple[SpectralLevel, ...]:
    """Levels of 7, 15, 31 and 63 nodes."""
    levels = enumerate(patterson().levels)
    return tuple(_level(i, device) for i, count in levels if count >= FIRST)


def _level(index: int, device: torch.device) -> SpectralLevel:
    rule = patterson()
    count, middle = rule.levels[index], (rule.levels[index] - 1) // 2
    nodes, weights = 2 * rule.nodes[:count] - 1, rule.weights[:, :count]
    order = np.argsort(nodes)
    interpolant = legendre_functionals(nodes)
    projection = _projection(nodes, weights[index], rule.degree[index] // 2)
    ends = np.concatenate([[-1.0], nodes[order], [1.0]])
    cells = _between(ends, projection if count >= PROJECTED else interpolant)
    spectrum = projection if count > PROJECTED else interpolant
    integrals = weights[index::-1][: 4 if count in BEFORE else 2]
    functionals = np.concatenate([integrals, spectrum[middle:]])
    return SpectralLevel(
        count,
        rule.degree[index],
        middle,
        torch.tensor(functionals, device=device),
        len(integrals),
        torch.tensor(cells, device=device),
        torch.tensor(order, device=device),
        torch.tensor((ends + 1) / 2, device=device),
        spreads_of(integrals, spectrum[middle:], cells, device),
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
    level: SpectralLevel,
    found: Tensor,
    slopes: Tensor,
    path: Tensor,
    noise: Noise | None = None,
) -> SmoothEstimate:
    """Attributions and their deviation at one level, all float64.

    found    [rows, functionals, elements]: functionals of the gradients, times x − x'
    slopes   [rows, nodes]: gradients · (x − x')
    path     [rows, nodes + 2]: f at both ends and at the nodes between them, from left to right
    noise    what evaluations carry of reduced precision. What is no louder is left out of the
             deviation, as far as gaps go no more than is counted besides; a gap of the whole path
             may then lie anywhere on it
    """
    integrals = found[:, : level.integrals]
    sizes = found.abs().sum(2)
    size, total = sizes[:, 0], integrals[:, 0].sum(1)
    integrand = sizes.amax(1)
    cancelled = cancellation(size, total)
    gaps = local_gaps(level, slopes, path)
    seen = Evidence(
        coefficients=sizes[:, level.integrals :],
        changes=integrals.diff(dim=1).abs_().sum(2),
        gaps=gaps,
        gap=gaps.sum(1).abs(),
    )
    doubts = _doubts(gaps, cancelled)
    drowned = torch.zeros_like(doubts, dtype=torch.bool)
    if noise is not None:
        seen = seen.above(noise, level.spreads, integrand)
        heard = torch.maximum(_doubts(seen.gaps, cancelled), cancelled * seen.gap)
        beyond = doubts - noise.counted * size
        drowned = beyond > heard
        doubts = torch.maximum(heard, beyond)
    deviation, converging = _deviation(level, seen, size, doubts)
    uncautious = torch.maximum(2 * seen.changes[:, 0], seen.gap)
    return SmoothEstimate(
        attributions=integrals[:, 0],
        size=size,
        total=total,
        cancelled=cancelled,
        deviation=deviation,
        likely=torch.minimum(deviation, uncautious),
        converging=converging,
        drowned=drowned,
        integrand=integrand,
    )


def _doubts(gaps: Tensor, cancelled: Tensor) -> Tensor:
    """What gaps of f between nodes say of the error."""
    at_ends = gaps[:, 0].abs() + gaps[:, -1].abs()
    return gaps.abs().sum(1) + (cancelled - 1) * at_ends


def _deviation(
    level: SpectralLevel, seen: Evidence, size: Tensor, doubts: Tensor
) -> tuple[Tensor, Tensor]:
    """What a certificate needs, by the spectrum or by how levels converge, and whether either does;
    `doubts` count for both.
    """
    predicted, decay = _predicted(level, seen.coefficients, size)
    deviation = torch.maximum(predicted, doubts)
    decaying = decay <= DECAYING
    if level.count not in BEFORE:
        return deviation, decaying
    contracting, left = _extrapolated(level, seen.changes)
    contracted = torch.maximum(left, DOUBTED[level.count] * doubts)
    by_either = torch.minimum(deviation, contracted)
    return torch.where(contracting, by_either, deviation), decaying | contracting


def cancellation(size: Tensor, total: Tensor) -> Tensor:
    """How much larger errors of single features may be than their sum shows, from 1 to CANCELLED:
    ‖a‖₁ / |Σa|, for both of any shape.
    """
    ratio = size / total.abs()
    some = torch.where(total == 0, CANCELLED, ratio)
    return some.clamp(1.0, CANCELLED)


def _extrapolated(level: SpectralLevel, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Whether levels contract, and the error left if they go on as they did; `changes` [rows, 3],
    the latest first.
    """
    ratios = changes[:, :2] / changes[:, 1:]
    now, before = ratios.nan_to_num(nan=0.0, posinf=torch.inf).unbind(1)
    left = EXTRAPOLATED * changes[:, 0] * now / (1 - now.clamp(max=0.9))
    contracting = (now <= CONTRACTING) & (before <= BEFORE[level.count])
    return contracting, left.nan_to_num(nan=0.0, posinf=torch.inf)


def _predicted(level: SpectralLevel, sizes: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted error and decay from `sizes` [rows, coefficients], the L1 norms of coefficients
    middle..last.

    `size` [rows] is that of the integral itself.
    """
    tail = TAIL[level.count]
    high, top = sizes[:, -tail:].amax(1), sizes.amax(1)
    centre = level.middle + sizes.shape[1] - 1 - (tail - 1) / 2
    decay = torch.where(top > 0, high / top, 0.0)
    rate = decay ** (1 / (centre - level.middle))
    predicted = high * rate ** (level.degree + 1 - centre) / (1 - rate.clamp(max=0.95))
    largest = torch.maximum(size, top).clamp(min=1e-300)
    least = torch.where(decay > STEEP, ROUGH * high, SQUARE * high**2 / largest)
    return torch.maximum(predicted, least), decay


def local_gaps(level: SpectralLevel, slopes: Tensor, path: Tensor) -> Tensor:
    """Completeness between neighbouring nodes, [rows, nodes + 1]; their sum is the gap with its
    sign turned.
    """
    integrals = (slopes[:, None, :] * level.cells).sum(2)
    return path.diff(dim=1) - integrals


def moving_window(level: SpectralLevel, path: Tensor) -> tuple[Tensor, Tensor]:
    """Where rows' f moves, if that is a small part of the path: positions among the level's places
    [rows, 2], and whether there is such a part [rows].

    The shortest stretch of cells with MOST of f's variation, and one cell more on either side.
    `path` as for `estimate_smooth`.
    """
    last = len(level.places) - 1
    moved = _cumulated(path.diff(dim=1).abs())
    whole = moved[:, -1:]
    enough = moved + MOST * whole
    stop = (moved[:, None, :] < enough[:, :, None]).sum(2)
    widths = level.places[stop.clamp(max=last)] - level.places
    widths = torch.where(stop <= last, widths, torch.inf)
    shortest, first = widths.min(1)
    left = (first - 1).clamp(min=0)
    right = stop.gather(1, first[:, None])[:, 0] + 1
    exists = (shortest <= NARROW) & (whole[:, 0] > 0)
    return torch.stack([left, right.clamp(max=last)], 1), exists


def _cumulated(steps: Tensor) -> Tensor:
    """[rows, steps + 1] from 0 on. CUDA has no deterministic cumsum of floats."""
    count = steps.shape[1]
    before = torch.ones(count + 1, count, dtype=steps.dtype, device=steps.device).tril(-1)
    return (steps[:, None, :] * before).sum(2)
