"""Arrow values as Python's, of types that only a later Arrow knows too."""

from __future__ import annotations

import pyarrow as pa


def plain_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Each value as Python has it; a date or time that Python cannot hold is the integer that Arrow
    stores.
    """
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return [plain_value(value) for value in column]


def plain_value(value: pa.Scalar) -> object:
    """A date of the year 10000 is no date to Python, nor is a time in a zone that it does
    not know.
    """
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(value.type):
            raise
        return value.value
