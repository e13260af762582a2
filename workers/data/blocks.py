"""What is reported of rows, block by block: inputs as they are, sums of groups of their elements in
their place or beside them, mean gradients, spreads.

Imports no torch: results are read where none is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import (
    ChannelGroups,
    ChannelSumStore,
    InputGroups,
    MapGroups,
    Output,
    PatchGroups,
    PooledStore,
)
from integrand.schemas.tables import Role

GROUPS = "groups"
"""Name of the block of named groups, which no column bears."""


@dataclass(frozen=True)
class Block:
    """Numbers that are reported side by side, in columns like those of an input of this shape;
    `summed` where they are of groups of elements.
    """

    role: Role
    shape: InputShape
    summed: bool = False


def blocks_of(spec: AttributeSpec, shapes: Sequence[InputShape]) -> tuple[Block, ...]:
    """The blocks of a job whose inputs have these shapes, in the order of their columns."""
    output = spec.output
    features = [Block("attr", shape) for shape in shapes]
    found = features
    if output.grouped:
        role: Role = "group" if output.with_features else "attr"
        sums = [Block(role, shape, summed=True) for shape in summed(spec, shapes)]
        found = features + sums if output.with_features else sums
    if output.mean_gradients:
        found = found + [Block("mean_gradient", shape) for shape in shapes]
    if output.spread:
        spreads = [replace(block, role="spread") for block in found if block.role == "attr"]
        found = found + spreads
    return tuple(found)


def summed(spec: AttributeSpec, shapes: Sequence[InputShape]) -> Iterator[InputShape]:
    """Shapes of what elements are summed to, one after the other: the named groups, then each input
    without the features in these, or the groups of its elements.
    """
    named = spec.output.feature_groups
    if named:
        names = tuple(named)
        yield InputShape(name=GROUPS, columns=names, shape=(len(names),), named=True)
    grouped = {feature for group in named.values() for feature in group.features}
    for shape in shapes:
        groups = groups_of(spec.output, shape)
        left = tuple(name for name in shape.columns if name not in grouped)
        if groups is not None:
            yield _of_groups(groups, shape)
        elif not shape.named:
            yield shape
        elif left:
            yield shape.model_copy(update={"columns": left, "shape": (len(left),)})


def groups_of(output: Output, shape: InputShape) -> InputGroups | None:
    """How the elements of an input are grouped, if they are."""
    asked = output.input_groups.get(shape.name)
    if asked is not None or shape.named or shape.varying:
        return asked
    if isinstance(output.store, PooledStore):
        return PatchGroups(patches=output.store.patch)
    if isinstance(output.store, ChannelSumStore) and len(shape.shape) > 1:
        return ChannelGroups(channels="sum")
    return None


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes without the leading one of three or more, which is that of channels."""
    return shape[1:] if len(shape) > 2 else shape


def map_shape(shape: InputShape) -> tuple[int, ...]:
    """Shape that a row's map of an input has."""
    return shape.shape if shape.varying else spatial(shape.shape)


def _of_groups(groups: InputGroups, shape: InputShape) -> InputShape:
    if isinstance(groups, PatchGroups):
        sides = [-(-side // groups.patches) for side in spatial(shape.shape)]
        return shape.model_copy(update={"shape": tuple(sides)})
    if isinstance(groups, ChannelGroups):
        return shape.model_copy(update={"shape": shape.shape[1:]})
    if isinstance(groups, MapGroups) and groups.count is not None:
        return shape.model_copy(update={"shape": (groups.count,), "varying": False})
    return shape
