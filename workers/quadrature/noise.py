"""What rounding of single evaluations does to functionals of them: what is no louder says nothing
of the integrand, and no number of nodes makes it quieter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

HEARD, HEARD_GAP = 1.5, 3.0
"""Multiples of the rounding expected in the L1 norm of a functional, and in a gap of f, below which
these say nothing of the integrand: a single number varies more than a norm.
"""


@dataclass(frozen=True, eq=False)
class Spreads:
    """2-norms of functionals of the gradients, float64: what rounding that differs from node to
    node is multiplied by.

    integral      of this level's integral: []
    changes       of its difference from the one before, and so on: [integrals − 1]
    coefficients  [coefficients]
    cells         [nodes + 1]
    """

    integral: Tensor
    changes: Tensor
    coefficients: Tensor
    cells: Tensor


@dataclass(frozen=True, eq=False)
class Noise:
    """Rounding of single evaluations in reduced precision, [rows] float64.

    gradients  of gradients, relative to their size
    values     of f
    counted    relative error that is counted for them besides the deviation
    """

    gradients: Tensor
    values: Tensor
    counted: Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """What tells of a level's error, float64.

    coefficients  [rows, coefficients]: L1 norms, from `middle` up
    changes       [rows, integrals − 1]: L1 norms of what the last levels changed, the latest first
    gaps          [rows, nodes + 1]: completeness between neighbouring nodes
    gap           [rows]: that of the whole path, without its sign
    """

    coefficients: Tensor
    changes: Tensor
    gaps: Tensor
    gap: Tensor

    def above(self, noise: Noise, spreads: Spreads, integrand: Tensor) -> Evidence:
        """What of it is louder than rounding. f at both ends of the path is taken to be exact."""
        gradients = HEARD * (noise.gradients * integrand)[:, None]
        values = HEARD_GAP * (2**0.5 * noise.values)[:, None]
        gaps = _louder(self.gaps.abs(), gradients * spreads.cells + values)
        return Evidence(
            coefficients=_louder(self.coefficients, gradients * spreads.coefficients),
            changes=_louder(self.changes, gradients * spreads.changes),
            gaps=gaps,
            gap=_louder(self.gap, gradients[:, 0] * spreads.integral),
        )


def _louder(sizes: Tensor, noise: Tensor) -> Tensor:
    return (sizes - noise).clamp(min=0)


def spreads_of(
    integrals: Floats, coefficients: Floats, cells: Floats, device: torch.device
) -> Spreads:
    norms = [
        np.linalg.norm(rows, axis=-1)
        for rows in (integrals[0], np.diff(integrals, axis=0), coefficients, cells)
    ]
    return Spreads(*(torch.tensor(norm, device=device) for norm in norms))
