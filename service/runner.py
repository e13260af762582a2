"""The dispatch loop: shards to idle workers, outcomes to the ledger, until every shard is done or given up."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from integrand.schemas.errors import IntegrityError, TransientError
from integrand.schemas.records import Attempt, Plan, Quarantined, Shard, ShardFooter, dump
from integrand.schemas.uris import Uri
from integrand.service.pools import Failure, Outcome, Pool
from integrand.workers.store import Store

UNCHARGED_IN_A_ROW = 5
"""Storage faults or preemptions of one shard, one after another, after which the run ends as retryable."""

UNEXPLAINED = ("killed_worker", "stalled", "memory")


@dataclass(frozen=True)
class Tally:
    """Where a run stands: what was stored before, and what this driver has seen since."""

    shards_planned: int
    rows_planned: int
    shards_done: int
    rows_done: int
    rows_here: int
    evaluations: int
    attributed: int
    converged: int
    quarantined: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        return self.rows_here / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        left = self.rows_planned - self.rows_done
        return left / self.rows_per_second if self.rows_per_second else None


@dataclass
class Ledger:
    """Attempts and quarantine of a run: durable in the run folder, so that they outlive the driver."""

    store: Store
    run: Uri
    plan: Plan
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    quarantined: dict[str, Quarantined] = field(default_factory=dict)

    def record(self, shard: Shard, failure: Failure, *, alone: bool, beside: bool) -> Attempt:
        """Store one failed attempt. What is charged: DESIGN, section Run."""
        charged = failure.kind in ("raised", "killed_worker", "stalled") or (failure.kind == "memory" and not beside)
        attempt = Attempt(shard=shard.id, outcome=failure.kind, charged=charged, alone=alone, reason=failure.reason,
                          detail=failure.detail, node=failure.node, at=datetime.now(UTC).isoformat())  # fmt: skip
        known = self.attempts.setdefault(shard.id, [])
        known.append(attempt)
        self._create(f"_attempts/{shard.id}", len(known), dump(attempt))
        return attempt

    def _create(self, folder: str, number: int, data: bytes) -> None:
        try:  # names sort as they were written: the ledger is read back by name
            self.store.create(self.run.child(f"{folder}/{number:04d}.json"), data, scratch=self.run.child("_tmp"))
        except FileExistsError:  # another driver counts on the same run: its records stay
            self._create(folder, number + 1, data)

    def condemned(self, shard: Shard) -> bool:
        """Given up: raised as often as allowed, or lost while it ran alone."""
        known = self.attempts.get(shard.id, [])
        lost_alone = any(a.alone and a.charged and a.outcome in UNEXPLAINED for a in known)
        return lost_alone or sum(a.outcome == "raised" for a in known) >= self.plan.spec.compute.attempts

    def suspect(self, shard: Shard) -> bool:
        """To be tried alone, as the last of its attempts: its worker was lost twice beside other work."""
        losses = sum(a.outcome in UNEXPLAINED for a in self.attempts.get(shard.id, []))
        return losses >= max(1, min(2, self.plan.spec.compute.attempts - 1))

    def quarantine(self, shard: Shard) -> None:
        last = self.attempts[shard.id][-1]
        entry = Quarantined(shard=shard.id, rows=shard.rows, attempts=len(self.attempts[shard.id]), reason=last.reason,
                            detail=last.detail, node=last.node)  # fmt: skip
        self.quarantined[shard.id] = entry
        self.store.replace(self.run.child(f"_quarantine/{shard.id}.json"), dump(entry))

    def uncharged_in_a_row(self, shard: Shard) -> int:
        count = 0
        for attempt in reversed(self.attempts.get(shard.id, [])):
            if attempt.charged:
                break
            count += 1
        return count


def read_ledger(store: Store, run: Uri, plan: Plan) -> Ledger:
    """The ledger as earlier drivers left it."""
    ledger = Ledger(store, run, plan)
    for entry in store.list(run.child("_attempts")):
        attempt = Attempt.model_validate_json(store.read(entry.uri))
        ledger.attempts.setdefault(attempt.shard, []).append(attempt)
    for entry in store.list(run.child("_quarantine")):
        found = Quarantined.model_validate_json(store.read(entry.uri))
        ledger.quarantined[found.shard] = found
    return ledger


@dataclass
class Dispatch:
    """One driver's pass over the missing shards of a run."""

    pool: Pool
    plan: Plan
    ledger: Ledger
    stored: Iterable[ShardFooter]
    on_change: Callable[[Tally], None]
    beat_s: float = 0.5

    def __post_init__(self) -> None:
        self.footers: dict[str, ShardFooter] = {}
        self.statuses: Counter[str] = Counter()
        self.rows_done = self.rows_here = self.evaluations = 0
        for footer in self.stored:
            self._count(footer)
        waiting = [s for s in self.plan.shards if s.id not in self.footers and s.id not in self.ledger.quarantined]
        self.waiting = deque(s for s in waiting if not self.ledger.suspect(s))
        self.suspects = deque(s for s in waiting if self.ledger.suspect(s))
        self.in_flight: dict[int, Shard] = {}
        self.alone: int | None = None  # the worker whose fresh actor is for a suspect alone
        self.started: float | None = None

    def run(self) -> dict[str, ShardFooter]:
        """Footers of every shard that is done. Raises what ends a run; resume picks up from storage."""
        while (self.waiting or self.suspects or self.in_flight) and not self._too_many_quarantined():
            self._dispatch()
            for outcome in self.pool.wait(self.beat_s):
                self._settle(outcome)
            self.on_change(self.tally())
        return self.footers

    def _dispatch(self) -> None:
        for worker in self.pool.idle():
            if self.waiting:
                shard = self.waiting.popleft()
                self._submit(worker, shard, self.waiting[0] if self.waiting else None)
            elif self.suspects and not self.in_flight:
                self._try_alone(worker)
            elif self.in_flight and not self.suspects:
                self.pool.retire(worker)

    def _submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        self.started = self.started or time.monotonic()  # rows/s and ETA leave out how long workers took to start
        self.in_flight[worker] = shard
        self.pool.submit(worker, shard, prefetch)

    def _try_alone(self, worker: int) -> None:
        """A suspect runs on a fresh actor with nothing beside it: only a loss here condemns it."""
        if self.alone is None:
            self.alone = worker
            self.pool.replace(worker)
        elif self.alone == worker:
            self._submit(worker, self.suspects.popleft(), None)

    def _settle(self, outcome: Outcome) -> None:
        shard = self.in_flight.pop(outcome.worker)
        alone, self.alone = self.alone is not None, None
        if isinstance(outcome.result, ShardFooter):
            self._count(outcome.result)
            self.rows_here += outcome.result.rows_in
            return
        failure = outcome.result
        if isinstance(failure.error, IntegrityError):
            raise failure.error
        self.ledger.record(shard, failure, alone=alone, beside=bool(self.in_flight))
        self._requeue(shard, failure)

    def _requeue(self, shard: Shard, failure: Failure) -> None:
        if self.ledger.condemned(shard):
            self.ledger.quarantine(shard)
        elif self.ledger.uncharged_in_a_row(shard) >= UNCHARGED_IN_A_ROW:
            raise TransientError(f"shard {shard.id}", expected="storage and nodes that last for one shard",
                                 seen=f"{UNCHARGED_IN_A_ROW} faults in a row, the last: {failure.reason}",
                                 next_step="run the same command again: it resumes")  # fmt: skip
        elif self.ledger.suspect(shard):
            self.suspects.append(shard)
        else:
            self.waiting.append(shard)

    def _too_many_quarantined(self) -> bool:
        most = self.plan.spec.limits.max_quarantined
        return most is not None and len(self.ledger.quarantined) > most

    def tally(self) -> Tally:
        return Tally(
            shards_planned=len(self.plan.shards), rows_planned=self.plan.rows, shards_done=len(self.footers),
            rows_done=self.rows_done, rows_here=self.rows_here, evaluations=self.evaluations,
            attributed=self.statuses["ok"] + self.statuses["at_precision_floor"] + self.statuses["not_converged"]
            + self.statuses["unchecked"], converged=self.statuses["ok"] + self.statuses["at_precision_floor"],
            quarantined=len(self.ledger.quarantined), seconds=time.monotonic() - self.started if self.started else 0.0,
        )  # fmt: skip

    def _count(self, footer: ShardFooter) -> None:
        self.footers[footer.shard] = footer
        self.rows_done += footer.rows_in
        self.evaluations += footer.evaluations
        self.statuses.update(footer.statuses)
