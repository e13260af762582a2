"""Baselines that the data hold, against the valid ranges of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.baselines.base import Place
from integrand.workers.baselines.ranges import Bounds, bounds_of
from integrand.workers.baselines.table import kind_of_baseline
from integrand.workers.data.columns import columns_of
from integrand.workers.data.prepasses.base import Arrays
from integrand.workers.data.tensors import Rows

_ROUNDING = 8
"""Units in the last place of an end that scaling in the dtype of the data may take a value off."""


def rows_outside(spec: AttributeSpec, shapes: Sequence[InputShape], rows: Rows) -> dict[int, str]:
    """Reasons of the rows whose baseline is held by columns, and lies outside."""
    found: dict[int, str] = {}
    for one, baseline, shape, read in zip(
        spec.inputs, spec.baselines, shapes, rows.baselines, strict=True
    ):
        bounds = bounds_of(Place(input=one, shape=shape))
        if bounds is None or read is None:
            continue
        values = read.numpy()
        wrong = _outside(values, bounds)
        for row in np.flatnonzero(wrong.reshape(len(values), -1).any(1)).tolist():
            place = tuple(np.argwhere(wrong[row])[0])
            name = columns_of(baseline)[place[0] if shape.named else 0]
            low, high = bounds.low[0][place], bounds.high[0][place]
            reason = (
                f"{name} is {values[row][place]:g} in model units: expected {low:g} to {high:g}"
            )
            found.setdefault(row, reason)
    return found


def check_found(
    spec: AttributeSpec, shapes: Sequence[InputShape], counted: Mapping[str, Arrays]
) -> None:
    """SpecError for what a pre-pass found, such as a row of a dataset, that lies outside."""
    for i, (one, baseline, shape) in enumerate(
        zip(spec.inputs, spec.baselines, shapes, strict=True)
    ):
        bounds = bounds_of(Place(input=one, shape=shape))
        if bounds is None:
            continue
        for prepass in kind_of_baseline(baseline).prepasses(baseline):
            values = np.asarray(counted[prepass.name][i]).reshape(-1, *shape.shape)
            wrong = _outside(values, bounds)
            if wrong.any():
                raise SpecError(
                    f"baseline of input `{shape.name}`",
                    expected="values within the input's range, as its rows should have",
                    seen=f"{values[wrong][0]:g} in model units",
                    next_step=f"widen inputs.{shape.name}.range, or choose another baseline",
                )


def _outside(values: np.ndarray, bounds: Bounds) -> NDArray[np.bool_]:
    """Which values `[rows, *shape]` are beyond the ends by more than rounding."""
    size = np.maximum(np.abs(bounds.low), np.abs(bounds.high))
    spare = _ROUNDING * np.finfo(values.dtype).eps * size
    beyond: NDArray[np.bool_] = (values < bounds.low - spare) | (values > bounds.high + spare)
    return beyond
