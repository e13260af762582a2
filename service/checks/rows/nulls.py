"""Nulls stand where the status says, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.tables import PLACES, PREFIX, RowStatus
from integrand.service.checks.findings import Check, Finding, Remark
from integrand.service.checks.rows.stored import ShardEvidence

_SILENT = (RowStatus.ok, RowStatus.unchecked)
"""Statuses without a reason."""


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    table = shard.stored.table
    statuses = shard.results.rows.status
    for name, rows in _misplaced(shard).items():
        if rows.any():
            row = int(rows.argmax())
            status = statuses[row]
            value = table[name][row].as_py()
            yield Finding(
                f"{shard.where} column {name}",
                "null where the status says so, and nowhere else",
                f"status {status} beside {value!r} in row {row}; {int(rows.sum())} rows",
            )


CHECK = Check("nulls", "nulls stand where the status says, and nowhere else", _remarks)


def _misplaced(shard: ShardEvidence) -> dict[str, NDArray[np.bool_]]:
    """By column, the rows whose null is too much or missing."""
    table, rows = shard.stored.table, shard.results.rows
    valid = {name: pc.is_valid(table[name]).to_numpy() for name in table.column_names}
    prefixes = (PREFIX, PLACES, "group.", "spread.")
    attributions = [name for name in table.column_names if name.startswith(prefixes)]
    silent = np.array([status in _SILENT for status in rows.status], bool)
    wrong = {name: valid[name] != rows.attributed for name in attributions}
    for name in [name for name in valid if name.startswith("mean_gradient.")]:
        wrong[name] = valid[name] & ~rows.attributed
    for name in ("attribution_sum", "gap"):
        wrong[name] = valid[name] != rows.attributed
    for name in ("f_input", "f_baseline"):
        wrong[name] = rows.attributed & ~valid[name]
    wrong["reason"] = valid["reason"] == silent
    return wrong
