"""A named row of a dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.ids import digest_json
from integrand.schemas.specs.baselines import RowBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.selection import Selection


class Row(BaselineKind[RowBaseline]):
    """The row that the pre-pass found, shared by all rows."""

    def prepasses(self, part: RowBaseline) -> tuple[PrePass[Any], ...]:
        return (_selection(part),)

    def tensor(self, part: RowBaseline, rows: PlaceRows) -> Tensor:
        return rows.placed(rows.found(_selection(part)))


def _selection(part: RowBaseline) -> Selection:
    row = None if part.row is None else str(part.row)
    digest = digest_json([part.where, row])[:16]
    return Selection(name=f"row-{digest}", where=part.where, row=row, uris=part.uris)
