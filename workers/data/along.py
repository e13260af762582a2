"""Lists beside those of ids, as long as they are: types of tokens, masks, positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.specs.arguments import (
    ForwardArg,
)
from integrand.workers.data.gathering import NO_INTEGER, floats_of, integers_of
from integrand.workers.data.inputs.ids import PADDING, list_lengths, lists_of
from integrand.workers.data.reasons import Reasons, value_reason


def read_along(
    table: pa.Table, arg: ForwardArg, ids: NDArray[np.int64], reasons: Reasons
) -> NDArray[Any]:
    """`[rows, length]` of a column of lists that are as long as the `ids` of their rows, filled up
    in the same places. What is wrong with a row goes into `reasons`, unless there is one.
    """
    name = str(arg.column)
    lists = lists_of(table, name)
    lengths, expected = list_lengths(lists), (ids != PADDING).sum(1)
    whole = arg.dtype in ("int64", "bool")
    flat = integers_of(lists.flatten()) if whole else floats_of(lists.flatten(), arg.dtype)
    wrong = _wrong(flat, arg)
    values = np.full(ids.shape, arg.fill, arg.dtype)
    ends = np.cumsum(lengths)
    for row, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
        if reasons[row] is not None:
            continue
        first = end - length
        if length != expected[row]:
            seen = f"{length} values" if lists[row].is_valid else "no list"
            reasons[row] = f"{name} has {seen}, expected {expected[row]}, one for each id"
        elif wrong[first:end].any():
            place = int(wrong[first:end].argmax())
            value = lists[row].values[place]
            reasons[row] = value_reason(value, f"{name}[{place}]", _EXPECTED[arg.dtype])
        else:
            values[row, :length] = flat[first:end]
    return values


_EXPECTED = {
    "float32": "expected a number",
    "float64": "expected a number",
    "int64": "expected an integer",
    "bool": "expected 0 or 1",
}


def _wrong(flat: NDArray[Any], arg: ForwardArg) -> NDArray[np.bool_]:
    """Which values are none of the argument's dtype."""
    if arg.dtype == "bool":
        return np.asarray((flat != 0) & (flat != 1))
    return np.asarray(flat == NO_INTEGER if arg.dtype == "int64" else np.isnan(flat))
