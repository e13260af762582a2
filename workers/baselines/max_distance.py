"""The valid input that is farthest from the row."""

from __future__ import annotations

import torch
from torch import Tensor

from integrand.schemas.specs.baselines import MaxDistanceBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.ranges import needed_bounds


class MaxDistance(BaselineKind[MaxDistanceBaseline]):
    """Element by element the end of the range that is farther; the lower one from the middle.
    Sturmfels, Lundberg & Lee 2020.
    """

    def check(self, part: MaxDistanceBaseline, place: Place) -> None:
        """SpecError for an input without a range."""
        needed_bounds(place, part.kind)

    def tensor(self, part: MaxDistanceBaseline, rows: PlaceRows) -> Tensor:
        bounds = needed_bounds(rows, part.kind)
        low, high = rows.placed(bounds.low), rows.placed(bounds.high)
        lower_is_farther = rows.values - low >= high - rows.values
        return torch.where(lower_is_farther, low, high)
