"""From raw values to the units that the model receives: (value / divide − mean) / std."""

from __future__ import annotations

from math import prod

import numpy as np

from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import ScaledInput
from integrand.schemas.specs.part import Numbers


def spread(numbers: Numbers, shape: tuple[int, ...]) -> np.ndarray:
    """A number, one per feature or one per leading channel, as float64 that broadcasts to `shape`.

    Raises ValueError where the count fits neither.
    """
    values = np.asarray(numbers, np.float64)
    if values.size == 1:
        return values.reshape(())
    if values.size == prod(shape):
        return values.reshape(shape)
    if values.size == shape[0]:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    raise ValueError(
        f"{values.size} numbers fit neither {prod(shape)} features nor {shape[0]} channels"
    )


def scale(values: np.ndarray, spec_input: ScaledInput, shape: InputShape) -> np.ndarray:
    """Raw values `[rows, *shape]` in model units, computed in their own dtype; not a copy if
    nothing changes.
    """
    steps = (
        (np.divide, spec_input.divide, 1),
        (np.subtract, spec_input.mean, 0),
        (np.divide, spec_input.std, 1),
    )
    for operation, numbers, neutral in steps:
        operand = spread(numbers, shape.shape).astype(values.dtype)
        if (operand != neutral).any():
            # A value may leave the range of float32 here; whoever asks for finite rows finds it.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                values = operation(values, operand)
    return values
