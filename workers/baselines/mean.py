"""The mean of each feature over all clean rows of the dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.specs.baselines import MeanBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.means import Means

_MEANS = Means()


class Mean(BaselineKind[MeanBaseline]):
    """What the pre-pass over the data found, shared by all rows."""

    def prepasses(self, part: MeanBaseline) -> tuple[PrePass[Any], ...]:
        return (_MEANS,)

    def tensor(self, part: MeanBaseline, rows: PlaceRows) -> Tensor:
        return rows.placed(rows.found(_MEANS)[None])
