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
    for values in map(hive_values, {p.rsplit("/", 1)[0] + "/" for p in paths if "/" in p}):
        for key, value in values.items():
            seen.setdefault(key, []).extend([] if value is None else [value])
    seen.pop(BAD, None)
    return {
        k: pa.int64() if v and all(map(_is_int64, v)) else pa.string()
        for k, v in sorted(seen.items())
    }


def with_partitions(table: pa.Table, path: str, types: dict[str, pa.DataType]) -> pa.Table:
    """The table with the partition columns that it does not hold itself, one value throughout."""
    values = hive_values(path)
    for name in [name for name in types if name not in table.column_names]:
        value = pa.array([values.get(name)], pa.string()).cast(types[name])[0]
        table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table


def _is_int64(text: str) -> bool:
    if _INTEGER.fullmatch(text) is None:
        return False
    return -(2**63) <= int(text) < 2**63
