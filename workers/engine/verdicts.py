"""What a method says of tracks at their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import RowStatus

STATUSES = tuple(RowStatus)
CODES = {status: code for code, status in enumerate(STATUSES)}
"""A status as the number that stands for it in tensors."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdicts:
    """Finished tracks: tensors [tracks] and [tracks, elements] on the problem's device.

    rows, targets  what each is about
    status         of each, as one of CODES; numbers of a `nonfinite` one are not kept
    error          estimated ‖a − a*‖₁ / ‖a‖₁, float64; NaN where a rule gives none
    gap            Σ attributions − (f(x) − f(x')), float64
    needed         evaluations that the tolerance would have taken, where a track ended because it
                   is out of reach; else 0
    gradients      ∫ ∂f/∂x dα, [tracks, elements]; without elements where nobody asks for it
    """

    rows: Tensor
    targets: Tensor
    status: Tensor
    attributions: Tensor
    gap: Tensor
    error: Tensor
    evaluations: Tensor
    needed: Tensor
    gradients: Tensor | None = None


@dataclass(frozen=True)
class Ending:
    """How one row ended that is not ok, for the words about it."""

    status: RowStatus
    gap: float
    error: float
    evaluations: int
    needed: int


def coded(choices: Sequence[RowStatus], index: Tensor) -> Tensor:
    """The status code of each track, by its index into some statuses."""
    return _codes(tuple(choices), index.device)[index]


@cache
def _codes(choices: tuple[RowStatus, ...], device: torch.device) -> Tensor:
    return torch.tensor([CODES[status] for status in choices], device=device)


def decoded(codes: NDArray[np.int64]) -> NDArray[np.object_]:
    """The status that each code stands for."""
    known = np.empty(len(STATUSES), object)
    known[:] = STATUSES
    return known[codes]
