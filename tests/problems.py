"""Integrands along the path whose integrals are known, by family: drawn at random, tagged by what
makes them hard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tag = Literal["analytic", "entire", "oscillating", "localized", "jumping"]


@dataclass(frozen=True, eq=False)
class Integrand:
    """What each feature adds up along the path, and its antiderivative: `[alphas] -> [alphas,
    features]`.
    """

    gradient: Callable[[Floats], Floats]
    primitive: Callable[[Floats], Floats]

    @property
    def exact(self) -> Floats:
        return np.diff(self.primitive(np.array([0.0, 1.0])), axis=0)[0]


def polynomial(degree: int, features: int = 3, seed: int = 0) -> Integrand:
    series = np.random.default_rng(seed).standard_normal((degree + 1, features))
    whole = legendre.legint(series, scl=0.5)
    return Integrand(
        lambda a: legendre.legval(2 * a - 1, series).T,
        lambda a: legendre.legval(2 * a - 1, whole).T,
    )


def _scales(seed: int, features: int) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Random amplitudes, places (up to 0.2 beyond the path) and widths from 0.01 to 3,
    without end.
    """
    draw = np.random.default_rng(seed)
    while True:
        yield (
            draw.standard_normal(features),
            draw.uniform(-0.2, 1.2, features),
            10 ** draw.uniform(-2, 0.5, features),
        )


def exponentials(seed: int, features: int) -> Iterator[Integrand]:
    for size, place, width in _scales(seed, features):
        k = np.sign(place - 0.5) * np.minimum(1 / width, 20)
        yield Integrand(
            lambda a, s=size, k=k: s * np.exp(k * (a[:, None] - 0.5)),
            lambda a, s=size, k=k: s / k * np.exp(k * (a[:, None] - 0.5)),
        )


def waves(seed: int, features: int) -> Iterator[Integrand]:
    for size, place, width in _scales(seed, features):
        k = 1 / width
        yield Integrand(
            lambda a, s=size, k=k, c=place: s * np.sin(k * (a[:, None] - c)),
            lambda a, s=size, k=k, c=place: -s / k * np.cos(k * (a[:, None] - c)),
        )


def poles(seed: int, features: int) -> Iterator[Integrand]:
    """Runge's function at a place and width of its own in every feature."""
    for size, place, width in _scales(seed, features):
        yield Integrand(
            lambda a, s=size, c=place, w=width: s / (1 + ((a[:, None] - c) / w) ** 2),
            lambda a, s=size, c=place, w=width: s * w * np.arctan((a[:, None] - c) / w),
        )


def steps(seed: int, features: int) -> Iterator[Integrand]:
    """Gradients that step: tanh."""
    for size, place, width in _scales(seed, features):
        yield Integrand(
            lambda a, s=size, c=place, w=width: s * np.tanh((a[:, None] - c) / w),
            lambda a, s=size, c=place, w=width: (
                s * w * np.logaddexp((a[:, None] - c) / w, (c - a[:, None]) / w)
            ),
        )


def spikes(seed: int, features: int) -> Iterator[Integrand]:
    """f that steps: its gradient is a spike."""
    for size, place, width in _scales(seed, features):
        yield Integrand(
            lambda a, s=size, c=place, w=width: s * (1 - np.tanh((a[:, None] - c) / w) ** 2),
            lambda a, s=size, c=place, w=width: s * w * np.tanh((a[:, None] - c) / w),
        )


def kinks(seed: int, features: int) -> Iterator[Integrand]:
    """Two to twenty jumps of the gradient, as ReLU networks have them."""
    draw = np.random.default_rng(seed)
    while True:
        yield jumping(draw.uniform(0, 1, draw.integers(2, 21)), features, draw)


def jumping(jumps: Floats, features: int, draw: np.random.Generator) -> Integrand:
    """A ramp and a jump of all features at each place: the path of a ReLU network."""
    sizes = draw.standard_normal((len(jumps), features))
    level, ramp = draw.standard_normal((2, features)) * draw.choice([0, 1, 10], (2, 1))
    return Integrand(
        lambda a: level + ramp * a[:, None] + (a[:, None] > jumps) @ sizes,
        lambda a: (
            level * a[:, None]
            + ramp * a[:, None] ** 2 / 2
            + np.maximum(a[:, None] - jumps, 0) @ sizes
        ),
    )


@dataclass(frozen=True)
class Family:
    """Integrands of one kind: `draw(seed, features)` yields them without end.

    analytic     the gradient is analytic on the path
    entire       and everywhere else: Gauss rules need few nodes
    oscillating  it may turn many times
    localized    it may live in a small part of the path
    jumping      it jumps: no rule does better than 1/n
    """

    draw: Callable[[int, int], Iterator[Integrand]]
    tags: frozenset[Tag]


FAMILIES = {
    "exp": Family(exponentials, frozenset({"analytic", "entire"})),
    "sin": Family(waves, frozenset({"analytic", "entire", "oscillating"})),
    "runge": Family(poles, frozenset({"analytic", "localized"})),
    "tanh": Family(steps, frozenset({"analytic", "localized"})),
    "spike": Family(spikes, frozenset({"analytic", "localized"})),
    "kinks": Family(kinks, frozenset({"jumping"})),
}


def tagged(tag: Tag) -> list[str]:
    """Names of the families that have a tag."""
    return [name for name, family in FAMILIES.items() if tag in family.tags]
