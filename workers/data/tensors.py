"""Arrow tables as the tensors that the model receives, and why a row cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.arguments import (
    ForwardArg,
)
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import (
    InputPart,
)
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import MapGroups, WordGroups
from integrand.workers.data.along import read_along
from integrand.workers.data.columns import columns_of, unnest
from integrand.workers.data.gathering import NO_INTEGER, Source, read_floats, read_integers
from integrand.workers.data.grouping import members, read_map
from integrand.workers.data.inputs.base import InputArrays
from integrand.workers.data.inputs.ids import PADDING, filled
from integrand.workers.data.inputs.table import kind_of_input
from integrand.workers.data.reasons import Reasons, judge, reasons_of_ingest
from integrand.workers.data.shapes import followed_by
from integrand.workers.data.tokenizing import tokens_of


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows ready for the model; a row with a reason is `bad_input` and all zeros in every tensor.

    inputs        one per input, `[rows, *shape]` in the job's precision, model units; for an input
                  of ids 1 where the row has an id and 0 in padding (`inputs.ids.Ids`)
    baselines     like inputs for baselines held by columns, like their ids for those of ids; else
                  None
    forward_args  first the ids of each such input, int64 `[rows]` or `[rows, length]`, PADDING
                  where there is none; then the spec's, `[rows]` or `[rows, *shape]` in their own
                  dtype; then the weights of the target's outputs, where rows bring them
    target        `[rows]` int64 for a target column, `[rows, depth]` for several, else None
    members       number of the sum that each element goes into, int64 `[1, elements]` or
                  `[rows, elements]`; None where elements are not added up
    words         groups of each row, `[rows]`, by the input of ids that rows bring a map for
    reasons       why a row is bad, None for a clean one
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor | None, ...]
    forward_args: tuple[Tensor, ...]
    target: Tensor | None
    reasons: Reasons
    members: Tensor | None = None
    words: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def clean(self) -> NDArray[np.bool_]:
        """`[rows]` bool: which rows have no reason against them."""
        without = [reason is None for reason in self.reasons]
        return np.array(without, bool)


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of a table whose lists of ids have one padded length: their numbers, and the shapes of
    their inputs.
    """

    rows: NDArray[np.int64]
    shapes: tuple[InputShape, ...]

    def of(self, table: pa.Table) -> pa.Table:
        """These rows of the table; itself where they are all of it."""
        if len(self.rows) == table.num_rows:
            return table
        return table.take(pa.array(self.rows))


def to_rows(table: pa.Table, spec: AttributeSpec, shapes: tuple[InputShape, ...]) -> Rows:
    """Tensors of a table read by `read_slices`. No row ever raises: what is wrong with it is its
    reason.
    """
    reasons = reasons_of_ingest(table)
    dtype = np.dtype(spec.compute.storage)
    inputs = _inputs(table, spec.inputs, shapes, dtype, reasons)
    baselines = [
        _baseline(table, baseline, one, shape, dtype, reasons) if baseline.reads else None
        for baseline, one, shape in zip(spec.baselines, spec.inputs, shapes, strict=True)
    ]
    ids = {
        one.name: found.ids
        for one, found in zip(spec.inputs, inputs, strict=True)
        if found.ids is not None
    }
    arguments = [_argument(table, arg, shapes, ids, reasons) for arg in spec.passed]
    if spec.target.weights(spec.compute.storage) is not None:
        _judge_weights(arguments[-1], spec.passed[-1], reasons)
    named = columns_of(spec.target)
    target = _target(table, named, reasons) if named else None
    maps = [
        _map(table, spec, shape, one, reasons) for shape, one in zip(shapes, inputs, strict=True)
    ]
    added = _members(spec, shapes, maps, reasons)
    bad = np.flatnonzero([r is not None for r in reasons])
    return Rows(
        inputs=tuple(_tensor(one.values, bad) for one in inputs),
        baselines=tuple(None if b is None else _tensor(b, bad) for b in baselines),
        forward_args=tuple(_tensor(a, bad) for a in (*ids.values(), *arguments)),
        target=None if target is None else _tensor(target, bad),
        reasons=reasons,
        members=added,
        words=_words(shapes, maps),
    )


def length_buckets(
    table: pa.Table, spec: AttributeSpec, shapes: tuple[InputShape, ...]
) -> list[Bucket]:
    """The table's rows by the padded lengths of their lists of ids, shortest first; one bucket if
    no input varies.

    A row's padded length depends on the row alone, so neither sharding nor neighbours can change
    it. Rows with a bad list go wherever they fit, to be told their reason there.
    """
    varying = [i for i, shape in enumerate(shapes) if shape.varying]
    if not varying:
        return [Bucket(np.arange(table.num_rows), shapes)]
    lengths = np.stack([_padded_lengths(table, spec.inputs[i]) for i in varying], 1)
    kinds, kind = np.unique(lengths, axis=0, return_inverse=True)
    buckets = []
    for k, padded in enumerate(kinds.tolist()):
        rows = np.flatnonzero(kind.reshape(-1) == k)
        by_input = dict(zip(varying, padded, strict=True))
        buckets.append(Bucket(rows, _of_lengths(shapes, by_input)))
    return buckets


def _padded_lengths(table: pa.Table, part: InputPart) -> NDArray[np.int64]:
    return kind_of_input(part).padded_lengths(table, part)


def _of_lengths(shapes: tuple[InputShape, ...], lengths: dict[int, int]) -> tuple[InputShape, ...]:
    return tuple(
        s.model_copy(update={"shape": (lengths[i],)}) if i in lengths else s
        for i, s in enumerate(shapes)
    )


