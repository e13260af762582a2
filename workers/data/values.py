"""Arrow values as Python's, of types that only a later Arrow knows too; types by their names."""

from __future__ import annotations

import re

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


def as_texts(column: pa.Array) -> list[str]:
    """Each value as text: bytes as hexadecimal digits, null as nothing."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        return [text or "" for text in column.cast(pa.large_string()).to_pylist()]
    return [_text(value) for value in plain_values(column)]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return "" if value is None else str(value)


def arrow_type(name: str) -> pa.DataType | None:
    """The type that a plan names; None for those without a form of their own, which all files must
    share anyway.
    """
    if zoned := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name):
        return pa.timestamp(zoned[1], zoned[2])
    if decimal := re.fullmatch(r"decimal(128|256)\((\d+), (-?\d+)\)", name):
        return {"128": pa.decimal128, "256": pa.decimal256}[decimal[1]](
            int(decimal[2]), int(decimal[3])
        )
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return None


def widened(schema: pa.Schema) -> pa.Schema:
    """The schema with float32 in the place of float16."""
    for place, field in enumerate(schema):
        wide = _widened(field.type)
        if wide != field.type:
            schema = schema.set(place, field.with_type(wide))
    return schema


def _widened(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_widened(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_widened(kind.value_type)))
    return kind
