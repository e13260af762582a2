"""The median of each feature over all clean rows of the dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.specs.baselines import MedianBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.medians import Medians

_MEDIANS = Medians()


class Median(BaselineKind[MedianBaseline]):
    """What the pre-pass over the data found, shared by all rows."""

    def prepasses(self, part: MedianBaseline) -> tuple[PrePass[Any], ...]:
        return (_MEDIANS,)

    def tensor(self, part: MedianBaseline, rows: PlaceRows) -> Tensor:
        return rows.placed(rows.found(_MEDIANS)[None])
