"""A baseline of its own for each row, from columns of the source."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.specs.baselines import ColumnBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows


class Column(BaselineKind[ColumnBaseline]):
    """What the part reads, as it was read."""

    def tensor(self, part: ColumnBaseline, rows: PlaceRows) -> Tensor:
        assert rows.read is not None, "a part that names columns has them read"
        return rows.read
