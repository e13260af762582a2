"""All zeros, in the units that the model receives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.baselines import ZeroBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.ranges import check_within


class Zero(BaselineKind[ZeroBaseline]):
    """One tensor of zeros, shared by all rows."""

    def check(self, part: ZeroBaseline, place: Place) -> None:
        """SpecError where 0 lies outside the input's range."""
        check_within(place, np.zeros((1, *place.shape.shape)))

    def tensor(self, part: ZeroBaseline, rows: PlaceRows) -> Tensor:
        shape = rows.shape.shape
        return torch.zeros(1, *shape, dtype=rows.dtype, device=rows.values.device)
