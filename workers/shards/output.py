"""Results as the output table, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.records import Plan
from integrand.schemas.specs.output import TopKStore
from integrand.schemas.specs.targets import Place
from integrand.schemas.tables import (
    COLUMNS,
    OPTIONAL_TYPES,
    RowStatus,
    output_schema,
)
from integrand.workers.data.blocks import Block, blocks_of
from integrand.workers.engine.row_results import NUMBERS, Floats, RowResults
from integrand.workers.shards.layouts import Layout, Lengths, Values, layout_of, to_numpy
from integrand.workers.shards.results import Results

_OF_DRAWS = ("baseline_spread", "draws")
AGREE = "reasons_agree"
REASON_COLUMNS = ("reasons", "reasons_status")
TOKEN_COLUMNS = (
    "token_end",
    "token_special",
    "token_start",
    "token_word",
    "tokens",
    "tokens_left_out",
    "words",
)
ROUNDED = ("attr", "group")
"""Roles of blocks that are stored in `output.dtype`."""
ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


def stored_dtype(plan: Plan) -> str:
    """Of the attributions in the output table."""
    return plan.spec.output.dtype or plan.numerics.precision


def blocks(plan: Plan) -> tuple[Block, ...]:
    """What is stored side by side."""
    return blocks_of(plan.spec, plan.inputs)


def layouts(plan: Plan) -> list[Layout]:
    """How each block stands in the output table."""
    store = plan.spec.output.store
    return [layout_of(block.shape, store, block.role) for block in blocks(plan)]


def block_dtype(plan: Plan, block: Block) -> str:
    """Of a block in the output table: what is beside attributions is not rounded."""
    return stored_dtype(plan) if block.role in ROUNDED else plan.numerics.precision


def attributed(plan: Plan) -> int:
    """How many of the blocks hold attributions; these come first."""
    return sum(block.role == "attr" for block in blocks(plan))


def attribution_fields(plan: Plan) -> list[pa.Field]:
    """Output fields of every block, in order."""
    fields = []
    for block, layout in zip(blocks(plan), layouts(plan), strict=True):
        fields += layout.fields(ARROW_TYPES[block_dtype(plan, block)])
    return fields


def optional_columns(plan: Plan) -> tuple[str, ...]:
    """Names of the columns that this run has behind its attributions, sorted."""
    several, reasons = plan.spec.draws > 1, plan.spec.output.reasons is not None
    names: tuple[str, ...] = _OF_DRAWS if several else ()
    names += REASON_COLUMNS if reasons else ()
    names += TOKEN_COLUMNS if plan.spec.texts else ()
    return tuple(sorted((*names, AGREE) if several and reasons else names))


def planned_schema(plan: Plan, row_id: pa.DataType) -> pa.Schema:
    """The columns of every object of a run, with this type of row id."""
    places = plan.spec.target.places(plan.numerics.outputs) or ((0,) * plan.spec.target.depth,)
    target = repeated_targets(places, len(places)).type
    return output_schema(row_id, target, attribution_fields(plan), optional_columns(plan))


def results_table(plan: Plan, results: Results) -> pa.Table:
    """The output table of a shard, columns as documented in `schemas.tables`."""
    rows = results.rows
    made = {name: _numbers(getattr(rows, name)) for name in NUMBERS}
    made["row_id"] = results.row_id
    made["target"] = results.target
    made["status"] = pa.array([str(status) for status in rows.status])
    made["reason"] = pa.array(rows.reason.tolist(), pa.string())
    sums = attribution_sums(plan, results) if results.sums is None else results.sums
    made["attribution_sum"] = _numbers(sums)
    columns = [made[name] for name in COLUMNS]
    there = rows.attributed
    for layout, values, lengths in zip_longest(layouts(plan), rows.attributions, results.lengths):
        known = there
        if layout.role == "mean_gradient":  # x = x' has none
            known = there & ~np.isnan(values.reshape(len(values), -1)).any(1)
        columns += layout.columns(values, lengths, known)
    optional = optional_columns(plan)
    columns += [_optional(rows, name) for name in optional]
    fields = attribution_fields(plan)
    schema = output_schema(results.row_id.type, results.target.type, fields, optional)
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
    of_one_row = np.array(places)
    source_rows = rows // len(places)
    table = np.tile(of_one_row, (source_rows, 1))
    return target_array(table, np.ones(rows, bool))


def results_of(plan: Plan, table: pa.Table) -> Results:
    """The results that `results_table` made this table of, as far as it holds them; the table has
    its schema.
    """
    columns = {name: table[name].combine_chunks() for name in COLUMNS}
    optional = {name: _stored(table[name].combine_chunks()) for name in optional_columns(plan)}
    behind = table.columns[len(COLUMNS) :]
    attributed = iter([column.combine_chunks() for column in behind])
    values = [layout.read(attributed) for layout in layouts(plan)]
    numbers = {name: to_numpy(columns[name]) for name in NUMBERS}
    statuses = [RowStatus(s) for s in columns["status"].to_pylist()]
    rows = RowResults(
        status=np.array(statuses, object),
        reason=np.array(columns["reason"].to_pylist(), object),
        attributions=tuple(v for v, _ in values),
        optional=MappingProxyType(optional),
        **numbers,
    )
    return Results(
        row_id=columns["row_id"],
        target=columns["target"],
        rows=rows,
        lengths=tuple(n for _, n in values),
        sums=to_numpy(columns["attribution_sum"]) if loses(plan) else None,
    )


def loses(plan: Plan) -> bool:
    """Whether less is stored than was computed."""
    return (
        isinstance(plan.spec.output.store, TopKStore)
        or stored_dtype(plan) != plan.numerics.precision
    )


def attribution_sums(plan: Plan, results: Results) -> Floats:
    """Σ attributions of each row, of all inputs, in float64."""
    first = attributed(plan)
    pairs = zip_longest(results.rows.attributions[:first], results.lengths[:first])
    by_input = [input_sums(values, lengths) for values, lengths in pairs]
    return np.asarray(np.sum(by_input, axis=0))


def input_sums(values: Values, lengths: Lengths | None) -> Floats:
    """Of one input. Of varying rows the exact sum: numpy's rounds by the width of all."""
    if lengths is None:
        flat = values.reshape(len(values), -1)
        return np.asarray(flat.astype(np.float64).sum(1))
    sums = np.full(len(values), np.nan)
    for row, own in enumerate(lengths):
        if own:
            sums[row] = math.fsum(values[row, :own])
    return sums


def _optional(rows: RowResults, name: str) -> pa.Array:
    values = rows.optional[name]
    if values.dtype == object:
        return pa.array(values.tolist(), OPTIONAL_TYPES[name])
    return _numbers(values)


def _stored(column: pa.Array) -> NDArray[Any]:
    """An optional column as it was before it was written: NaN or None where it is null."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return to_numpy(column)
    found = np.empty(len(column), object)
    for row, value in enumerate(column.to_pylist()):  # at once, lists of one length are an axis
        found[row] = value
    return found


def _numbers(values: NDArray[Any]) -> pa.Array:
    """Null where a float is NaN."""
    absent = np.isnan(values) if values.dtype.kind == "f" else None
    return pa.array(values, mask=absent)
