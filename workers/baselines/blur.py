"""The row under a Gaussian blur."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import BlurBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows

_TRUNCATED = 4.0
"""Standard deviations after which the kernel ends, as in scipy.ndimage.gaussian_filter."""


class Blur(BaselineKind[BlurBaseline]):
    """A separable convolution over the last two axes in float64, on the device of the rows; beyond
    its borders an image is its own mirror (d c b a | a b c d | d c b a).
    """

    def check(self, part: BlurBaseline, place: Place) -> None:
        """SpecError for an input that has no two axes in space."""
        shape = place.shape.shape
        if len(shape) < 2:
            raise SpecError(
                f"baseline of input `{place.shape.name}`",
                expected="an input with two axes in space, the last two of its shape",
                seen=f"shape {list(shape)}",
                next_step="give the input's shape, such as [1, 28, 28], or another baseline",
            )

    def tensor(self, part: BlurBaseline, rows: PlaceRows) -> Tensor:
        blurred = rows.values.double()
        for axis in (-2, -1):
            blurred = _blurred(blurred, axis, part.sigma)
        return blurred.to(rows.dtype)


def _blurred(images: Tensor, axis: int, sigma: float) -> Tensor:
    """Along one axis: taps added up in one order, so that no bit depends on the other rows, as
    those of a matrix product may.
    """
    weights = _kernel(sigma)
    radius = len(weights) - 1
    size = images.shape[axis]
    padded = images.index_select(axis, _mirrored(size, radius).to(images.device))
    total = padded.narrow(axis, radius, size) * weights[0]
    for step in range(1, radius + 1):
        pair = padded.narrow(axis, radius - step, size) + padded.narrow(axis, radius + step, size)
        total += pair.mul_(weights[step])
    return total


def _kernel(sigma: float) -> list[float]:
    """Weights at distance 0, 1, …, which add up to 1 over both sides."""
    steps = np.arange(int(_TRUNCATED * sigma + 0.5) + 1)
    heights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights: list[float] = (heights / (2 * heights.sum() - heights[0])).tolist()
    return weights


def _mirrored(size: int, radius: int) -> Tensor:
    """Indices from −radius to size + radius of an axis that is mirrored over and over."""
    places = torch.arange(-radius, size + radius) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)
