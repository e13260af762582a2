"""Baseline kinds as tensors, in the units that the model receives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import ColumnBaseline, ConstantBaseline, MeanBaseline
from integrand.schemas.specs.inputs import IdsInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.data.tensors import Rows, scale, spread
from integrand.workers.models.loading import DTYPES


def baseline_tensors(
    spec: AttributeSpec,
    shapes: Sequence[InputShape],
    rows: Rows,
    means: Sequence[np.ndarray] | None,
) -> tuple[Tensor, ...]:
    """One tensor per input: `[1, *shape]` where all rows share it, else `[rows, *shape]`; zeros for
    ids, see IdsModel.
    """
    made = []
    for i, (shape, baseline) in enumerate(zip(shapes, spec.baselines, strict=True)):
        dtype = DTYPES[spec.compute.storage]
        if isinstance(baseline, ColumnBaseline):
            column = rows.baselines[i]
            assert column is not None
            made.append(column)
        elif isinstance(baseline, MeanBaseline):
            assert means is not None
            made.append(torch.from_numpy(means[i]).to(dtype).reshape(1, *shape.shape))
        elif isinstance(baseline, ConstantBaseline) and not isinstance(spec.inputs[i], IdsInput):
            made.append(constant(baseline, spec, i, shape).to(dtype))
        else:
            made.append(torch.zeros(1, *shape.shape, dtype=dtype))
    return tuple(made)


def constant(
    baseline: ConstantBaseline, spec: AttributeSpec, index: int, shape: InputShape
) -> Tensor:
    """`[1, *shape]` float64. Raises SpecError if the list fits neither the features nor the leading
    channels.
    """
    try:
        values = spread(baseline.value, shape.shape)
    except ValueError:
        seen = len(baseline.value) if isinstance(baseline.value, tuple) else 1
        raise SpecError(
            f"baseline of input `{shape.name}`",
            expected=(
                f"1, {shape.shape[0]} (channels) or {int(np.prod(shape.shape))} (features) values"
            ),
            seen=f"{seen}",
            next_step="give one number, one per channel or one per feature",
        ) from None
    array = np.broadcast_to(values, shape.shape)[None].astype(np.float64)
    raw = baseline.units == "raw"
    return torch.from_numpy(
        np.ascontiguousarray(scale(array, spec.inputs[index], shape) if raw else array)
    )
