"""Columns of an Arrow table as arrays, and what stands where a value is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from integrand.workers.data.columns import is_number, list_sizes, unnest

NO_INTEGER = np.iinfo(np.int64).min
"""Stands where a value is null, has a fraction or does not fit."""

Decode = Callable[[pa.Array], NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """The columns of one tensor: scalar columns stacked, or one list column; `shape` of one row."""

    columns: tuple[str, ...]
    shape: tuple[int, ...]
    listed: bool

    def sizes(self, kind: pa.DataType) -> tuple[int, ...]:
        """The length that each list level of a column of this type must have."""
        if not self.listed:
            return ()
        return list_sizes(kind, self.shape)


def read_floats(table: pa.Table, source: Source, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`[rows, *shape]` of this dtype; NaN where a value is null, misshapen or of another type."""
    tensor = _Tensor(source, _floats(dtype), np.nan, dtype)
    return tensor.of(table)


def read_integers(table: pa.Table, source: Source) -> NDArray[np.int64]:
    """`[rows, *shape]`; NO_INTEGER where a value is none, misshapen or of another type."""
    tensor = _Tensor(source, integers_of, NO_INTEGER, np.dtype(np.int64))
    return tensor.of(table)


@dataclass(frozen=True, eq=False)
class _Tensor:
    """How the columns of one tensor are read: `decode` makes numbers of this dtype, `blank` stands
    where there are none.
    """

    source: Source
    decode: Decode
    blank: float
    dtype: np.dtype[Any]

    def of(self, table: pa.Table) -> NDArray[Any]:
        source = self.source
        rows = table.num_rows
        if source.listed:
            values = self._column(table, source.columns[0])
            return values.reshape(rows, *source.shape)
        values = np.empty((rows, len(source.columns)), self.dtype)
        for j, name in enumerate(source.columns):
            values[:, j] = self._column(table, name)[:, 0]
        return values.reshape(rows, *source.shape)

    def _column(self, table: pa.Table, name: str) -> NDArray[Any]:
        """`[rows, values]` of one column, without a copy where Arrow holds it in one piece and in
        this dtype.
        """
        column = storage_of(table.column(name))
        sizes = self.source.sizes(column.type)
        width = prod(sizes)
        if not is_readable(column.type, sizes):
            return np.full((table.num_rows, width), self.blank, self.dtype)
        parts = [self._chunk(chunk, sizes) for chunk in column.chunks]
        if not parts:
            return np.empty((0, width), self.dtype)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts)

    def _chunk(self, chunk: pa.Array, sizes: tuple[int, ...]) -> NDArray[Any]:
        shaped = _shaped(chunk, sizes)
        leaves = _kept(chunk, shaped)
        for _ in sizes:
            leaves = leaves.flatten()
        values = self.decode(leaves).reshape(-1, prod(sizes))
        if shaped.all():
            return values
        padded = np.full((len(chunk), prod(sizes)), self.blank, self.dtype)
        padded[shaped] = values
        return padded


def storage_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without its dictionary or extension type."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def is_readable(kind: pa.DataType, sizes: tuple[int, ...]) -> bool:
    """Whether a type holds numbers, or nothing, within as many levels of lists."""
    leaf, levels = unnest(kind)
    if len(levels) != len(sizes):
        return False
    return is_number(leaf) or bool(pa.types.is_null(leaf))


def _shaped(lists: pa.Array, sizes: tuple[int, ...]) -> NDArray[np.bool_]:
    """`[rows]` bool: whose lists have these lengths at every level."""
    if not sizes:
        return np.ones(len(lists), bool)
    good: NDArray[np.bool_] = (
        pc.equal(pc.list_value_length(lists), sizes[0])
        .fill_null(False)
        .to_numpy(zero_copy_only=False)
        .copy()
    )
    inner = _shaped(_kept(lists, good).flatten(), sizes[1:]) if len(sizes) > 1 else np.ones(0, bool)
    if not inner.all():
        good[good] = inner.reshape(-1, sizes[0]).all(axis=1)
    return good


def _kept(values: pa.Array, mask: NDArray[np.bool_]) -> pa.Array:
    if mask.all():
        return values
    return values.filter(pa.array(mask))


def _floats(dtype: np.dtype[Any]) -> Decode:
    return lambda leaves: floats_of(leaves, dtype)


def floats_of(leaves: pa.Array, dtype: DTypeLike) -> NDArray[Any]:
    """Values of a dtype, NaN where one is null; what the dtype cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[Any] = _plain(leaves).to_numpy(zero_copy_only=False)
        return values.astype(dtype, copy=False)


def _plain(leaves: pa.Array) -> pa.Array:
    """Numbers as a type that numpy takes; null stays null, and becomes NaN there."""
    kind, t = leaves.type, pa.types
    if t.is_boolean(kind):
        return leaves.cast(pa.uint8())
    # 64-bit integers always pass through float64, as they do in numpy's hands once a neighbour is
    # null: the way they round must not depend on neighbours.
    if (
        t.is_decimal(kind)
        or t.is_null(kind)
        or t.is_float16(kind)
        or t.is_int64(kind)
        or t.is_uint64(kind)
    ):
        return leaves.cast(pa.float64(), safe=False)
    return leaves


def integers_of(leaves: pa.Array) -> NDArray[np.int64]:
    """int64 values, `NO_INTEGER` where a value is null, has a fraction or does not fit."""
    if not pa.types.is_integer(leaves.type):
        leaves = _plain(leaves).cast(pa.float64(), safe=False)
    raw = leaves.fill_null(0).to_numpy(zero_copy_only=False)
    good = leaves.is_valid().to_numpy(zero_copy_only=False)
    if raw.dtype.kind == "f":
        fits = np.abs(raw) < 2.0**63
        good = good & fits & (raw == np.trunc(raw))
    elif raw.dtype.kind == "u":
        good = good & (raw <= np.iinfo(np.int64).max)
    values = np.where(good, raw, 0).astype(np.int64)
    return np.where(good, values, NO_INTEGER)
