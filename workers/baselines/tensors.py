"""The baselines of a job as tensors, in the units that the model receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import EmbeddedInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.baselines.base import Place, PlaceRows
from integrand.workers.baselines.ranges import bounds_of
from integrand.workers.baselines.table import kind_of_baseline
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.data.prepasses.base import Arrays, PrePass
from integrand.workers.data.tensors import Rows
from integrand.workers.models.row_tensors import RowTensors


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """What baselines are made of, on the device where they are wanted; rows may be any of a table.

    inputs, read, forward_args  as in `Rows`
    keys                        `[rows, 2]` int64, where something is drawn by them
    """

    inputs: tuple[Tensor, ...]
    read: tuple[Tensor | None, ...]
    forward_args: tuple[Tensor, ...]
    keys: Tensor | None = None

    @classmethod
    def of(cls, rows: Rows, keys: Tensor | None = None) -> Given:
        """All rows of a table."""
        return cls(
            inputs=rows.inputs, read=rows.baselines, forward_args=rows.forward_args, keys=keys
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Given:
        """The same change to every tensor."""
        return Given(
            inputs=tuple(change(x) for x in self.inputs),
            read=tuple(None if b is None else change(b) for b in self.read),
            forward_args=tuple(change(a) for a in self.forward_args),
            keys=None if self.keys is None else change(self.keys),
        )

    def take(self, index: Tensor | slice) -> Given:
        """The rows of these numbers."""
        return self.each(lambda tensor: tensor[index])


def check_baselines(spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """SpecError for a baseline that does not fit its input, or a range that does not."""
    for one, baseline, shape in zip(
        spec.inputs_with_baselines, spec.baselines, shapes, strict=True
    ):
        place = Place(input=one, shape=shape)
        if isinstance(one, EmbeddedInput) and not one.baseline_per_row:
            continue
        bounds_of(place)
        kind_of_baseline(baseline).check(baseline, place)


def prepasses_of(baselines: Sequence[BaselinePart]) -> tuple[PrePass[Any], ...]:
    """The pre-passes that these baselines need, each once. Raises SpecError for two that differ in
    nothing but their dataset, since a run does not depend on where that lies.
    """
    found: dict[str, PrePass[Any]] = {}
    for one in baselines:
        for prepass in kind_of_baseline(one).prepasses(one):
            known = found.setdefault(prepass.name, prepass)
            if known.uris != prepass.uris:
                raise SpecError(
                    "baseline.uri",
                    expected="one dataset for baselines that are alike otherwise",
                    seen=f"{', '.join(known.uris) or 'the source'} and {', '.join(prepass.uris)}",
                    next_step="give one of them another seed or `where`",
                )
    return tuple(found.values())


def draws_by_key(spec: AttributeSpec) -> bool:
    """Whether rows draw baselines of their own, by their ids."""
    return any(baseline.by_key for baseline in spec.baselines)


def with_baselines(
    spec: AttributeSpec,
    shapes: Sequence[InputShape],
    given: Given,
    counted: Mapping[str, Arrays],
) -> RowTensors:
    """Rows as the model gets them, with the baselines of each.

    counted  what the pre-passes found, by name
    """
    ids, others = _split(spec, given)
    made = baseline_ids(spec, shapes, given, counted)
    return RowTensors(
        given.inputs,
        baseline_tensors(spec, shapes, given, counted),
        (*ids, *made, *others),
        draws=spec.draws,
        keys=given.keys,
    )


def at_rows(spec: AttributeSpec, given: Given) -> tuple[Tensor, ...]:
    """What the model is called with at the rows themselves, before their baselines are made: ids
    that columns hold for that, and else the row's own, stand where baselines of ids go.
    """
    ids, others = _split(spec, given)
    baselines = []
    for (i, one), own in zip(_ids_inputs(spec), ids, strict=True):
        read = given.read[i]
        if one.baseline_per_row:
            baselines.append(own if read is None else read)
    return (*given.inputs, *ids, *baselines, *others)


def baseline_tensors(
    spec: AttributeSpec,
    shapes: Sequence[InputShape],
    given: Given,
    counted: Mapping[str, Arrays],
) -> tuple[Tensor, ...]:
    """One tensor per input: `[1, *shape]` where all rows share it, else `[rows, *shape]`; zeros for
    ids, see IdsModel.

    In a job of K > 1 draws `[1, *shape]`, `[K, *shape]` or `[rows × K, *shape]`, as `RowTensors`
    has them; an input with one baseline has it in all draws.
    """
    tensors = []
    for i, shape in enumerate(shapes):
        tensor = _tensor(spec, i, shape, given, counted)
        own = spec.baselines[i].draws_per_row == 1 and tensor.shape[0] > 1
        if own and spec.draws > 1:
            tensor = tensor.repeat_interleave(spec.draws, 0)
        tensors.append(tensor)
    return tuple(tensors)


def baseline_ids(
    spec: AttributeSpec,
    shapes: Sequence[InputShape],
    given: Given,
    counted: Mapping[str, Arrays],
) -> tuple[Tensor, ...]:
    """For each input of ids with baselines of its rows the ids of these: like its own, of K draws
    `[rows × K, ...]`; PADDING in the same places.
    """
    ids, _ = _split(spec, given)
    found = []
    for (i, one), own in zip(_ids_inputs(spec), ids, strict=True):
        if one.baseline_per_row:
            found.append(_ids(spec, i, shapes[i], own, given, counted))
    return tuple(found)


def _ids(
    spec: AttributeSpec,
    i: int,
    shape: InputShape,
    own: Tensor,
    given: Given,
    counted: Mapping[str, Arrays],
) -> Tensor:
    baseline = spec.baselines[i]
    draws = baseline.draws_per_row
    place = PlaceRows(
        input=spec.inputs[i],
        shape=shape,
        number=i,
        values=own.reshape(len(own), *shape.shape),
        read=given.read[i],
        keys=given.keys,
        counted=counted,
    )
    made = kind_of_baseline(baseline).tensor(baseline, place).to(torch.int64)
    if made.shape[0] == draws:
        made = made.repeat(len(own), *[1] * len(shape.shape))
    each = own.repeat_interleave(draws, 0)
    return made.reshape(each.shape).masked_fill(each == PADDING, PADDING)


def _ids_inputs(spec: AttributeSpec) -> list[tuple[int, EmbeddedInput]]:
    """The inputs of ids, with their baselines and their numbers among all."""
    inputs = enumerate(spec.inputs_with_baselines)
    return [(i, one) for i, one in inputs if isinstance(one, EmbeddedInput)]


def _split(spec: AttributeSpec, given: Given) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Forward arguments: the ids of each input of them, and those of the spec."""
    count = len(spec.ids_inputs)
    return given.forward_args[:count], given.forward_args[count:]


def _tensor(
    spec: AttributeSpec,
    i: int,
    shape: InputShape,
    given: Given,
    counted: Mapping[str, Arrays],
) -> Tensor:
    one = spec.inputs[i]
    baseline = spec.baselines[i]
    values = given.inputs[i]
    if one.modules:
        return values.new_zeros(1, *shape.shape)
    place = PlaceRows(
        input=one,
        shape=shape,
        number=i,
        values=values,
        read=given.read[i],
        keys=given.keys,
        counted=counted,
    )
    return kind_of_baseline(baseline).tensor(baseline, place)
