"""A finished run folder that a test may spoil: objects rewritten with sound pages, and sidecars
edited.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY
from integrand.schemas.records import Plan, RunManifest, ShardFooter
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import Verification, verify_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import fold, load_plan
from integrand.service.runs.totals import read_committed
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.output import results_of, results_table
from integrand.workers.shards.parquet import checksum, write_parquet
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder

ROWS = 20


@dataclass(frozen=True)
class Finished:
    """A complete run of 20 rows in two shards, two targets each: row 0 is bad, row 17 failed."""

    job: JobFolder
    run_id: str


@dataclass(frozen=True)
class Tampered:
    """A run folder on local disk that is a test's own."""

    path: Path

    @cached_property
    def plan(self) -> Plan:
        return load_plan(Store(), self.uri)[0]

    @property
    def uri(self) -> Uri:
        return Uri("file", str(self.path))

    def object(self, shard: int) -> Path:
        return self.path / "data" / f"part-{shard:05d}.parquet"

    def table(self, shard: int) -> pa.Table:
        """The rows, without what Parquet adds to their schema."""
        table = pq.read_table(self.object(shard))
        fields = [
            f.with_metadata({k: v for k, v in (f.metadata or {}).items() if k == b"shape"})
            for f in table.schema
        ]
        return table.cast(pa.schema(fields))

    def footer(self, shard: int) -> ShardFooter:
        return ShardFooter.model_validate_json(
            pq.read_metadata(self.object(shard)).metadata[FOOTER_KEY.encode()]
        )

    def write(
        self, shard: int, table: pa.Table, footer: ShardFooter, checked: str | None = None
    ) -> None:
        """Sound pages and a checksum that fits the footer, unless `checked` is another one."""
        stored = footer.model_dump_json()
        metadata = {FOOTER_KEY: stored, CHECKSUM_KEY: checked or checksum(stored.encode())}
        self.object(shard).write_bytes(write_parquet(table, metadata, 1024))

    def set(self, shard: int, column: str, row: int, value: object) -> None:
        """One value of an object, whose footer stays as it was."""
        self.write(shard, replaced(self.table(shard), column, row, value), self.footer(shard))

    def recount(self, shard: int, table: pa.Table) -> None:
        """Rows with a footer that tells of them truly."""
        old = self.footer(shard)
        results = results_of(self.plan, table)
        made = shard_footer(
            self.plan,
            old.plan_sha256,
            self.plan.shards[shard],
            results,
            seconds=old.seconds,
            versions=old.versions,
            same_build=True,
        )
        self.write(shard, results_table(self.plan, results), made)

    def refold(self) -> None:
        """A manifest of the footers as they are now."""
        plan, plan_sha256 = load_plan(Store(), self.uri)
        stored = RunManifest.model_validate_json((self.path / "_manifest.json").read_bytes())
        committed = read_committed(RunFolder(Store(), self.uri, plan, plan_sha256))
        folded = fold(
            plan, plan_sha256, committed, created=stored.created, logical_date=stored.logical_date
        )
        (self.path / "_manifest.json").write_text(folded.model_dump_json())

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """A JSON file below the run folder or beside it, its object changed in place."""
        place = self.path / name
        fields = json.loads(place.read_bytes())
        change(fields)
        place.write_text(json.dumps(fields))


def verify_alone(run: Tampered) -> Verification:
    """All checks that load no model."""
    return verify_run(run.uri, sample=0)


def findings_text(found: Verification) -> str:
    return "\n".join(map(str, found.findings))


def replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    """The table with one other value."""
    index, field = table.column_names.index(column), table.schema.field(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(index, field, pa.array(values, field.type))


def parquet_bytes(table: pa.Table) -> bytes:
    """Rows of somebody else."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
