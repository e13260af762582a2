"""Integrated gradients computed without the package: what the suite holds it to where there is no
closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Scalar = Callable[..., Tensor]
"""Some inputs to `[rows]`."""


def path_gradients(
    forward: Scalar, xs: tuple[Tensor, ...], bs: tuple[Tensor, ...], alphas: Tensor
) -> Tensor:
    """∂f/∂x of one row's path at every α, the inputs side by side: `[alphas, elements]`."""
    points = [
        (b + alphas.reshape(-1, *[1] * (x.ndim - 1)) * (x - b)).requires_grad_()
        for x, b in zip(xs, bs, strict=True)
    ]
    found = torch.autograd.grad(forward(*points).sum(), points)
    return torch.cat([g.flatten(1) for g in found], 1)


def smooth_integral(
    forward: Scalar, xs: tuple[Tensor, ...], bs: tuple[Tensor, ...], panels: int = 32
) -> Tensor:
    """Attributions `[elements]` of one row, rows first in `xs`: Gauss-Legendre of 8 points on equal
    panels.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    alphas = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
    mean = torch.from_numpy(np.tile(weights / 2 / panels, panels)) @ path_gradients(
        forward, xs, bs, torch.from_numpy(alphas)
    )
    return mean * _difference(xs, bs)


def kinked_integral(forward: Scalar, xs: tuple[Tensor, ...], bs: tuple[Tensor, ...]) -> Tensor:
    """Attributions `[elements]` of one row of a piecewise linear function, exact to about 1e-12.

    Pieces are halved wherever the gradients at their ends and middle differ. The first cuts are
    random, so that no kink falls on one; 0 and 1 are not touched, since many functions have a kink
    at their baseline.
    """
    cuts = (
        torch.rand(255, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        .sort()
        .values
    )
    ends = torch.cat([torch.tensor([1e-14]), cuts, torch.tensor([1 - 1e-14])]).double()
    left, right = ends[:-1], ends[1:]
    total = torch.zeros(sum(x[0].numel() for x in xs), dtype=torch.float64)
    for _ in range(48):
        middle = (left + right) / 2
        first, centre, last = path_gradients(
            forward, xs, bs, torch.cat([left, middle, right])
        ).chunk(3)
        even = ((first - centre).abs().amax(1) < 1e-12) & ((last - centre).abs().amax(1) < 1e-12)
        total += (right - left)[even] @ centre[even]
        left, right = (
            torch.cat([left[~even], middle[~even]]),
            torch.cat([middle[~even], right[~even]]),
        )
        if not len(left):
            break
    return total * _difference(xs, bs)


def _difference(xs: tuple[Tensor, ...], bs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([(x - b).flatten() for x, b in zip(xs, bs, strict=True)])
