"""Columns that the `key=value` folders of a file's path spell out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

from integrand.workers.data.columns import BAD

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?[0-9]{1,19}")


def hive_values(path: str) -> dict[str, str | None]:
    """Keys and percent-decoded values of the `key=value` folders in a relative path."""
    values: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        if "=" not in folder[1:]:
            continue
        key, value = folder.split("=", 1)
        values[unquote(key)] = None if value == _HIVE_NULL else unquote(value)
    return values


def partition_columns(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """Columns that the folders spell out, `_bad` apart: int64 if every file's value is an integer,
    else string.
    """
    seen: dict[str, list[str]] = {}
    folders = {path.rsplit("/", 1)[0] + "/" for path in paths if "/" in path}
    for folder in folders:
        for key, value in hive_values(folder).items():
            texts = seen.setdefault(key, [])
            if value is not None:
                texts.append(value)
    seen.pop(BAD, None)
    types: dict[str, pa.DataType] = {}
    for key, texts in sorted(seen.items()):
        integers = texts and all(map(_is_int64, texts))
        types[key] = pa.int64() if integers else pa.string()
    return types


def with_partitions(table: pa.Table, path: str, types: dict[str, pa.DataType]) -> pa.Table:
    """The table with the partition columns that it does not hold itself, one value throughout."""
    values = hive_values(path)
    lacking = [name for name in types if name not in table.column_names]
    for name in lacking:
        text = pa.array([values.get(name)], pa.string())
        value = text.cast(types[name])[0]
        column = pa.repeat(value, table.num_rows)
        table = table.append_column(name, column)
    return table


def _is_int64(text: str) -> bool:
    if _INTEGER.fullmatch(text) is None:
        return False
    return -(2**63) <= int(text) < 2**63
