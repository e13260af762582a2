"""One shard's object as it is stored: what each check of its rows is handed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from integrand.schemas.ids import FOOTER_KEY
from integrand.schemas.records import Plan, Shard, ShardFooter
from integrand.service.runs.footers import RunFolder
from integrand.workers.data.decoding import open_parquet
from integrand.workers.shards.output import results_of
from integrand.workers.shards.results import Results

ARROW_SCHEMA = "ARROW:schema"


@dataclass(frozen=True, eq=False)
class Stored:
    """What the bytes of a shard's object hold, every page of them decoded and its checksum
    compared.
    """

    footer: ShardFooter
    metadata: dict[str, str]
    arrow_schema: str
    group_rows: int
    table: pa.Table


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardEvidence:
    """An object, the shard that is planned there, and the run that it is of; `where` names it."""

    folder: RunFolder
    planned: Shard
    where: str
    data: bytes
    stored: Stored

    @property
    def plan(self) -> Plan:
        return self.folder.plan

    @cached_property
    def results(self) -> Results:
        """The rows as a worker made them. Only of a table with the columns and statuses that are
        planned.
        """
        return results_of(self.plan, self.stored.table)

    @property
    def has_planned_rows(self) -> bool:
        """Whether there are as many as planned: else nothing can be compared with the source."""
        expected = self.planned.rows * self.plan.targets_per_row
        return expected == int(self.stored.table.num_rows)


def decoded(data: bytes) -> Stored:
    """The bytes of a shard's object, its columns of the types that they were written with."""
    with open_parquet(pa.BufferReader(data)) as parquet:
        stored = parquet.metadata.metadata or {}
        group_rows = parquet.metadata.row_group(0).num_rows
        table = parquet.read()
    metadata = {key.decode(): value.decode() for key, value in stored.items()}
    # Parquet has no seconds and no date64: their columns come back as another type than they were
    # written with
    schema = metadata.pop(ARROW_SCHEMA)
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
    footer = ShardFooter.model_validate_json(metadata[FOOTER_KEY])
    return Stored(footer, metadata, schema, group_rows, table.cast(written))
