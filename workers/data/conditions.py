"""Rows for which an expression of SQL is true: read by DuckDB, which sees nothing but them."""

from __future__ import annotations

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
