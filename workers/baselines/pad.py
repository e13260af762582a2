"""The id that fills lists up, in every place."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import PadBaseline
from integrand.schemas.specs.inputs import EmbeddedInput
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows


class Pad(BaselineKind[PadBaseline]):
    """One list of them, shared by all rows."""

    def check(self, part: PadBaseline, place: Place) -> None:
        """SpecError for numbers, which have no padding."""
        if not isinstance(place.input, EmbeddedInput):
            raise SpecError(
                f"baseline of input `{place.shape.name}`",
                expected="an input of ids, which a pad baseline is for",
                seen="numbers",
                next_step="choose another baseline",
            )

    def tensor(self, part: PadBaseline, rows: PlaceRows) -> Tensor:
        assert isinstance(rows.input, EmbeddedInput)
        assert rows.input.pad is not None
        return rows.values.new_full((1, *rows.shape.shape), rows.input.pad)
