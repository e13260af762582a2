"""Rows drawn from a dataset."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from integrand.schemas.ids import digest_json
from integrand.schemas.specs.baselines import TrainingBaseline
from integrand.workers.baselines.base import BaselineKind, PlaceRows
from integrand.workers.data.prepasses.base import PrePass
from integrand.workers.data.prepasses.selection import Selection


class Training(BaselineKind[TrainingBaseline]):
    """The rows that the pre-pass drew, shared by all rows and the same in all inputs."""

    def prepasses(self, part: TrainingBaseline) -> tuple[PrePass[Any], ...]:
        return (_selection(part),)

    def tensor(self, part: TrainingBaseline, rows: PlaceRows) -> Tensor:
        return rows.placed(rows.found(_selection(part)))


def _selection(part: TrainingBaseline) -> Selection:
    digest = digest_json([part.where, part.draws, part.seed])[:16]
    return Selection(
        name=f"training-{digest}",
        where=part.where,
        count=part.draws,
        seed=part.seed,
        uris=part.uris,
    )
