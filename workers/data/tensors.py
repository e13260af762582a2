"""Arrow tables as the tensors that the model receives, and why a row cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, isnan, prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.inputs import ColumnsInput, ForwardArg, IdsInput, Input, TensorInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.data.columns import BAD, columns_of, is_number, list_sizes, unnest
from integrand.workers.data.scaling import scale, spread

__all__ = ["PADDING", "Bucket", "Rows", "length_buckets", "scale", "spread", "to_rows"]
PADDING = -1
"""Stands in a row's ids where it has none; the model gets the input's `pad` there."""
LENGTH_STEP = 8
_AN_ID = "expected an id, an integer from 0"
_NO_INTEGER = np.iinfo(np.int64).min
Reasons = list[str | None]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows ready for the model; a row with a reason is `bad_input` and all zeros in every tensor.

    inputs        one per input, `[rows, *shape]` in the job's precision, model units; for an input
                  of ids 1 where the row has an id and 0 in padding (what that means:
                  `embeddings.IdsModel`)
    baselines     like inputs for baselines held by columns, else None
    forward_args  first the ids of each such input, int64 `[rows]` or `[rows, length]`, PADDING
                  where there is none; then the spec's, `[rows]` or `[rows, *shape]` in their own
                  dtype
    target        `[rows]` int64 for a target column, else None
    reasons       why a row is bad, None for a clean one
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor | None, ...]
    forward_args: tuple[Tensor, ...]
    target: Tensor | None
    reasons: Reasons

    @property
    def clean(self) -> np.ndarray:
        """`[rows]` bool: which rows have no reason against them."""
        return np.array([r is None for r in self.reasons], bool)


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of a table whose lists of ids have one padded length: their numbers, and the shapes of
    their inputs.
    """

    rows: NDArray[np.int64]
    shapes: tuple[InputShape, ...]

    def of(self, table: pa.Table) -> pa.Table:
        """These rows of the table; itself where they are all of it."""
        return table if len(self.rows) == table.num_rows else table.take(pa.array(self.rows))


@dataclass(frozen=True)
class _Source:
    """The columns of one tensor: scalar columns stacked, or one list column; `shape` of one row."""

    columns: tuple[str, ...]
    shape: tuple[int, ...]
    listed: bool


