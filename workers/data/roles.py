"""What each declared column of a text source is for, which decides its type."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from integrand.schemas.specs.baselines import ColumnBaseline
from integrand.schemas.specs.inputs import ForwardArg, IdsInput, TensorInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.targets import ColumnTarget
from integrand.workers.data.columns import value_columns


@dataclass(frozen=True)
class Roles:
    """What each declared column is for, which decides its type in the pieces.

    numbers are float64, lists list<float64> (with the shape that nested ones must have, () if
    unknown), integers int64; the row id is int64 if every id of every file is a whole number, else
    string.
    """

    numbers: tuple[str, ...] = ()
    lists: tuple[tuple[str, tuple[int, ...]], ...] = ()
    integers: tuple[str, ...] = ()
    row_id: str | None = None

    def types(self, integer_ids: bool) -> dict[str, pa.DataType]:
        """Arrow type of every declared column; a feature keeps its type though it is also target or
        row id.
        """
        ids = (
            {} if self.row_id is None else {self.row_id: pa.int64() if integer_ids else pa.string()}
        )
        return (
            ids
            | dict.fromkeys(self.integers, pa.int64())
            | dict.fromkeys(self.numbers, pa.float64())
            | {name: pa.list_(pa.float64()) for name, _ in self.lists}
        )


def roles_of(spec: AttributeSpec) -> Roles:
    """The roles that a spec gives to columns."""
    numbers: list[str] = []
    lists: dict[str, tuple[int, ...]] = {}
    integers = [spec.target.column] if isinstance(spec.target, ColumnTarget) else []
    for one, baseline in zip(spec.inputs, spec.baselines, strict=True):
        shape = one.shape if isinstance(one, TensorInput) else ()
        for part in [one, *([baseline] if isinstance(baseline, ColumnBaseline) else [])]:
            if isinstance(part, IdsInput) and part.pad is None:
                integers += value_columns(part)
            elif isinstance(part, TensorInput | IdsInput) or (
                isinstance(part, ColumnBaseline) and part.column is not None
            ):
                lists |= dict.fromkeys(value_columns(part), shape)
            else:
                numbers += value_columns(part)
    for arg in spec.forward_args:
        if arg.shape:
            lists |= dict.fromkeys(value_columns(arg), arg.shape)
        else:
            (integers if _whole(arg) else numbers).extend(value_columns(arg))
    return Roles(
        tuple(dict.fromkeys(numbers)),
        tuple(lists.items()),
        tuple(dict.fromkeys(integers)),
        spec.source.row_id,
    )


def _whole(arg: ForwardArg) -> bool:
    return arg.dtype == "int64"
