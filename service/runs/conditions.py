"""Which rows and columns of a run are asked for, and why something is no condition on them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from integrand.schemas.errors import SpecError
from integrand.schemas.tables import PREFIX

Filters: TypeAlias = (
    list[tuple[str, str, object]] | list[list[tuple[str, str, object]]] | ds.Expression
)
"""Conditions as pandas.read_parquet takes them (a list is AND, a list of lists OR of ANDs), or an
Arrow expression.
"""


def check_columns(asked: Sequence[str], known: Sequence[str]) -> None:
    """SpecError for a column that is not there, with those that may be meant."""
    for name in [name for name in asked if name not in known]:
        suggestions = " or ".join(f"`{n}`" for n in _near(name, known))
        raise SpecError(
            "columns",
            expected="columns of the output",
            seen=f"`{name}`",
            next_step=f"did you mean {suggestions}?",
        )


def _near(name: str, known: Sequence[str]) -> Sequence[str]:
    bare = {column: column.removeprefix(PREFIX) for column in known}
    near = difflib.get_close_matches(name, list(bare.values()), 1, 0.5)
    alike = [column for column in known if bare[column] in near]
    return alike or known[:10]


def filter_expression(filters: Filters | None) -> ds.Expression | None:
    """Conditions as Arrow takes them. SpecError for what are none."""
    if filters is None or isinstance(filters, ds.Expression):
        return filters
    try:
        return pq.filters_to_expression(filters) if filters else None
    except (ValueError, TypeError, IndexError) as error:
        raise _bad_filter(error) from None


def filtered(table: pa.Table, expression: ds.Expression | None) -> pa.Table:
    """The rows that meet the conditions. SpecError for columns that are not there, or of another
    type.
    """
    try:
        return table if expression is None else table.filter(expression)
    except (pa.ArrowException, TypeError) as error:
        raise _bad_filter(error) from None


def _bad_filter(error: Exception) -> SpecError:
    return SpecError(
        "filters",
        expected="conditions on columns, such as [('status', '==', 'ok')]",
        seen=str(error).split("\n")[0],
        next_step="check names and types of the columns",
    )
