"""The dispatch loop: tasks to idle workers, outcomes to the ledger, until each is done or given
up.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import Attempt, JobPlan, Quarantined, TaskFooter, dump
from integrand.schemas.tasks import Task, Trial
from integrand.schemas.uris import Uri
from integrand.service.pools.base import Outcome, Pool
from integrand.service.pools.failures import Failure
from integrand.service.progress import Tally
from integrand.service.running.bisection import Range, next_trial
from integrand.service.running.kind import JobKind, OneTotals
from integrand.service.runs.footers import Held
from integrand.service.runs.manifest import read_attempts, read_quarantined
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Store

UNCHARGED_IN_A_ROW = 5
"""Storage faults or preemptions of one shard, one after another, after which the run ends as
retryable.
"""

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

    def record(self, task: Task, failure: Failure, *, alone: bool, beside: bool) -> Attempt:
        """Store one failed attempt. Charged is what a task did itself, and memory that ran out
        with nothing beside.
        """
        charged = failure.kind in ("raised", "killed_worker", "stalled") or (
            failure.kind == "memory" and not beside
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
        return known[released[-1] if released else 0 :]

    def condemned(self, task: Task) -> bool:
        """Not to be tried whole again: raised as often as allowed, or lost while it ran alone."""
        known = [a for a in self.counted(task) if a.rows is None]
        lost_alone = any(a.alone and a.charged and a.outcome in UNEXPLAINED for a in known)
        return (
            lost_alone
            or sum(a.outcome == "raised" for a in known) >= self.plan.spec.compute.attempts
        )

    def suspect(self, task: Task) -> bool:
        """To be tried alone, as the last of its attempts: its worker was lost twice beside other
        work.
        """
        losses = sum(a.outcome in UNEXPLAINED for a in self.counted(task))
        return losses >= max(1, min(2, self.plan.spec.compute.attempts - 1)) or self.condemned(task)

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


@dataclass
class Dispatch(Generic[OneTotals]):
    """One driver's pass over the missing tasks of a run."""

    kind: JobKind[Any, OneTotals, Any]
    pool: Pool
    plan: JobPlan[Any]
    ledger: Ledger
    stored: Held[OneTotals]
    on_change: Callable[[Tally], None]
    on_commit: Callable[[str], None] = lambda shard: None
    beat_s: float = 0.5

    def __post_init__(self) -> None:
        self.done, self.stats = set(self.stored.shards), self.stored.stats
        self.rows_here, self.rows_planned = 0, self.plan.rows
        waiting = [
            s
            for s in self.plan.shards
            if s.id not in self.done and s.id not in self.ledger.quarantined
        ]
        self.waiting: deque[Task] = deque(t for t in waiting if not self.ledger.suspect(t))
        self.suspects: deque[Task] = deque(t for t in waiting if self.ledger.suspect(t))
        self.survived: defaultdict[str, set[Range]] = defaultdict(set)
        self.in_flight: dict[int, Task] = {}
        # workers whose attempt had another beside it at any time
        self.accompanied: set[int] = set()
        # faults in a row of each shard, as this driver saw them
        self.uncharged: Counter[str] = Counter()
        self.alone: int | None = None  # the worker whose fresh actor is for a suspect alone
        self.started: float | None = None

    def run(self) -> Set[str]:
        """Ids of every shard that is done. Raises what ends a run; resume picks up from storage."""
        while (
            self.waiting or self.suspects or self.in_flight
        ) and not self._too_many_quarantined():
            self._dispatch()
            for outcome in self.pool.wait(self.beat_s):
                self._settle(outcome)
            self.on_change(self.tally())
        return self.done

    def _dispatch(self) -> None:
        for worker in self.pool.idle():
            if self.waiting:
                task = self.waiting.popleft()
                self._submit(worker, task, self.waiting[0] if self.waiting else None)
            elif self.suspects and not self.in_flight:
                if self.alone in (None, worker):
                    self._try_alone(worker)
                else:  # it may hold the place that the fresh worker waits for
                    self.pool.retire(worker)
            elif self.in_flight and not self.suspects:
                self.pool.retire(worker)

    def _submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        # rows/s and ETA leave out how long workers took to start
        self.started = self.started or time.monotonic()
        self.in_flight[worker] = task
        self.accompanied |= set(self.in_flight) if len(self.in_flight) > 1 else set()
        self.pool.submit(worker, task, prefetch)
        reach("shard.dispatched")

    def _try_alone(self, worker: int) -> None:
        """A suspect runs on a fresh worker with nothing beside it: only a loss here condemns it.

        A condemned one runs in parts, which need no fresh worker each: one that was lost has been
        replaced.
        """
        if self.alone is None and not self.ledger.condemned(self.suspects[0]):
            self.alone = worker
            self.pool.replace(worker)
        else:
            self.alone = worker
            self._submit_alone(worker, self.suspects.popleft())

    def _submit_alone(self, worker: int, task: Task) -> None:
        if not self.ledger.condemned(task):
            return self._submit(worker, task, None)
        trial = next_trial(task, self.ledger.counted(task), self.survived[task.id])
        if trial is not None:
            return self._submit(worker, trial, None)
        self.alone = None
        return self.ledger.quarantine(task)

    def _settle(self, outcome: Outcome) -> None:
        task = self.in_flight.pop(outcome.worker)
        alone, self.alone = self.alone is not None, None
        beside = outcome.worker in self.accompanied
        self.accompanied.discard(outcome.worker)
        if outcome.result is None:  # a trial that lost nobody
            assert isinstance(task, Trial)
            assert task.only is not None
            self.survived[task.id].add(task.only)
            self.suspects.appendleft(task)
            return
        if not isinstance(outcome.result, Failure):
            self._count(task, outcome.result)
            reach("shard.settled")
            return
        failure = outcome.result
        if isinstance(failure.error, IntegrityError):
            raise failure.error
        attempt = self.ledger.record(task, failure, alone=alone, beside=beside)
        self.uncharged[task.id] = 0 if attempt.charged else self.uncharged[task.id] + 1
        self._requeue(task, failure)

    def _requeue(self, task: Task, failure: Failure) -> None:
        if self._hopeless(task):
            self.ledger.quarantine(task)
        elif self.uncharged[task.id] >= UNCHARGED_IN_A_ROW:
            raise TransientError(
                f"shard {task.id}",
                expected="storage and nodes that last for one shard",
                seen=f"{UNCHARGED_IN_A_ROW} faults in a row, the last: {failure.reason}",
                next_step="run the same command again: it resumes",
            )
        elif self.ledger.condemned(task):
            self.suspects.appendleft(task)
        elif self.ledger.suspect(task):
            self.suspects.append(task)
        else:
            self.waiting.append(task)

    def _hopeless(self, task: Task) -> bool:
        """Lost without the rows that are to blame, or unfit even to search for them."""
        if not self.ledger.condemned(task):
            return False
        known = self.ledger.counted(task)
        without = isinstance(task, Trial) and task.only is None and known[-1].charged
        return without or next_trial(task, known, self.survived[task.id]) is None

    def _too_many_quarantined(self) -> bool:
        most = self.plan.spec.limits.max_quarantined
        return most is not None and len(self.ledger.quarantined.keys() - self.done) > most

    def tally(self) -> Tally:
        return Tally(
            shards_planned=len(self.plan.shards),
            rows_planned=self.rows_planned,
            shards_done=len(self.done),
            rows_done=self.stats.rows_in,
            rows_here=self.rows_here,
            quarantined=len(self.ledger.quarantined.keys() - self.done),
            seconds=time.monotonic() - self.started if self.started else 0.0,
            highlights=self.kind.highlights(self.stats),
            searched=next((s.id for s in self.in_flight.values() if isinstance(s, Trial)), None),
        )

    def _count(self, task: Task, footer: TaskFooter) -> None:
        """Keep what a footer adds up to, and the plan's own id of it: a run may have 100,000."""
        self.done.add(task.id)
        self.stats = self.kind.add(self.stats, footer)
        self.rows_here += footer.rows_in
        self.on_commit(task.id)


def _now() -> str:
    return datetime.now(UTC).isoformat()
