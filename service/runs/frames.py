"""Stored columns as pandas and numpy have them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.tables import PREFIX, feature_names, places_column
from integrand.workers.data.values import plain_values


def pandas_frame(table: pa.Table) -> pd.DataFrame:
    """A table as pandas has it; a column of dates or times beyond that holds what Python has, or
    stored integers.
    """
    beyond = [name for name in table.column_names if not _pandas_has(table[name])]
    frame: pd.DataFrame = table.drop_columns(beyond).to_pandas()
    for name in beyond:
        values = pd.Series(plain_values(table[name]), dtype=object)
        frame.insert(table.column_names.index(name), name, values)
    return frame


def _pandas_has(column: pa.ChunkedArray) -> bool:
    """Of a zone pandas takes any time, and raises when it is looked at: the first and the
    last are.
    """
    kind = column.type
    zoned = pa.types.is_timestamp(kind) and kind.tz
    if not (zoned or pa.types.is_date(kind) or pa.types.is_time(kind)):
        return True
    ends = pc.min_max(column)
    try:
        column.to_pandas()
        pa.array([ends["min"], ends["max"]], kind).to_pandas().map(str)
    except (ValueError, OverflowError, NotImplementedError):
        return False
    return True


def stored_id(row_id: object, kind: pa.DataType) -> pa.Scalar:
    """A row id as it is stored; a date or time may be given as the integer that stores it.
    SpecError for a value that is none.
    """
    kinds = [kind]
    if pa.types.is_temporal(kind):
        kinds.append(pa.int64() if kind.bit_width == 64 else pa.int32())
    for known in kinds:
        with suppress(pa.ArrowException):
            return pa.scalar(row_id).cast(known).cast(kind)
    raise SpecError("row_id", expected=f"a value of type {kind}", seen=repr(row_id))


def largest_rows(table: pa.Table, column: str, k: int) -> pa.Table:
    """The `k` rows of largest |value|, nulls left out; earlier rows first among equals."""
    values = np.abs(table[column].to_numpy().astype(np.float64))
    order = np.argsort(-values, kind="stable")[:k]
    valued = ~np.isnan(values[order])
    return table.take(order[valued])


@dataclass(frozen=True)
class FeatureSums:
    """Sums of attributions and of their absolute values, `[features]`, over so many rows that have
    any.
    """

    total: NDArray[np.float64]
    absolute: NDArray[np.float64]
    rows: int


def feature_sums(table: pa.Table) -> FeatureSums:
    """Of columns of attributions, and of their places where the largest of a row are stored alone:
    all columns of a row have a value, or none.
    """
    there = table.filter(pc.is_valid(table.column(0)))
    if not any(map(places_column, there.schema)):
        values = attribution_matrix(there)
        return FeatureSums(values.sum(0), np.abs(values).sum(0), len(values))
    fields = [field for field in there.schema if field.name.startswith(PREFIX)]
    by_input = [_sums_of_largest(there, field) for field in fields]
    total, absolute = zip(*by_input, strict=True)
    return FeatureSums(np.concatenate(total), np.concatenate(absolute), there.num_rows)


def _sums_of_largest(
    there: pa.Table, field: pa.Field
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of attributions of one input by feature, and of their absolute values."""
    column = there[field.name].combine_chunks()
    features = len(feature_names(field))
    if features == 1:
        values = _features(column)
        return values.sum(0), np.abs(values).sum(0)
    indices = there[places_column(field)].combine_chunks().flatten()
    places = np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)
    kept = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
    total, absolute = np.zeros(features), np.zeros(features)
    np.add.at(total, places, kept)
    np.add.at(absolute, places, np.abs(kept))
    return total, absolute


def attribution_matrix(there: pa.Table) -> NDArray[np.float64]:
    """Attributions `[rows, features]` in float64."""
    blocks = [np.empty((there.num_rows, 0))]
    for column in there.itercolumns():
        blocks.append(_features(column.combine_chunks()))
    return np.concatenate(blocks, axis=1)


def _features(values: pa.Array) -> NDArray[np.float64]:
    """`[rows, features]` of one column. A list of varying length is one feature: its sum."""
    width = 1
    if pa.types.is_fixed_size_list(values.type):
        width, values = values.type.list_size, values.flatten()
    elif pa.types.is_list(values.type):
        values = pa.array([math.fsum(row) for row in values.to_pylist()], pa.float64())
    flat = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    return flat.reshape(-1, width)
