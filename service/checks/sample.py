"""A few rows of a run, attributed again."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Remark


def _remarks(run: Evidence) -> Iterator[Remark]:
    if run.again:
        yield from run.again.remarks


CHECK = Check("sample", "rows attributed again come out as they are stored", _remarks)
