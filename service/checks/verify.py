"""A run folder held against itself: plan, objects, footers, manifest and pointer, and a few rows
attributed again. What is asked of it stands in `table.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from integrand.schemas.errors import IntegrityError
from integrand.schemas.uris import Uri
from integrand.service.checks.evidence import Evidence, read_evidence
from integrand.service.checks.findings import Finding, Unchecked, finding_of
from integrand.service.checks.table import CHECKS
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import parse_plan, read_plan
from integrand.workers.storage.store import Access, Store

SAMPLE = 16
State = Literal["complete", "partial", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found. It holds if there is no finding; `unchecked` may hold or not.

    shards, rows   whose objects were read, and their output rows
    sampled        rows that were attributed again, `bitwise` of them compared in every bit
    """

    run: str
    state: State
    shards: int = 0
    rows: int = 0
    sampled: int = 0
    bitwise: int = 0
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    @property
    def holds(self) -> bool:
        return not self.findings


def verify_run(
    uri: str | os.PathLike[str] | Uri,
    *,
    name: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
) -> Verification:
    """Check a run folder against what it says of itself. Raises SpecError where there is none, else
    reports.

    name      which job, where `uri` is an output root that holds several
    sample    input rows to attribute again, drawn with `seed`; 0: none, and nothing is loaded
    trusted   module prefixes whose model code may run here
    """
    store = Store(access)
    run = resolve_run(uri, store=store, name=name)
    stored = read_plan(store, run)
    try:
        plan, plan_sha256 = parse_plan(stored, run)
    except IntegrityError as error:
        return Verification(
            run=str(run),
            state="unfinished",
            findings=(finding_of(error),),
            unchecked=(Unchecked("everything else", "the plan cannot be read"),),
        )
    folder = RunFolder(store, run, plan, plan_sha256)
    return _verified(read_evidence(folder, sample, seed, trusted))


def _verified(run: Evidence) -> Verification:
    remarks = [remark for check in CHECKS for remark in check.remarks(run)]
    unchecked = [r for r in remarks if isinstance(r, Unchecked)]
    return Verification(
        run=str(run.folder.uri),
        state=_state(run),
        shards=len(run.counted.shards),
        rows=run.counted.stats.rows_out,
        sampled=run.again.rows if run.again else 0,
        bitwise=run.again.bitwise if run.again else 0,
        findings=tuple(r for r in remarks if isinstance(r, Finding)),
        unchecked=tuple(dict.fromkeys(unchecked)),
    )


def _state(run: Evidence) -> State:
    if run.manifests.complete:
        return "complete"
    return "partial" if run.manifests.partial else "unfinished"
