"""The objects of the shards, each counted again while it was read."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Remark


def _remarks(run: Evidence) -> Iterator[Remark]:
    yield from run.counted.remarks


CHECK = Check("objects", "the rows of each object are what its footer tells of them", _remarks)
