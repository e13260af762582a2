"""One token of the tokenizer in every place."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import TokenBaseline
from integrand.schemas.specs.inputs import TextInput
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows


class Token(BaselineKind[TokenBaseline]):
    """A list of its id, shared by all rows."""

    def check(self, part: TokenBaseline, place: Place) -> None:
        """SpecError for what is no text."""
        if not isinstance(place.input, TextInput):
            raise SpecError(
                f"baseline of input `{place.shape.name}`",
                expected="an input of texts, whose tokenizer knows tokens",
                seen="another one",
                next_step="give an id as a constant, or choose another baseline",
            )

    def tensor(self, part: TokenBaseline, rows: PlaceRows) -> Tensor:
        assert part.id is not None
        return rows.values.new_full((1, *rows.shape.shape), part.id)
