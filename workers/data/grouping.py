"""Which sum each element of a row goes into, and the maps of groups that rows bring."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import ChannelGroups, ChannelSumStore, MapGroups, PatchGroups
from integrand.workers.data.blocks import groups_of, map_shape, spatial, summed
from integrand.workers.data.columns import check_column, column_shape, is_number, unnest
from integrand.workers.data.gathering import Source, integers_of, read_integers, storage_of
from integrand.workers.data.reasons import Reasons, judge

Integers = NDArray[np.int64]


def check_groups(schema: pa.Schema, spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """Raises SpecError for groups that the inputs, as the data have them, do not allow."""
    _check_features(spec, shapes)
    for shape in shapes:
        groups = spec.output.input_groups.get(shape.name)
        where = f"output.groups.{shape.name}"
        if groups is not None and shape.named:
            raise SpecError(where, expected="lists of ids", seen="one id in each row")
        if isinstance(groups, ChannelGroups) and len(shape.shape) < 2:
            seen = f"shape {list(shape.shape)}"
            raise SpecError(where, expected="an input of two axes or more", seen=seen)
        if isinstance(groups, MapGroups):
            _check_map(schema, groups.column, shape)
    with_channels = [s for s in shapes if not (s.named or s.varying) and len(s.shape) > 1]
    if isinstance(spec.output.store, ChannelSumStore) and not with_channels:
        raise SpecError("output.store", expected="an input with channels", seen="none")


def _check_features(spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """One column of ids names a feature only where it holds one id a row."""
    lists = {name for shape in shapes if not shape.named for name in shape.columns}
    for group, asked in spec.output.feature_groups.items():
        for name in asked.features:
            if name in lists:
                raise SpecError(
                    f"output.groups.{group}",
                    expected="features with a column of their own",
                    seen=f"`{name}`, a column of lists",
                    next_step="group its elements by the input's name",
                )


def _check_map(schema: pa.Schema, column: str, shape: InputShape) -> None:
    kind = check_column(schema, column)
    if not shape.varying:
        column_shape(column, kind, map_shape(shape))
        return
    leaf, sizes = unnest(kind)
    if len(sizes) != 1 or not is_number(leaf):
        raise SpecError(
            f"column `{column}`", expected="lists of integers, one for each id", seen=str(kind)
        )


# --- maps ----------------------------------------------------------------------------------------


def read_map(
    table: pa.Table,
    groups: MapGroups,
    shape: InputShape,
    lengths: Integers | None,
    reasons: Reasons,
) -> Integers:
    """A map of groups, `[rows, *map_shape]`, 0 in padding. `lengths` are those of lists of ids,
    None where they do not vary. What is wrong with a row goes into `reasons`, unless there is one.
    """
    if lengths is None:
        source = Source((groups.column,), map_shape(shape), True)
        numbers = read_integers(table, source)
        most = groups.count or prod(shape.shape)
        wrong = (numbers < 0) | (numbers >= most)
        judge(table, source, wrong, f"expected a group, an integer from 0 to {most - 1}", reasons)
        return numbers
    return _varying_map(table, groups, shape.shape[0], lengths, reasons)


def _varying_map(
    table: pa.Table, groups: MapGroups, width: int, lengths: Integers, reasons: Reasons
) -> Integers:
    """`[rows, width]` of lists that are as long as those of the ids."""
    column = storage_of(table.column(groups.column))
    numbers = np.zeros((table.num_rows, width), np.int64)
    for row, items in enumerate(column):
        own = integers_of(items.values) if items.is_valid else np.empty(0, np.int64)
        wrong = _wrong_list(items, own, groups, int(lengths[row]))
        if wrong:
            reasons[row] = reasons[row] or wrong
        else:
            numbers[row, : len(own)] = own
    return numbers


def _wrong_list(items: pa.Scalar, own: Integers, groups: MapGroups, length: int) -> str | None:
    """Why a row's map of ids is none."""
    name = groups.column
    if not items.is_valid:
        return f"{name} is null"
    if len(own) != length:
        return f"{name} has {len(own)} groups for {length} ids"
    most = groups.count or length
    wrong = (own < 0) | (own >= most)
    if not wrong.any():
        return None
    place = int(wrong.argmax())
    seen = items.values[place].as_py()
    return f"{name}[{place}] is {seen}: expected a group, an integer from 0 to {most - 1}"


# --- elements ------------------------------------------------------------------------------------


def members(
    spec: AttributeSpec, shapes: Sequence[InputShape], maps: Sequence[Integers | None]
) -> Integers:
    """Number of the sum that each element of all inputs goes into: `[1, elements]`, or
    `[rows, elements]` where rows bring maps, `[rows, *map_shape]` of their inputs.
    """
    named = spec.output.feature_groups
    places = {name: i for i, group in enumerate(named.values()) for name in group.features}
    first = len(named)
    found = []
    sizes = {shape.name: prod(shape.shape) for shape in summed(spec, shapes)}
    for shape, numbers in zip(shapes, maps, strict=True):
        if shape.named:
            own, left = _of_features(shape, places, first)
        else:
            own, left = first + _within(spec, shape, numbers), sizes[shape.name]
        found.append(own)
        first += left
    rows = max(len(own) for own in found)
    return np.concatenate([np.broadcast_to(own, (rows, own.shape[1])) for own in found], 1)


def _of_features(shape: InputShape, places: dict[str, int], first: int) -> tuple[Integers, int]:
    """Numbers of named features, `[1, features]`, and how many of these are in no group."""
    own = []
    left = 0
    for name in shape.columns:
        own.append(places.get(name, first + left))
        left += name not in places
    return np.array([own]), left


def _within(spec: AttributeSpec, shape: InputShape, numbers: Integers | None) -> Integers:
    """Numbers of an input's elements among the groups of it, `[1 or rows, elements]`."""
    groups = groups_of(spec.output, shape)
    if numbers is not None:
        own = numbers
        if own.ndim <= len(shape.shape):  # the same for all channels
            own = np.broadcast_to(own[:, None], (len(own), *shape.shape))
        return own.reshape(len(own), -1)
    if isinstance(groups, PatchGroups):
        return _patches(shape.shape, groups.patches)
    elements = np.arange(prod(shape.shape))[None]
    if isinstance(groups, ChannelGroups):
        return np.asarray(elements % prod(shape.shape[1:]))
    return elements


def _patches(shape: tuple[int, ...], side: int) -> Integers:
    axes = spatial(shape)
    number = np.zeros(axes, np.int64)
    for axis, place in enumerate(np.indices(axes)):
        number = number * -(-axes[axis] // side) + place // side
    return np.broadcast_to(number, shape).reshape(1, -1)
