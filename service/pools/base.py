"""What a pool of workers answers, whatever kind of job they are of.

One task in flight per worker: a death can then be attributed to the task that was running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from integrand.schemas.records import TaskFooter
from integrand.schemas.specs.compute import Compute
from integrand.schemas.tasks import Task
from integrand.service.pools.failures import Failure
from integrand.workers.task_workers import WorkerSetup

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at one task; no result for a trial of some rows that lost nobody."""

    worker: int
    task: Task
    result: TaskFooter | Failure | None


class Mapper(Protocol):
    """What planning needs: pre-pass functions run over items."""

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """Run a pre-pass function over items, results in order."""

    def prepare(self) -> None:
        """Begin what takes time and needs no plan, beside whatever the caller does; `map` and a
        pool's `start` wait for it.
        """

    def close(self) -> None:
        """Stop everything, in flight or not."""


class Pool(Mapper, Protocol):
    """Workers by number. The runner submits to idle ones and waits for outcomes."""

    def start(self, setup: WorkerSetup, compute: Compute, tasks: int, stall_s: float) -> None:
        """Ask for workers, no more than tasks; raises what stops them from starting."""

    def idle(self) -> list[int]:
        """Numbers of workers that are ready and have nothing to do."""

    def submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        """Give an idle worker a task, and the one that it may be given next."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Attempts that ended, at the latest after `timeout_s`."""

    def replace(self, worker: int) -> None:
        """A fresh worker under the same number."""

    def retire(self, worker: int) -> None:
        """Let an idle worker go: there is nothing left for it."""
