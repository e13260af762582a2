"""Shards that were given up: each record is of a planned shard."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark, finding_of


def _remarks(run: Evidence) -> Iterator[Remark]:
    if run.quarantine.error:
        yield finding_of(run.quarantine.error)
    planned = run.folder.shards
    for record in run.quarantine.records:
        if record.shard in planned and planned[record.shard].rows == record.rows:
            continue
        yield Finding(
            f"{run.folder.uri}/_quarantine",
            "planned shards and their rows",
            f"shard {record.shard} of {record.rows} rows",
            "delete the record",
        )


CHECK = Check("quarantine", "shards that were given up are planned ones", _remarks)
