"""One value for all features, one per feature or one per leading channel."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import ConstantBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.ranges import check_within
from integrand.workers.data.scaling import spread


class Constant(BaselineKind[ConstantBaseline]):
    """The part's numbers spread over the input's shape, shared by all rows."""

    def check(self, part: ConstantBaseline, place: Place) -> None:
        """SpecError for a list that fits neither the features nor the leading channels, and for a
        value outside the input's range.
        """
        check_within(place, _in_model_units(part, place))

    def tensor(self, part: ConstantBaseline, rows: PlaceRows) -> Tensor:
        return rows.placed(_in_model_units(part, rows))


def _in_model_units(part: ConstantBaseline, place: Place) -> np.ndarray:
    values = _values(part, place)
    return place.to_model_units(values) if part.units == "raw" else values


def _values(part: ConstantBaseline, place: Place) -> np.ndarray:
    """`[1, *shape]` float64, in the part's units."""
    shape = place.shape.shape
    try:
        values = spread(part.value, shape)
    except ValueError:
        seen = len(part.value) if isinstance(part.value, tuple) else 1
        raise SpecError(
            f"baseline of input `{place.shape.name}`",
            expected=f"1, {shape[0]} (channels) or {int(np.prod(shape))} (features) values",
            seen=f"{seen}",
            next_step="give one number, one per channel or one per feature",
        ) from None
    return np.broadcast_to(values, shape)[None].astype(np.float64)
