"""A named row of a dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.ids import digest_json
from integrand.schemas.specs.baselines import RowBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.lists import check_fill, in_place
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.selection import Selection


class Row(BaselineKind[RowBaseline]):
    """The row that the pre-pass found, shared by all rows."""

    def prepasses(self, part: RowBaseline) -> tuple[PrePass[Any], ...]:
        return (_selection(part),)

    def check(self, part: RowBaseline, place: Place) -> None:
        """SpecError for lists of ids that may be shorter than those of rows, and have no `pad`."""
        check_fill(place)

    def tensor(self, part: RowBaseline, rows: PlaceRows) -> Tensor:
        return in_place(rows, rows.found(_selection(part)))


def _selection(part: RowBaseline) -> Selection:
    row = None if part.row is None else str(part.row)
    digest = digest_json([part.where, row])[:16]
    return Selection(name=f"row-{digest}", where=part.where, row=row, uris=part.uris)
