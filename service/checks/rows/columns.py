"""The columns of an object, and the statuses in them: what its rows are read by."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from integrand.schemas.records import Plan
from integrand.schemas.tables import RowStatus, output_schema
from integrand.service.checks.findings import Check, Finding, Remark, listed
from integrand.service.checks.rows.stored import ShardEvidence
from integrand.workers.shards.output import attribution_fields, optional_columns, repeated_targets


def _remarks(shard: ShardEvidence) -> Iterator[Remark]:
    table = shard.stored.table
    schema = _planned_schema(shard.plan, table.schema)
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


def _planned_schema(plan: Plan, seen: pa.Schema) -> pa.Schema:
    """With the row id as it is seen."""
    places = plan.spec.target.places(plan.numerics.outputs) or ((0,),)
    target = repeated_targets(places, len(places)).type
    row_id = seen.field("row_id").type if "row_id" in seen.names else pa.null()
    return output_schema(row_id, target, attribution_fields(plan), optional_columns(plan))


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
