"""Attempts and quarantine of a run, durable in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from integrand.schemas.record import dump
from integrand.schemas.records import (
    JobPlan,
    Quarantined,
)
from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.schemas.tasks import Task, Trial
from integrand.schemas.uris import Uri
from integrand.service.pools.failures import Failure
from integrand.service.runs.manifest import read_attempts, read_quarantined
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Store

UNEXPLAINED = ("killed_worker", "stalled", "memory")


@dataclass
class Ledger:
    """Attempts and quarantine of a run: durable in the run folder, so that they outlive the
    driver.
    """

    store: Store
    run: Uri
    plan: JobPlan[Any]
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    quarantined: dict[str, Quarantined] = field(default_factory=dict)

    def record(self, task: Task, failure: Failure, *, alone: bool, accompanied: bool) -> Attempt:
        """Store one failed attempt. Charged is what a task did itself, and memory that ran out
        with nothing beside.
        """
        charged = failure.kind in ("raised", "killed_worker", "stalled") or (
            failure.kind == "memory" and not accompanied
        )
        rows = task.only if isinstance(task, Trial) else None
        attempt = Attempt(
            shard=task.id,
            outcome=failure.kind,
            rows=rows,
            charged=charged,
            alone=alone,
            reason=failure.reason,
            detail=failure.detail,
            node=failure.node,
            at=_now(),
        )
        self._append(attempt)
        reach("attempt.recorded")
        return attempt

    def release(self, shard: str) -> None:
        """Take a shard out of quarantine: it starts anew, and its attempts until now count
        no more.
        """
        self._append(
            Attempt(
                shard=shard,
                outcome="released",
                charged=False,
                alone=False,
                reason="retry-quarantined",
                detail="",
                node="",
                at=_now(),
            )
        )
        self.store.delete(self.run.child(f"_quarantine/{shard}.json"))
        del self.quarantined[shard]

    def _append(self, attempt: Attempt) -> None:
        known = self.attempts.setdefault(attempt.shard, [])
        known.append(attempt)
        self._create(f"_attempts/{attempt.shard}", len(known), dump(attempt))

    def _create(self, folder: str, number: int, data: bytes) -> None:
        try:  # names sort as they were written: the ledger is read back by name
            self.store.create(
                self.run.child(f"{folder}/{number:04d}.json"), data, scratch=self.run.child("_tmp")
            )
        except FileExistsError:  # another driver counts on the same run: its records stay
            self._create(folder, number + 1, data)

    def counted(self, task: Task) -> list[Attempt]:
        """The attempts at a task since it was last released."""
        known = self.attempts.get(task.id, [])
        released = [n for n, a in enumerate(known, 1) if a.outcome == "released"]
        start = released[-1] if released else 0
        return known[start:]

    def condemned(self, task: Task) -> bool:
        """Not to be tried whole again: raised as often as allowed, or lost while it ran alone."""
        known = [a for a in self.counted(task) if a.rows is None]
        lost_alone = any(a.alone and a.charged and a.outcome in UNEXPLAINED for a in known)
        raised = sum(a.outcome == "raised" for a in known)
        return lost_alone or raised >= self.plan.spec.compute.attempts

    def suspect(self, task: Task) -> bool:
        """To be tried alone, as the last of its attempts: its worker was lost twice beside other
        work.
        """
        losses = sum(a.outcome in UNEXPLAINED for a in self.counted(task))
        most = max(1, min(2, self.plan.spec.compute.attempts - 1))
        return losses >= most or self.condemned(task)

    def quarantine(self, task: Task) -> None:
        last = self.attempts[task.id][-1]
        entry = Quarantined(
            shard=task.id,
            rows=task.rows,
            attempts=len(self.attempts[task.id]),
            reason=last.reason,
            detail=last.detail,
            node=last.node,
        )
        self.quarantined[task.id] = entry
        self.store.replace(self.run.child(f"_quarantine/{task.id}.json"), dump(entry))
        reach("shard.quarantined")


def read_ledger(store: Store, run: Uri, plan: JobPlan[Any]) -> Ledger:
    """The ledger as earlier drivers left it."""
    ledger = Ledger(store, run, plan)
    for attempt in read_attempts(store, run):
        ledger.attempts.setdefault(attempt.shard, []).append(attempt)
    ledger.quarantined.update({q.shard: q for q in read_quarantined(store, run)})
    return ledger


def _now() -> str:
    return datetime.now(UTC).isoformat()
