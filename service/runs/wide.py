"""Reasons side by side, a column for each part of each: as spreadsheets and mail merges take
them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from integrand.schemas.tables import REASON

COLUMN = "reasons"
PARTS = tuple(field.name for field in REASON if field.name != "rank")


def reasons_wide(table: pa.Table, k: int) -> pa.Table:
    """The table with `reason_1_code`, `reason_1_feature` … `reason_k_text` in place of its column
    `reasons`; null behind the last reason of a row. A table without that column stays as it is.
    """
    if COLUMN not in table.column_names:
        return table
    lists = pa.concat_arrays(table[COLUMN].cast(pa.list_(REASON)).chunks or [_none()])
    place = table.column_names.index(COLUMN)
    wide = table.remove_column(place)
    for rank in range(k):
        reasons = _of_rank(lists, rank)
        for part in PARTS:
            name = f"reason_{rank + 1}_{part}"
            wide = wide.add_column(place, name, pc.struct_field(reasons, part))
            place += 1
    return wide


def _none() -> pa.Array:
    return pa.array([], pa.list_(REASON))


def _of_rank(lists: pa.ListArray, rank: int) -> pa.StructArray:
    """The reasons of one rank, null where a row has fewer."""
    lengths = np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)
    starts = np.asarray(lists.offsets, np.int64)[:-1]
    places = pa.array(starts + rank, mask=lengths <= rank)
    return lists.values.take(places)
