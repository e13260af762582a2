"""What each declared column of a text source is for, which decides its type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.part import Read


@dataclass(frozen=True)
class Roles:
    """What each declared column is for, which decides its type in the pieces.

    numbers are float64, lists list<float64> (with the shape that nested ones must have, () if
    unknown), integers int64, texts strings; the row id is int64 if every id of every file is a
    whole number, else string.
    """

    numbers: tuple[str, ...] = ()
    lists: tuple[tuple[str, tuple[int, ...]], ...] = ()
    integers: tuple[str, ...] = ()
    row_id: str | None = None
    texts: tuple[str, ...] = ()

    def types(self, integer_ids: bool) -> dict[str, pa.DataType]:
        """Arrow type of every declared column; a feature keeps its type though it is also target or
        row id.
        """
        types: dict[str, pa.DataType] = dict.fromkeys(self.texts, pa.string())
        if self.row_id is not None:
            types[self.row_id] = pa.int64() if integer_ids else pa.string()
        types |= dict.fromkeys(self.integers, pa.int64())
        types |= dict.fromkeys(self.numbers, pa.float64())
        types |= {name: pa.list_(pa.float64()) for name, _ in self.lists}
        return types


def roles_of(spec: AttributeSpec) -> Roles:
    """The roles that a spec gives to columns."""
    numbers: list[str] = []
    lists: dict[str, tuple[int, ...]] = {}
    integers: list[str] = []
    texts: list[str] = []
    for read in _reads(spec):
        if read.holds == "list":
            lists[read.column] = read.shape
        elif read.holds == "integer":
            integers.append(read.column)
        elif read.holds == "text":
            texts.append(read.column)
        else:
            numbers.append(read.column)
    return Roles(
        tuple(dict.fromkeys(numbers)),
        tuple(lists.items()),
        tuple(dict.fromkeys(integers)),
        spec.source.row_id,
        tuple(dict.fromkeys(texts)),
    )


def _reads(spec: AttributeSpec) -> Iterator[Read]:
    """Every column that the spec's parts read; a baseline's lists are nested like its input's."""
    yield from spec.target.reads
    for one, baseline in zip(spec.inputs, spec.baselines, strict=True):
        yield from one.reads
        shape = one.reads[0].shape
        yield from (replace(read, shape=shape) for read in baseline.reads)
    for arg in spec.passed:
        yield from arg.reads
    yield from spec.output.reads
