"""What inputs of numbers share: they are read as floats, scaled, and finite."""

from __future__ import annotations

from math import prod
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import ScaledInput
from integrand.workers.data.columns import columns_of
from integrand.workers.data.gathering import Source, read_floats
from integrand.workers.data.inputs.base import InputArrays, InputKind
from integrand.workers.data.reasons import Reasons, judge
from integrand.workers.data.scaling import scale, spread

Part = TypeVar("Part", bound=ScaledInput)


class Scaled(InputKind[Part]):
    """An input of numbers; a kind of it overrides `resolve`."""

    def read(
        self,
        table: pa.Table,
        part: Part,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        source = Source(shape.columns, shape.shape, not shape.named)
        values = read_floats(table, source, dtype)
        values = scale(values, part, shape)
        judge_finite(table, source, values, reasons)
        return InputArrays(values)

    def read_baseline(
        self,
        table: pa.Table,
        part: Part,
        baseline: BaselinePart,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> NDArray[Any]:
        listed = baseline.reads[0].holds == "list"
        source = Source(columns_of(baseline), shape.shape, listed)
        values = read_floats(table, source, dtype)
        if baseline.reads_raw:
            values = self.to_model_units(part, values, shape)
        judge_finite(table, source, values, reasons)
        return values

    def to_model_units(self, part: Part, values: NDArray[Any], shape: InputShape) -> NDArray[Any]:
        return scale(values, part, shape)


def judge_finite(table: pa.Table, source: Source, values: NDArray[Any], reasons: Reasons) -> None:
    """A reason for each row that is not finite."""
    expected = f"not finite as {values.dtype} in model units"
    wrong = ~np.isfinite(values)
    judge(table, source, wrong, expected, reasons)


def check_scaling(part: ScaledInput, shape: tuple[int, ...]) -> None:
    """SpecError for a mean or std that fits neither the features nor the leading channels."""
    for field, numbers in (("mean", part.mean), ("std", part.std)):
        try:
            spread(numbers, shape)
        except ValueError as error:
            raise SpecError(
                f"inputs.{part.name}.{field}",
                expected=f"1, {shape[0]} (channels) or {prod(shape)} (features) numbers",
                seen=str(error),
            ) from None
