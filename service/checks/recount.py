"""One shard's object, counted again: every page is read, and its rows must tell what its footer
tells. What is asked of them stands in `rows/table.py`.

Imports neither torch nor ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.records import Shard, ShardFooter
from integrand.service.checks.findings import Finding, Remark
from integrand.service.checks.rows.columns import CHECK as COLUMNS
from integrand.service.checks.rows.footer import CHECK as FOOTER
from integrand.service.checks.rows.stored import ShardEvidence, decoded
from integrand.service.checks.rows.table import ROW_CHECKS
from integrand.service.runs.footers import RunFolder
from integrand.workers.data.row_ids import hash_ids

_BROKEN = (pa.ArrowException, OSError, KeyError, ValueError)
"""What broken bytes end with, in pyarrow too."""


@dataclass(frozen=True, eq=False)
class Recount:
    """What came of one object: its footer if it can be read, a 64-bit hash of each row id, and
    remarks.
    """

    footer: ShardFooter | None
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    remarks: tuple[Remark, ...] = ()


def recount(folder: RunFolder, planned: Shard, where: str, data: bytes) -> Recount:
    """Everything that the bytes of one object of a run tell; `where` names it."""
    try:
        stored = decoded(data)
    except _BROKEN as error:
        seen = f"{type(error).__name__}: {str(error)[:200]}".split("\n")[0]
        broken = Finding(where, "a shard's Parquet object, as it was committed", seen)
        return Recount(None, remarks=(broken,))
    shard = ShardEvidence(folder=folder, planned=planned, where=where, data=data, stored=stored)
    footer = tuple(FOOTER.remarks(shard))
    columns = tuple(COLUMNS.remarks(shard))
    if columns:
        return Recount(stored.footer, remarks=(*footer, *columns))
    rows = tuple(remark for check in ROW_CHECKS for remark in check.remarks(shard))
    ids = shard.results.row_id[:: folder.plan.targets_per_row]
    return Recount(stored.footer, hash_ids(ids), (*footer, *rows))
