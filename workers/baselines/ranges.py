"""The valid values of an input, in model units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.inputs import ScaledInput
from integrand.schemas.specs.part import Numbers
from integrand.workers.baselines.base import Place
from integrand.workers.data.scaling import spread


@dataclass(frozen=True, eq=False)
class Bounds:
    """Ends of the range of each element, `[1, *shape]` float64 in model units."""

    low: np.ndarray
    high: np.ndarray


def bounds_of(place: Place) -> Bounds | None:
    """The input's range; None where its part names none. Raises SpecError for ends that fit neither
    the features nor the leading channels, or of which the lower is above the upper.
    """
    given = place.input.range if isinstance(place.input, ScaledInput) else None
    if given is None:
        return None
    low, high = _end(given.low, place), _end(given.high, place)
    if (low >= high).any():
        raise _wrong(place, "low ends below the high ends", f"{given.low} to {given.high}")
    if given.units == "raw":
        low, high = place.to_model_units(low), place.to_model_units(high)
    # a negative scale turns raw ends around
    return Bounds(np.minimum(low, high), np.maximum(low, high))


def needed_bounds(place: Place, kind: str) -> Bounds:
    """The input's range. Raises SpecError where its part names none."""
    bounds = bounds_of(place)
    if bounds is None:
        raise SpecError(
            f"baseline of input `{place.shape.name}`",
            expected=f"the input's valid range, which a {kind} baseline is made of",
            seen="no range",
            next_step=f"give inputs.{place.shape.name}.range: [low, high]",
        )
    return bounds


def check_within(place: Place, values: np.ndarray) -> None:
    """SpecError for values, `[1, *shape]` in model units, of which one lies outside the range."""
    bounds = bounds_of(place)
    if bounds is None:
        return
    outside = (values < bounds.low) | (values > bounds.high)
    if outside.any():
        low, high = bounds.low[outside][0], bounds.high[outside][0]
        raise SpecError(
            f"baseline of input `{place.shape.name}`",
            expected=f"a value within the input's range, {low:g} to {high:g}",
            seen=f"{values[outside][0]:g}",
            next_step="choose a valid baseline, or widen the range",
        )


def _end(numbers: Numbers, place: Place) -> np.ndarray:
    """`[1, *shape]` float64, in the units of the range."""
    shape = place.shape.shape
    try:
        return np.broadcast_to(spread(numbers, shape), shape)[None].astype(np.float64)
    except ValueError as error:
        expected = f"1, {shape[0]} (channels) or {np.prod(shape)} (features) numbers"
        raise _wrong(place, expected, str(error)) from None


def _wrong(place: Place, expected: str, seen: str) -> SpecError:
    return SpecError(f"inputs.{place.shape.name}.range", expected=expected, seen=seen)
