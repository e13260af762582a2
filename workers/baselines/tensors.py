"""The baselines of a job as tensors, in the units that the model receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.baselines.base import Place, PlaceRows
from integrand.workers.baselines.table import kind_of_baseline
from integrand.workers.data.prepasses.base import Arrays
from integrand.workers.data.tensors import Rows


def check_baselines(spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """SpecError for a baseline that does not fit its input."""
    for one, baseline, shape in zip(spec.inputs, spec.baselines, shapes, strict=True):
        if not one.modules:
            kind = kind_of_baseline(baseline)
            kind.check(baseline, Place(input=one, shape=shape))
            _check_draws(shape, kind.draws(baseline))


def _check_draws(shape: InputShape, draws: int) -> None:
    if draws != 1:
        raise SpecError(
            f"baseline of input `{shape.name}`",
            expected="one baseline for each row, as every accuracy takes it",
            seen=f"{draws}",
            next_step="choose another baseline",
        )


def prepasses_of(baselines: Sequence[BaselinePart]) -> tuple[str, ...]:
    """Names of the pre-passes that these baselines need, each once."""
    names: list[str] = []
    for one in baselines:
        prepass = kind_of_baseline(one).prepass
        if prepass is not None and prepass not in names:
            names.append(prepass)
    return tuple(names)


def baseline_tensors(
    spec: AttributeSpec, shapes: Sequence[InputShape], rows: Rows, counted: Mapping[str, Arrays]
) -> tuple[Tensor, ...]:
    """One tensor per input: `[1, *shape]` where all rows share it, else `[rows, *shape]`; zeros for
    ids, see IdsModel.

    counted  what the pre-passes found, by name
    """
    tensors = []
    for i, shape in enumerate(shapes):
        tensors.append(_tensor(spec, i, shape, rows, counted))
    return tuple(tensors)


def _tensor(
    spec: AttributeSpec, i: int, shape: InputShape, rows: Rows, counted: Mapping[str, Arrays]
) -> Tensor:
    one = spec.inputs[i]
    baseline = spec.baselines[i]
    values = rows.inputs[i]
    if one.modules:
        return torch.zeros(1, *shape.shape, dtype=values.dtype)
    kind = kind_of_baseline(baseline)
    found = None if kind.prepass is None else counted[kind.prepass][i]
    read = rows.baselines[i]
    place = PlaceRows(input=one, shape=shape, values=values, read=read, counted=found)
    return kind.tensor(baseline, place)
