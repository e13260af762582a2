"""What lies below `data/` and is no planned shard: readers of the folder would take its rows."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark


def _remarks(run: Evidence) -> Iterator[Remark]:
    for entry in run.listing.foreign:
        yield Finding(
            str(entry.uri),
            "only the planned shards below data/",
            entry.uri.name,
            "move it away",
        )


CHECK = Check("foreign", "nothing but planned shards lies below data/", _remarks)
