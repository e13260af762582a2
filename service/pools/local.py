"""One worker in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from integrand.schemas.specs.compute import Compute
from integrand.schemas.tasks import Task
from integrand.service.pools.base import Item, Made, Outcome
from integrand.service.pools.failures import failure_of
from integrand.workers.task_workers import TaskWorker, WorkerSetup


class LocalPool:
    """One worker in this process: no Ray, no isolation. A model that dies or hangs takes the run
    with it.
    """

    def __init__(self) -> None:
        self._worker: TaskWorker[Any] | None = None
        self._setup: WorkerSetup | None = None
        self._next: tuple[Task, Task | None] | None = None

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        return [function(item) for item in items]

    def prepare(self) -> None:
        pass

    def start(self, setup: WorkerSetup, compute: Compute, tasks: int, stall_s: float) -> None:
        self._setup = setup
        self._worker = setup.make_worker()

    def idle(self) -> list[int]:
        return [0] if self._worker and not self._next else []

    def submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        self._next = task, prefetch

    def wait(self, timeout_s: float) -> list[Outcome]:
        assert self._worker
        if self._next is None:
            return []
        (task, prefetch), self._next = self._next, None
        try:
            return [Outcome(0, task, self._worker.run(task, prefetch))]
        except Exception as error:  # noqa: BLE001 — whatever the task raised is its outcome, as with Ray
            return [Outcome(0, task, failure_of(error, traceback.format_exc()))]

    def replace(self, worker: int) -> None:
        assert self._setup
        self.close()
        self._worker = self._setup.make_worker()

    def retire(self, worker: int) -> None:
        self.close()

    def close(self) -> None:
        if self._worker:
            self._worker.close()
        self._worker = None