def _tensor(values: NDArray[Any], bad: NDArray[np.int64]) -> Tensor:
    """The array itself where it may be written to, else one copy; bad rows zeroed."""
    values = np.require(values, requirements=["C", "W"])
    values[bad] = 0
    return torch.from_numpy(values)


def _inputs(
    table: pa.Table,
    parts: tuple[InputPart, ...],
    shapes: tuple[InputShape, ...],
    dtype: np.dtype[Any],
    reasons: Reasons,
) -> list[InputArrays]:
    """The arrays of each input, in the order of the spec whatever order they are judged in."""
    kinds = [kind_of_input(part) for part in parts]
    numbers = range(len(parts))
    judged = sorted(numbers, key=lambda i: not kinds[i].judged_first)
    found: dict[int, InputArrays] = {}
    for i in judged:
        found[i] = kinds[i].read(table, parts[i], shapes[i], dtype, reasons)
    return [found[i] for i in numbers]


def _members(
    spec: AttributeSpec,
    shapes: tuple[InputShape, ...],
    maps: list[NDArray[np.int64] | None],
    reasons: Reasons,
) -> Tensor | None:
    """Which sum each element goes into; all of a bad row into the first."""
    if not spec.output.grouped:
        return None
    found = members(spec, shapes, maps)
    if any(own is not None for own in maps):
        bad = np.array([reason is not None for reason in reasons], bool)
        found = np.where(bad[:, None], 0, found)
    return torch.from_numpy(np.ascontiguousarray(found))


def _words(
    shapes: tuple[InputShape, ...], maps: list[NDArray[np.int64] | None]
) -> dict[str, NDArray[np.int64]]:
    """Groups of each row, by the varying input that rows bring a map for."""
    found = {}
    for shape, own in zip(shapes, maps, strict=True):
        if own is not None and shape.varying:
            found[shape.name] = own.max(1) + 1
    return found


def _map(
    table: pa.Table,
    spec: AttributeSpec,
    shape: InputShape,
    found: InputArrays,
    reasons: Reasons,
) -> NDArray[np.int64] | None:
    """The map of groups that rows bring for an input, if they do."""
    groups = spec.output.input_groups.get(shape.name)
    if isinstance(groups, WordGroups):
        return filled(tokens_of(table, shape.name, "word"), shape.shape[0], 0)
    if not isinstance(groups, MapGroups):
        return None
    lengths = None
    if shape.varying and found.ids is not None:
        lengths = np.asarray((found.ids != PADDING).sum(1), np.int64)
    return read_map(table, groups, shape, lengths, reasons)


def _baseline(
    table: pa.Table,
    baseline: BaselinePart,
    part: InputPart,
    shape: InputShape,
    dtype: np.dtype[Any],
    reasons: Reasons,
) -> NDArray[Any]:
    return kind_of_input(part).read_baseline(table, part, baseline, shape, dtype, reasons)


def _argument(
    table: pa.Table,
    arg: ForwardArg,
    shapes: tuple[InputShape, ...],
    ids: dict[str, NDArray[np.int64]],
    reasons: Reasons,
) -> NDArray[Any]:
    """A forward argument of the spec, in its own dtype."""
    if arg.mask_of is not None:
        present: NDArray[np.bool_] = ids[arg.mask_of] != PADDING
        return present.astype(arg.dtype)
    if arg.types_of is not None:
        lists = tokens_of(table, arg.types_of, "types")
        return filled(lists, ids[arg.types_of].shape[1], 0).astype(arg.dtype)
    followed = followed_by(table.schema, arg, shapes)
    if followed is not None:
        return read_along(table, arg, ids[followed.name], reasons)
    source = _argument_source(table, arg)
    if arg.dtype in ("float32", "float64"):
        values = read_floats(table, source, np.dtype(arg.dtype))
        # An infinite entry is a legitimate additive mask; a NaN can only spoil the output.
        judge(table, source, np.isnan(values), "expected a number", reasons)
        return values
    whole = read_integers(table, source)
    if arg.dtype == "bool":
        judge(table, source, (whole != 0) & (whole != 1), "expected 0 or 1", reasons)
        flags: NDArray[np.bool_] = whole == 1
        return flags
    judge(table, source, whole == NO_INTEGER, "expected an integer", reasons)
    return whole


def _judge_weights(weights: NDArray[Any], arg: ForwardArg, reasons: Reasons) -> None:
    """A reason for each row whose weights of outputs are not numbers from 0, with one above 0."""
    by_row = weights.reshape(len(weights), -1)
    # NaN is none of these: a null has a reason already
    wrong = (by_row < 0) | np.isposinf(by_row)
    for row in np.flatnonzero(wrong.any(1)).tolist():
        value = by_row[row, int(wrong[row].argmax())]
        reasons[row] = reasons[row] or f"{arg.column} holds {value}, expected weights from 0"
    for row in np.flatnonzero(~(by_row > 0).any(1)).tolist():
        reasons[row] = reasons[row] or f"{arg.column} is an empty mask: no weight is above 0"


def _argument_source(table: pa.Table, arg: ForwardArg) -> Source:
    if arg.column is None:
        return Source(arg.columns, (len(arg.columns),), False)
    kind = table.schema.field(arg.column).type
    if isinstance(kind, pa.FixedShapeTensorType):
        own = tuple(kind.shape)
    else:
        _, own = unnest(kind)
    shape = arg.shape or tuple(n or 0 for n in own)
    return Source((arg.column,), shape, bool(shape))


def _target(table: pa.Table, names: tuple[str, ...], reasons: Reasons) -> NDArray[np.int64]:
    found = []
    for name in names:
        source = Source((name,), (), False)
        values = read_integers(table, source)
        judge(table, source, values < 0, "expected an output index, an integer from 0", reasons)
        found.append(values)
    return found[0] if len(found) == 1 else np.stack(found, 1)
