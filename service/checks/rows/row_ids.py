"""The ids of the rows are those of the source, in its order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.errors import DataError, IntegrityError
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked, reason
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.data.reading import read_slices, row_ids
from integrand.workers.data.values import plain_value


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    if not shard.has_planned_rows:
        return
    seen, times = shard.results.row_id, shard.plan.targets_per_row
    try:
        source = _source_ids(shard)
    except (IntegrityError, DataError) as error:
        yield Unchecked("row ids against the source", reason(error))
        return
    expected = source.cast(seen.type).take(np.repeat(np.arange(shard.planned.rows), times))
    wrong = np.flatnonzero(_differ(seen, expected))
    if len(wrong):
        row = int(wrong[0])
        yield Finding(
            shard.where,
            f"row_id {plain_value(expected[row])!r} in row {row}, as in the source",
            f"{plain_value(seen[row])!r}; {len(wrong)} rows differ",
        )


CHECK = Check("row_ids", "row ids are those of the source, in its order", _remarks)


def _source_ids(shard: ShardEvidence) -> pa.Array:
    files, slices = shard.plan.files, shard.planned.slices
    column = shard.plan.spec.source.row_id
    if column is None:
        return row_ids(files, slices, pa.table({}), None)
    source = read_slices(shard.folder.store, files, slices, [column])
    return row_ids(files, slices, source, column)


def _differ(seen: pa.Array, expected: pa.Array) -> NDArray[np.bool_]:
    same = pc.fill_null(pc.equal(seen, expected), False)
    both = pc.and_(pc.is_null(seen), pc.is_null(expected))
    return ~np.asarray(pc.or_(same, both))
