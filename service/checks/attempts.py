"""Records of failed attempts: one that cannot be read would end the next driver."""

from __future__ import annotations

from collections.abc import Iterator

from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Remark, finding_of


def _remarks(run: Evidence) -> Iterator[Remark]:
    if run.releases.error:
        yield finding_of(run.releases.error)


CHECK = Check("attempts", "the records of failed attempts can be read", _remarks)
