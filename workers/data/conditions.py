"""Rows for which an expression of SQL is true: read by DuckDB, which sees nothing but them."""

from __future__ import annotations

import re

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError

_POSITION = "_position"
_SANDBOX: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "lock_configuration": True,
}


_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_CALLED = re.compile(r"\b([a-z_]\w*)\s*\(|\b(current_\w+|localtime\w*)\b", re.IGNORECASE)
_CHANGING = "select function_name from duckdb_functions() where stability <> 'CONSISTENT'"


def sandbox() -> duckdb.DuckDBPyConnection:
    """A database without tables, files and settings."""
    return duckdb.connect(config=_SANDBOX)


def matching_rows(
    connection: duckdb.DuckDBPyConnection, table: pa.Table, sql: str, where: str = "where"
) -> NDArray[np.int64]:
    """Numbers of the rows for which the expression is true, ascending. DuckDB parses it as one: it
    cannot end the statement.

    Raises SpecError, which names the place `where`, for an expression that cannot be evaluated.
    """
    numbered = table.append_column(_POSITION, pa.array(np.arange(table.num_rows)))
    try:
        found = (
            connection.from_arrow(numbered).filter(sql).project(_POSITION).fetchnumpy()[_POSITION]
        )
    except duckdb.Error as error:
        raise SpecError(
            where,
            expected='a DuckDB boolean expression, such as error_estimate > 0.01 or "attr.x" > 0',
            seen=str(error).split("\n")[0],
            next_step="quote names that hold a dot",
        ) from None
    return np.sort(np.asarray(found, np.int64))


def check_repeatable(connection: duckdb.DuckDBPyConnection, sql: str, where: str) -> None:
    """SpecError for a condition that may hold today and not tomorrow, such as one of the time or of
    a random number: what is stored must not depend on when it was computed.
    """
    changing = {str(name) for (name,) in connection.sql(_CHANGING).fetchall()}
    for call in _CALLED.finditer(_QUOTED.sub("''", sql)):
        name = (call[1] or call[2]).casefold()
        if name in changing or call[2]:
            raise SpecError(
                where,
                expected="a condition that gives the same answer whenever it is asked",
                seen=f"`{name}`",
                next_step="compare columns with constants",
            )
