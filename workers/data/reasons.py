"""Why a row of a source cannot be a row of tensors."""

from __future__ import annotations

from math import isfinite, isnan

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.workers.data.columns import BAD
from integrand.workers.data.gathering import Source, is_readable, storage_of

Reasons = list[str | None]
"""One for each row, None for a clean one; the first that is found stays."""


def reasons_of_ingest(table: pa.Table) -> Reasons:
    """Reasons that ingest left, None elsewhere. Parquet does not enforce that strings are UTF-8."""
    if BAD not in table.column_names:
        return [None] * table.num_rows
    reasons: Reasons = []
    for text in table.column(BAD).cast(pa.large_binary()).to_pylist():
        reasons.append(None if text is None else text.decode(errors="backslashreplace"))
    return reasons


def judge(
    table: pa.Table, source: Source, wrong: NDArray[np.bool_], expected: str, reasons: Reasons
) -> None:
    """Give every row with a wrong value, and no reason yet, its reason: the first wrong value."""
    if not wrong.any():
        return
    wrong = wrong.reshape(len(reasons), -1)
    columns = {name: storage_of(table.column(name)) for name in source.columns}
    for i in np.flatnonzero(wrong.any(axis=1)):
        if reasons[i] is not None:
            continue
        position = int(wrong[i].argmax())
        name = source.columns[0 if source.listed else position]
        column = columns[name]
        sizes = source.sizes(column.type)
        place: tuple[int, ...] = ()
        if sizes:
            place = tuple(map(int, np.unravel_index(position, sizes)))
        reasons[i] = _reason(column, int(i), name, sizes, place, expected)


def _reason(
    column: pa.ChunkedArray,
    row: int,
    name: str,
    sizes: tuple[int, ...],
    place: tuple[int, ...],
    expected: str,
) -> str:
    if not is_readable(column.type, sizes) and not pa.types.is_null(column.type):
        return f"{name}: expected {'lists of ' if sizes else ''}numbers, seen {column.type}"
    value = column[row]
    misshapen = _misshapen(value, sizes, name)
    if misshapen:
        return misshapen
    for k in place:
        value = value.values[k]
        name += f"[{k}]"
    return value_reason(value, name, expected)


def value_reason(value: pa.Scalar, name: str, expected: str) -> str:
    """Why this value of a column, named with its place, will not do."""
    if not value.is_valid:
        return f"{name} is null"
    number = float(value.as_py())
    text = "NaN" if isnan(number) else str(value.as_py())
    if not isfinite(number):
        return f"{name} is {text}"
    return f"{name} is {text}: {expected}"


def _misshapen(value: pa.Scalar, sizes: tuple[int, ...], name: str) -> str | None:
    """The first list that is null or of the wrong length, without a look at the numbers."""
    if not sizes:
        return None
    if not value.is_valid:
        return f"{name} is null"
    items = value.values
    if len(items) != sizes[0]:
        return f"{name} has {len(items)} values, expected {sizes[0]}"
    if len(sizes) == 1:
        return None
    for k in range(len(items)):
        misshapen = _misshapen(items[k], sizes[1:], f"{name}[{k}]")
        if misshapen:
            return misshapen
    return None
