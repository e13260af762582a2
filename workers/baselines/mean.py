"""The mean of each feature over all clean rows of the dataset."""

from __future__ import annotations

import torch
from torch import Tensor

from integrand.schemas.specs.baselines import MeanBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows
from integrand.workers.data.prepasses.means import Means


class Mean(BaselineKind[MeanBaseline]):
    """What the pre-pass over the data found, shared by all rows."""

    prepass = Means.name

    def tensor(self, part: MeanBaseline, rows: PlaceRows) -> Tensor:
        assert rows.counted is not None, "a kind with a pre-pass is handed what that found"
        means = torch.from_numpy(rows.counted).to(rows.dtype)
        return means.reshape(1, *rows.shape.shape)
