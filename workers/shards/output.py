"""Results as the output table, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.records import InputShape, Plan
from integrand.schemas.specs.targets import Place
from integrand.schemas.tables import (
    COLUMNS,
    RowStatus,
    feature_fields,
    list_field,
    output_schema,
    tensor_field,
)
from integrand.workers.engine.row_results import NUMBERS, Floats, RowResults
from integrand.workers.shards.results import Results

ARROW_TYPES = {"float32": pa.float32(), "float64": pa.float64()}


def attribution_fields(plan: Plan) -> list[pa.Field]:
    """Output fields of every input, in order."""
    value = ARROW_TYPES[plan.numerics.precision]
    fields: list[pa.Field] = []
    for shape in plan.inputs:
        if shape.named:
            fields += feature_fields(shape.columns, value)
        else:
            fields.append(
                list_field(shape.name, value)
                if shape.varying
                else tensor_field(shape.name, shape.shape, value)
            )
    return fields


def results_table(plan: Plan, results: Results) -> pa.Table:
    """The output table of a shard, columns as documented in `schemas.tables`."""
    rows = results.rows
    there = rows.attributed
    sums = [_sums(a, n) for a, n in zip_longest(rows.attributions, results.lengths)]
    made = {name: _numbers(getattr(rows, name)) for name in NUMBERS} | {
        "row_id": results.row_id,
        "target": results.target,
        "status": pa.array([str(status) for status in rows.status]),
        "reason": pa.array(rows.reason.tolist(), pa.string()),
        "attribution_sum": _numbers(np.sum(sums, axis=0)),
    }
    columns = [made[name] for name in COLUMNS]
    for shape, values, lengths in zip_longest(plan.inputs, rows.attributions, results.lengths):
        if shape.named:
            columns += _features(values, there)
        else:
            columns.append(
                _tensors(values, there) if lengths is None else _lists(values, lengths, there)
            )
    schema = output_schema(results.row_id.type, results.target.type, attribution_fields(plan))
    return pa.Table.from_arrays(columns, schema=schema)


def target_array(targets: NDArray[np.int64] | None, present: NDArray[np.bool_]) -> pa.Array:
    """The `target` column: int32; null for scalar outputs and rows without one; `1,0` for tensor
    outputs.
    """
    rows = len(present)
    if targets is None:
        return pa.nulls(rows, pa.int32())
    if targets.shape[1] > 1:
        texts = [",".join(map(str, t)) for t in targets.tolist()]
        return pa.array(texts, pa.string(), mask=~present)
    return pa.array(targets[:, 0], pa.int32(), mask=~present)


def repeated_targets(places: Sequence[Place], rows: int) -> pa.Array:
    """The `target` column of so many output rows, where every source row has the same targets."""
    if not places[0]:
        return target_array(None, np.zeros(rows, bool))
    table = np.tile(np.array(places), (rows // len(places), 1))
    return target_array(table, np.ones(rows, bool))


def _sums(values: NDArray[np.floating[Any]], lengths: NDArray[np.int64] | None) -> Floats:
    """Σ attributions of each row, in float64. Of varying rows the exact sum: numpy's rounds by the
    width of all.
    """
    if lengths is None:
        return np.asarray(values.reshape(len(values), -1).astype(np.float64).sum(1))
    return np.array(
        [math.fsum(row[:n]) if n else np.nan for row, n in zip(values, lengths, strict=True)],
        np.float64,
    )


def _numbers(values: NDArray[Any]) -> pa.Array:
    """Null where a float is NaN."""
    return pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)


def _features(values: NDArray[np.floating[Any]], there: NDArray[np.bool_]) -> list[pa.Array]:
    return [
        pa.array(np.ascontiguousarray(values[:, i]), mask=~there) for i in range(values.shape[1])
    ]


def _tensors(values: NDArray[np.floating[Any]], there: NDArray[np.bool_]) -> pa.Array:
    flat = values.reshape(len(there), -1)
    filled = np.where(there[:, None], flat, 0).astype(flat.dtype)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(filled.reshape(-1)), flat.shape[1], mask=pa.array(~there)
    )


def _lists(
    values: NDArray[np.floating[Any]], lengths: NDArray[np.int64], there: NDArray[np.bool_]
) -> pa.Array:
    kept = np.where(there, lengths, 0)
    flat = values[np.arange(values.shape[1]) < kept[:, None]]
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=pa.array(~there))


def results_of(plan: Plan, table: pa.Table) -> Results:
    """The results that `results_table` made this table of, as far as it holds them; the table has
    its schema.
    """
    columns = {name: table[name].combine_chunks() for name in COLUMNS}
    attributed = iter([column.combine_chunks() for column in table.columns[len(COLUMNS) :]])
    values = [_values(shape, attributed) for shape in plan.inputs]
    numbers = {name: _numpy(columns[name]) for name in NUMBERS}
    rows = RowResults(
        status=np.array([RowStatus(s) for s in columns["status"].to_pylist()], object),
        reason=np.array(columns["reason"].to_pylist(), object),
        attributions=tuple(v for v, _ in values),
        **numbers,
    )
    return Results(
        row_id=columns["row_id"],
        target=columns["target"],
        rows=rows,
        lengths=tuple(n for _, n in values),
    )


def _values(
    shape: InputShape, columns: Iterator[pa.Array]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64] | None]:
    """The attributions of one input, which takes its columns, and their lengths; NaN or nothing
    where they are null.
    """
    if shape.named:
        return np.stack([_numpy(next(columns)) for _ in shape.columns], 1), None
    lists = next(columns)
    there, flat = _numpy(lists.is_valid()), _numpy(lists.flatten())
    if not shape.varying:
        full = np.full((len(lists), *shape.shape), np.nan, flat.dtype)
        full[there] = flat.reshape(-1, *shape.shape)
        return full, None
    lengths = np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)
    padded = np.zeros((len(lists), int(lengths.max(initial=0))), flat.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return padded, lengths


def _numpy(column: pa.Array) -> NDArray[Any]:
    """NaN stands where floats are null."""
    return np.asarray(column.to_numpy(zero_copy_only=False))
