"""The tokens and words of output rows, where an input is a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.records import Plan
from integrand.workers.data.tokenizing import Field, left_out_of, tokens_of
from integrand.workers.shards.results import Results

_FIELDS: dict[str, Field] = {
    "token_end": "end",
    "token_special": "special",
    "token_start": "start",
    "token_word": "word",
    "tokens": "tokens",
    "words": "words",
}
"""What an optional column is of a row's tokens."""


def with_token_columns(plan: Plan, source: pa.Table, results: Results) -> Results:
    """Results with the columns of tokens filled in, if the run has these. `source` are the same
    rows, each of which has as many results as targets.
    """
    columns = dict(results.rows.optional)
    for part in plan.spec.texts:
        for name, field in _FIELDS.items():
            lists = tokens_of(source, part.name, field).to_pylist()
            columns[name] = _repeated(lists, plan.targets_per_row)
        left_out = [count or 0 for count in left_out_of(source, part.name)]
        columns["tokens_left_out"] = np.repeat(np.array(left_out, np.int32), plan.targets_per_row)
    filled = replace(results.rows, optional=MappingProxyType(columns))
    return replace(results, rows=filled)


def _repeated(values: Sequence[Any], times: int) -> NDArray[np.object_]:
    """Each value for so many rows, one after the other, in an array of objects."""
    found = np.empty(len(values), object)
    for row, value in enumerate(values):  # at once, lists of one length would be an axis
        found[row] = value
    return found.repeat(times)
