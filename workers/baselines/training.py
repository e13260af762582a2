"""Rows drawn from a dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.ids import digest_json
from integrand.schemas.specs.baselines import TrainingBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.lists import check_fill, in_place
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.selection import Selection


class Training(BaselineKind[TrainingBaseline]):
    """The rows that the pre-pass drew, shared by all rows and the same in all inputs."""

    def prepasses(self, part: TrainingBaseline) -> tuple[PrePass[Any], ...]:
        return (_selection(part),)

    def check(self, part: TrainingBaseline, place: Place) -> None:
        """SpecError for lists of ids that may be shorter than those of rows, and have no `pad`."""
        check_fill(place)

    def tensor(self, part: TrainingBaseline, rows: PlaceRows) -> Tensor:
        return in_place(rows, rows.found(_selection(part)))


def _selection(part: TrainingBaseline) -> Selection:
    digest = digest_json([part.where, part.draws, part.seed])[:16]
    return Selection(
        name=f"training-{digest}",
        where=part.where,
        count=part.draws,
        seed=part.seed,
        uris=part.uris,
    )
