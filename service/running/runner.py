"""The dispatch loop: tasks to idle workers, outcomes to the ledger, until each is done or given
up.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, Generic

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import JobPlan, TaskFooter
from integrand.schemas.tasks import Task, Trial
from integrand.service.pools.base import Outcome, Pool
from integrand.service.pools.failures import Failure
from integrand.service.progress import Tally
from integrand.service.running.bisection import Range, next_trial
from integrand.service.running.kind import JobKind, OneTotals
from integrand.service.running.ledger import Ledger
from integrand.service.runs.footers import Held
from integrand.workers.failpoints import reach

UNCHARGED_IN_A_ROW = 5
"""Storage faults or preemptions of one shard, one after another, after which the run ends as
retryable.
"""


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
        self.done = set(self.stored.shards)
        self.stats = self.stored.stats
        self.rows_planned = self.plan.rows
        self.rows_here = 0
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
        while self._unfinished() and not self._too_many_quarantined():
            self._dispatch()
            for outcome in self.pool.wait(self.beat_s):
                self._settle(outcome)
            self.on_change(self.tally())
        return self.done

    def _unfinished(self) -> bool:
        return bool(self.waiting or self.suspects or self.in_flight)

    def _dispatch(self) -> None:
        for worker in self.pool.idle():
            if self.waiting:
                task = self.waiting.popleft()
                prefetch = self.waiting[0] if self.waiting else None
                self._submit(worker, task, prefetch)
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
        if len(self.in_flight) > 1:
            self.accompanied |= set(self.in_flight)
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
        alone = self.alone is not None
        self.alone = None
        accompanied = outcome.worker in self.accompanied
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
        attempt = self.ledger.record(task, failure, alone=alone, accompanied=accompanied)
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
        return most is not None and self._quarantined() > most

    def _quarantined(self) -> int:
        """Shards given up that no driver has committed since."""
        return len(self.ledger.quarantined.keys() - self.done)

    def tally(self) -> Tally:
        return Tally(
            shards_planned=len(self.plan.shards),
            rows_planned=self.rows_planned,
            shards_done=len(self.done),
            rows_done=self.stats.rows_in,
            rows_here=self.rows_here,
            quarantined=self._quarantined(),
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
