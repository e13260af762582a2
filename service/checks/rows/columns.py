"""The columns of an object, and the statuses in them: what its rows are read by."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from integrand.schemas.tables import RowStatus
from integrand.service.checks.findings import Check, Finding, Remark, listed
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.output import planned_schema


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    table = shard.stored.table
    seen_ids = table.schema.field("row_id").type if "row_id" in table.column_names else pa.null()
    schema = planned_schema(shard.plan, seen_ids)
    planned = [_described(field) for field in schema]
    planned[0] = f"row_id {shard.plan.row_id_type}"
    seen = [_described(field) for field in table.schema]
    if planned != seen:
        yield _unlike(shard.where, planned, seen)
        return
    statuses = pc.unique(table["status"]).to_pylist()
    unknown = sorted(set(map(str, statuses)) - set(RowStatus))
    if unknown:
        yield Finding(shard.where, f"statuses {', '.join(RowStatus)}", ", ".join(unknown))


CHECK = Check("columns", "columns and statuses are those that a run may have", _remarks)


def _unlike(where: str, planned: list[str], seen: list[str]) -> Finding:
    """The planned columns that are not there, and what is there instead; all where only their
    order is another.
    """
    missing = [field for field in planned if field not in seen]
    instead = [field for field in seen if field not in planned] if missing else seen
    expected = f"columns as planned: {listed(missing or planned)}"
    return Finding(where, expected, listed(instead))


def _described(field: pa.Field) -> str:
    shape = (field.metadata or {}).get(b"shape", b"").decode()
    required = "" if field.nullable else " not null"
    shaped = f" of shape {shape}" if shape else ""
    return f"{field.name} {field.type}{required}{shaped}"