def to_rows(table: pa.Table, spec: AttributeSpec, shapes: tuple[InputShape, ...]) -> Rows:
    """Tensors of a table read by `read_slices`. No row ever raises: what is wrong with it is its
    reason.
    """
    reasons = _marked(table)
    dtype = np.dtype(spec.compute.storage)
    ids = {
        i.name: _ids(table, i, s, reasons)
        for i, s in zip(spec.inputs, shapes, strict=True)
        if isinstance(i, IdsInput)
    }
    inputs = [
        (
            _presence(ids[i.name], s, dtype)
            if isinstance(i, IdsInput)
            else _input(table, i, s, dtype, reasons)
        )
        for i, s in zip(spec.inputs, shapes, strict=True)
    ]
    baselines = [
        (
            _baseline(table, b, i, s, dtype, reasons)
            if b.reads and not isinstance(i, IdsInput)
            else None
        )
        for b, i, s in zip(spec.baselines, spec.inputs, shapes, strict=True)
    ]
    arguments = [
        *ids.values(),
        *(
            (
                _forward_arg(table, arg, reasons)
                if arg.mask_of is None
                else (ids[arg.mask_of] != PADDING).astype(arg.dtype)
            )
            for arg in spec.forward_args
        ),
    ]
    named = columns_of(spec.target)
    target = _target(table, named[0], reasons) if named else None
    bad = np.flatnonzero([r is not None for r in reasons])
    return Rows(
        inputs=tuple(_tensor(x, bad) for x in inputs),
        baselines=tuple(None if b is None else _tensor(b, bad) for b in baselines),
        forward_args=tuple(_tensor(a, bad) for a in arguments),
        target=None if target is None else _tensor(target, bad),
        reasons=reasons,
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
    return [
        Bucket(
            np.flatnonzero(kind.reshape(-1) == k),
            _of_lengths(shapes, dict(zip(varying, row, strict=True))),
        )
        for k, row in enumerate(kinds.tolist())
    ]


def _padded_lengths(table: pa.Table, spec_input: Input) -> NDArray[np.int64]:
    assert isinstance(spec_input, IdsInput)
    lengths = np.clip(_list_lengths(_lists(table, spec_input)), 1, spec_input.max_length)
    if spec_input.pad is None:
        return lengths
    return np.minimum(-(-lengths // LENGTH_STEP) * LENGTH_STEP, spec_input.max_length)


def _of_lengths(shapes: tuple[InputShape, ...], lengths: dict[int, int]) -> tuple[InputShape, ...]:
    return tuple(
        s.model_copy(update={"shape": (lengths[i],)}) if i in lengths else s
        for i, s in enumerate(shapes)
    )


def _lists(table: pa.Table, spec_input: IdsInput) -> pa.Array:
    """The input's list column in one piece; a file without a single list may hold a column of
    nulls.
    """
    column = _storage(table.column(spec_input.columns[0])).combine_chunks()
    return pa.nulls(len(column), pa.list_(pa.int64())) if pa.types.is_null(column.type) else column


def _list_lengths(lists: pa.Array) -> NDArray[np.int64]:
    """Entries of each list, 0 where it is null."""
    return np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)


def _marked(table: pa.Table) -> Reasons:
    """Reasons that ingest left, None elsewhere. Parquet does not enforce that strings are UTF-8."""
    if BAD not in table.column_names:
        return [None] * table.num_rows
    told = table.column(BAD).cast(pa.large_binary()).to_pylist()
    return [None if reason is None else reason.decode(errors="backslashreplace") for reason in told]


def _tensor(values: np.ndarray, bad: np.ndarray) -> Tensor:
    """The array itself where it may be written to, else one copy; bad rows zeroed."""
    values = np.require(values, requirements=["C", "W"])
    values[bad] = 0
    return torch.from_numpy(values)


def _input(
    table: pa.Table,
    spec_input: ColumnsInput | TensorInput,
    shape: InputShape,
    dtype: np.dtype,
    reasons: Reasons,
) -> np.ndarray:
    source = _Source(shape.columns, shape.shape, not shape.named)
    values = scale(_gather(table, source, _floats(dtype), np.nan, dtype), spec_input, shape)
    _judge(table, source, ~np.isfinite(values), f"not finite as {dtype} in model units", reasons)
    return values


def _baseline(
    table: pa.Table,
    baseline: BaselinePart,
    spec_input: ColumnsInput | TensorInput,
    shape: InputShape,
    dtype: np.dtype,
    reasons: Reasons,
) -> np.ndarray:
    listed = baseline.reads[0].holds == "list"
    source = _Source(columns_of(baseline), shape.shape, listed)
    values = _gather(table, source, _floats(dtype), np.nan, dtype)
    values = scale(values, spec_input, shape) if baseline.reads_raw else values
    _judge(table, source, ~np.isfinite(values), f"not finite as {dtype} in model units", reasons)
    return values


def _forward_arg(table: pa.Table, arg: ForwardArg, reasons: Reasons) -> np.ndarray:
    source = _argument_source(table, arg)
    if arg.dtype in ("float32", "float64"):
        dtype = np.dtype(arg.dtype)
        values = _gather(table, source, _floats(dtype), np.nan, dtype)
        # An infinite entry is a legitimate additive mask; a NaN can only spoil the output.
        _judge(table, source, np.isnan(values), "expected a number", reasons)
        return values
    values = _gather(table, source, _integers, _NO_INTEGER, np.dtype(np.int64))
    if arg.dtype == "bool":
        _judge(table, source, (values != 0) & (values != 1), "expected 0 or 1", reasons)
        return values == 1
    _judge(table, source, values == _NO_INTEGER, "expected an integer", reasons)
    return values


def _presence(ids: np.ndarray, shape: InputShape, dtype: np.dtype) -> np.ndarray:
    return (ids != PADDING).astype(dtype).reshape(len(ids), *shape.shape)


def _ids(table: pa.Table, spec_input: IdsInput, shape: InputShape, reasons: Reasons) -> np.ndarray:
    """int64 `[rows]` of one scalar column, else `[rows, length]`."""
    if shape.varying:
        return _varying_ids(_lists(table, spec_input), spec_input, shape.shape[0], reasons)
    source = _Source(shape.columns, shape.shape, not shape.named)
    values = _gather(table, source, _integers, _NO_INTEGER, np.dtype(np.int64))
    _judge(table, source, values < 0, _AN_ID, reasons)
    return values[:, 0] if shape.named and isinstance(spec_input.ids, str) else values


def _varying_ids(lists: pa.Array, spec_input: IdsInput, width: int, reasons: Reasons) -> np.ndarray:
    """`[rows, width]` of lists that are no longer than that; of a longer one, which is bad, what
    fits.
    """
    lengths = _list_lengths(lists)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = place < width
    row, place, found = row[fits], place[fits], _integers(lists.flatten())[fits]
    values = np.full((len(lengths), width), PADDING, np.int64)
    values[row, place] = found
    wrong = values.min(1, where=np.arange(width) < lengths[:, None], initial=0) < 0
    for i in np.flatnonzero(wrong | (lengths == 0) | (lengths > spec_input.max_length)).tolist():
        reasons[i] = reasons[i] or _list_reason(lists[i], values[i], spec_input)
    return values


def _list_reason(items: pa.Scalar, values: np.ndarray, spec_input: IdsInput) -> str:
    name = spec_input.columns[0]
    if not items.is_valid:
        return f"{name} is null"
    if not 0 < len(items.values) <= spec_input.max_length:
        return f"{name} has {len(items.values)} ids, expected 1 to {spec_input.max_length}"
    first = int((values < 0).argmax())
    return _value_reason(items.values[first], f"{name}[{first}]", _AN_ID)


def _argument_source(table: pa.Table, arg: ForwardArg) -> _Source:
    if arg.column is None:
        return _Source(arg.columns, (len(arg.columns),), False)
    kind = table.schema.field(arg.column).type
    own = tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else unnest(kind)[1]
    shape = arg.shape or tuple(n or 0 for n in own)
    return _Source((arg.column,), shape, bool(shape))


def _target(table: pa.Table, column: str, reasons: Reasons) -> np.ndarray:
    source = _Source((column,), (), False)
    values = _gather(table, source, _integers, _NO_INTEGER, np.dtype(np.int64))
    _judge(table, source, values < 0, "expected an output index, an integer from 0", reasons)
    return values


# --- columns to arrays -------------------------------------------------------------------------


def _gather(
    table: pa.Table,
    source: _Source,
    decode: Callable[[pa.Array], np.ndarray],
    blank: float,
    dtype: np.dtype,
) -> np.ndarray:
    """`[rows, *shape]` of a tensor's columns; `blank` where a value is null, misshapen or of
    another type.
    """
    rows = table.num_rows
    if source.listed:
        return _column(table, source.columns[0], source, decode, blank, dtype).reshape(
            rows, *source.shape
        )
    values = np.empty((rows, len(source.columns)), dtype)
    for j, name in enumerate(source.columns):
        values[:, j] = _column(table, name, source, decode, blank, dtype)[:, 0]
    return values.reshape(rows, *source.shape)


def _column(
    table: pa.Table,
    name: str,
    source: _Source,
    decode: Callable[[pa.Array], np.ndarray],
    blank: float,
    dtype: np.dtype,
) -> np.ndarray:
    """`[rows, values]` of one column, without a copy where Arrow holds it in one piece and in this
    dtype.
    """
    column = _storage(table.column(name))
    sizes = _sizes(column.type, source)
    if not _readable(column.type, sizes):
        return np.full((table.num_rows, prod(sizes)), blank, dtype)
    parts = [_chunk(chunk, sizes, decode, blank, dtype) for chunk in column.chunks]
    if not parts:
        return np.empty((0, prod(sizes)), dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chunk(
    chunk: pa.Array,
    sizes: tuple[int, ...],
    decode: Callable[[pa.Array], np.ndarray],
    blank: float,
    dtype: np.dtype,
) -> np.ndarray:
    shaped = _shaped(chunk, sizes)
    leaves = _kept(chunk, shaped)
    for _ in sizes:
        leaves = leaves.flatten()
    values = decode(leaves).reshape(-1, prod(sizes))
    if shaped.all():
        return values
    padded = np.full((len(chunk), prod(sizes)), blank, dtype)
    padded[shaped] = values
    return padded


def _shaped(lists: pa.Array, sizes: tuple[int, ...]) -> np.ndarray:
    """`[rows]` bool: whose lists have these lengths at every level."""
    if not sizes:
        return np.ones(len(lists), bool)
    good = (
        pc.equal(pc.list_value_length(lists), sizes[0])
        .fill_null(False)
        .to_numpy(zero_copy_only=False)
        .copy()
    )
    inner = _shaped(_kept(lists, good).flatten(), sizes[1:]) if len(sizes) > 1 else np.ones(0, bool)
    if not inner.all():
        good[good] = inner.reshape(-1, sizes[0]).all(axis=1)
    return good


def _kept(values: pa.Array, mask: np.ndarray) -> pa.Array:
    return values if mask.all() else values.filter(pa.array(mask))


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def _sizes(kind: pa.DataType, source: _Source) -> tuple[int, ...]:
    return list_sizes(kind, source.shape) if source.listed else ()


def _readable(kind: pa.DataType, sizes: tuple[int, ...]) -> bool:
    leaf, levels = unnest(kind)
    return len(levels) == len(sizes) and (is_number(leaf) or pa.types.is_null(leaf))


def _floats(dtype: np.dtype) -> Callable[[pa.Array], np.ndarray]:
    def decode(leaves: pa.Array) -> np.ndarray:
        # What float64 and float32 cannot hold becomes infinite here and is judged with the rest.
        with np.errstate(over="ignore", invalid="ignore"):
            return _plain(leaves).to_numpy(zero_copy_only=False).astype(dtype, copy=False)

    return decode


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


def _integers(leaves: pa.Array) -> np.ndarray:
    """int64 values, `_NO_INTEGER` where a value is null, has a fraction or does not fit."""
    if not pa.types.is_integer(leaves.type):
        leaves = _plain(leaves).cast(pa.float64(), safe=False)
    raw = leaves.fill_null(0).to_numpy(zero_copy_only=False)
    good = leaves.is_valid().to_numpy(zero_copy_only=False)
    if raw.dtype.kind == "f":
        good = good & (np.abs(raw) < 2.0**63) & (raw == np.trunc(raw))
    elif raw.dtype.kind == "u":
        good = good & (raw <= np.iinfo(np.int64).max)
    return np.where(good, np.where(good, raw, 0).astype(np.int64), _NO_INTEGER)


# --- reasons -----------------------------------------------------------------------------------


def _judge(
    table: pa.Table, source: _Source, wrong: np.ndarray, expected: str, reasons: Reasons
) -> None:
    """Give every row with a wrong value, and no reason yet, its reason: the first wrong value."""
    if not wrong.any():
        return
    wrong = wrong.reshape(len(reasons), -1)
    columns = {name: _storage(table.column(name)) for name in source.columns}
    for i in np.flatnonzero(wrong.any(axis=1)):
        if reasons[i] is None:
            position = int(wrong[i].argmax())
            name = source.columns[0 if source.listed else position]
            sizes = _sizes(columns[name].type, source)
            place = tuple(map(int, np.unravel_index(position, sizes))) if sizes else ()
            reasons[i] = _reason(columns[name], int(i), name, sizes, place, expected)


def _reason(
    column: pa.ChunkedArray,
    row: int,
    name: str,
    sizes: tuple[int, ...],
    place: tuple[int, ...],
    expected: str,
) -> str:
    if not _readable(column.type, sizes) and not pa.types.is_null(column.type):
        return f"{name}: expected {'lists of ' if sizes else ''}numbers, seen {column.type}"
    value = column[row]
    misshapen = _misshapen(value, sizes, name)
    if misshapen:
        return misshapen
    for k in place:
        value = value.values[k]
        name += f"[{k}]"
    return _value_reason(value, name, expected)


def _value_reason(value: pa.Scalar, name: str, expected: str) -> str:
    if not value.is_valid:
        return f"{name} is null"
    number = float(value.as_py())
    text = "NaN" if isnan(number) else str(value.as_py())
    return f"{name} is {text}: {expected}" if isfinite(number) else f"{name} is {text}"


def _misshapen(value: pa.Scalar, sizes: tuple[int, ...], name: str) -> str | None:
    """The first list that is null or of the wrong length, without a look at the numbers."""
    if not sizes:
        return None
    if not value.is_valid:
        return f"{name} is null"
    items = value.values
    if len(items) != sizes[0]:
        return f"{name} has {len(items)} values, expected {sizes[0]}"
    inner = range(len(items)) if len(sizes) > 1 else ()
    return next((m for k in inner if (m := _misshapen(items[k], sizes[1:], f"{name}[{k}]"))), None)
