"""All zeros, in the units that the model receives."""

from __future__ import annotations

import torch
from torch import Tensor

from integrand.schemas.specs.baselines import ZeroBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows


class Zero(BaselineKind[ZeroBaseline]):
    """One tensor of zeros, shared by all rows."""

    def tensor(self, part: ZeroBaseline, rows: PlaceRows) -> Tensor:
        shape = rows.shape.shape
        return torch.zeros(1, *shape, dtype=rows.dtype)
