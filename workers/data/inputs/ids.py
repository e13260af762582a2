"""Category or token ids: of columns, or of lists that may vary in length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import EmbeddedInput, IdsInput
from integrand.workers.data.columns import (
    check_column,
    check_number,
    columns_of,
    is_number,
    unnest,
)
from integrand.workers.data.gathering import Source, integers_of, read_integers, storage_of
from integrand.workers.data.inputs.base import InputArrays, InputKind
from integrand.workers.data.reasons import Reasons, judge, value_reason

PADDING = -1
"""Stands in a row's ids where it has none; the model gets the input's `pad` there."""

LENGTH_STEP = 8
_AN_ID = "expected an id, an integer from 0"


class Ids(InputKind[IdsInput]):
    """What is attributed is 1 where the row has an id and 0 in padding (what that means:
    `embeddings.IdsModel`), and the ids go along, PADDING where there is none.
    """

    judged_first = True

    def resolve(self, schema: pa.Schema, part: IdsInput) -> InputShape:
        """Scalar columns are features of their own; of a list column the schema tells the length,
        or that it varies.
        """
        columns = part.columns
        kind = check_column(schema, columns[0])
        leaf, sizes = unnest(kind)
        if isinstance(part.ids, tuple) or not sizes:
            for name in columns:
                check_number(schema, name)
            return InputShape(name=part.name, columns=columns, shape=(len(columns),), named=True)
        if not is_number(leaf) or len(sizes) != 1:
            raise SpecError(
                f"column `{columns[0]}`",
                expected="integers, or lists of integers",
                seen=str(kind),
                next_step="store one list of ids per row",
            )
        shape = () if sizes[0] is None else (sizes[0],)
        return InputShape(
            name=part.name, columns=columns, shape=shape, named=False, varying=not shape
        )

    def read(
        self,
        table: pa.Table,
        part: IdsInput,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        columns = _Columns(part, part.columns, shape)
        ids = columns.ids(table, reasons)
        present = (ids != PADDING).astype(dtype)
        values = present.reshape(len(ids), *shape.shape)
        return InputArrays(values, ids)

    def read_baseline(
        self,
        table: pa.Table,
        part: IdsInput,
        baseline: BaselinePart,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> NDArray[np.int64]:
        """Ids for those of each row: lists must be as long as the row's own."""
        columns = _Columns(part, columns_of(baseline), shape)
        ids = columns.ids(table, reasons)
        if shape.varying:
            _judge_lengths(table, part.columns[0], columns.names[0], reasons)
        return ids

    def padded_lengths(self, table: pa.Table, part: IdsInput) -> NDArray[np.int64]:
        return padded(lists_of(table, part.columns[0]), part)


def padded(lists: pa.Array, part: EmbeddedInput) -> NDArray[np.int64]:
    """`[rows]`: the length that each list is filled up to, by itself."""
    lengths = np.clip(list_lengths(lists), 1, part.max_length)
    if part.pad is None:
        return lengths
    steps = -(-lengths // LENGTH_STEP)  # rounded up
    return np.minimum(steps * LENGTH_STEP, part.max_length)


def filled(lists: pa.Array, width: int, fill: int) -> NDArray[np.int64]:
    """`[rows, width]`: each list, as far as it fits, filled up."""
    lengths = list_lengths(lists)
    starts = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(starts, lengths)
    found = integers_of(lists.flatten())
    fits = place < width
    values = np.full((len(lengths), width), fill, np.int64)
    values[row[fits], place[fits]] = found[fits]
    return values


@dataclass(frozen=True)
class _Columns:
    """Columns that hold ids for an input of this shape: its own, or those of a baseline."""

    part: IdsInput
    names: tuple[str, ...]
    shape: InputShape

    def ids(self, table: pa.Table, reasons: Reasons) -> NDArray[np.int64]:
        """`[rows]` of one scalar column, else `[rows, length]`."""
        if self.shape.varying:
            return self._varying(lists_of(table, self.names[0]), reasons)
        source = Source(self.names, self.shape.shape, not self.shape.named)
        values = read_integers(table, source)
        judge(table, source, values < 0, _AN_ID, reasons)
        if self.shape.named and isinstance(self.part.ids, str):
            return values[:, 0]
        return values

    def _varying(self, lists: pa.Array, reasons: Reasons) -> NDArray[np.int64]:
        """`[rows, width]` of lists that are no longer than that; of a longer one, which is bad,
        what fits.
        """
        width = self.shape.shape[0]
        lengths = list_lengths(lists)
        values = filled(lists, width, PADDING)
        held = np.arange(width) < lengths[:, None]
        negative = values.min(1, where=held, initial=0) < 0
        misshapen = (lengths == 0) | (lengths > self.part.max_length)
        for i in np.flatnonzero(negative | misshapen).tolist():
            reasons[i] = reasons[i] or self._list_reason(lists[i], values[i])
        return values

    def _list_reason(self, items: pa.Scalar, values: NDArray[np.int64]) -> str:
        name, most = self.names[0], self.part.max_length
        if not items.is_valid:
            return f"{name} is null"
        count = len(items.values)
        if not 0 < count <= most:
            return f"{name} has {count} ids, expected 1 to {most}"
        first = int((values < 0).argmax())
        return value_reason(items.values[first], f"{name}[{first}]", _AN_ID)


def _judge_lengths(table: pa.Table, own: str, other: str, reasons: Reasons) -> None:
    """A reason for each row that has another number of ids in its baseline."""
    lengths, others = (list_lengths(lists_of(table, name)) for name in (own, other))
    for i in np.flatnonzero(lengths != others).tolist():
        reasons[i] = reasons[i] or f"{other} has {others[i]} ids, expected {lengths[i]} as in {own}"


def lists_of(table: pa.Table, name: str) -> pa.Array:
    """A list column in one piece; a file without a single list may hold a column of nulls."""
    column = storage_of(table.column(name)).combine_chunks()
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.list_(pa.int64()))
    return column


def list_lengths(lists: pa.Array) -> NDArray[np.int64]:
    """Entries of each list, 0 where it is null."""
    lengths = pc.list_value_length(lists)
    return np.asarray(lengths.fill_null(0), np.int64)
