"""A pool whose tasks end as a script says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from integrand.schemas.quantiles import Quantiles
from integrand.schemas.records import ShardFooter
from integrand.schemas.specs.compute import Compute
from integrand.schemas.tasks import Task, Trial
from integrand.service.pools.base import Outcome
from integrand.service.pools.failures import Failure, FailureKind
from integrand.workers.task_workers import WorkerSetup

DONE = "done"


Event = FailureKind | str


@dataclass
class ScriptedPool:
    """Workers whose shards end as a script says, by shard id; a shard without further lines ends
    well.

    `killers` are rows of a shard that take their worker away whenever they are run.
    """

    script: dict[str, list[Event]]
    workers: int = 1
    error: dict[str, Exception] = field(default_factory=dict)
    killers: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.busy: dict[int, Task] = {}
        self.ready = set(range(self.workers))
        self.starting: set[int] = set()
        self.runs: list[tuple[int, str, int]] = []
        self.shards: list[Task] = []
        self.replaced: list[int] = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    def start(self, setup: WorkerSetup, compute: Compute, tasks: int, stall_s: float) -> None: ...

    def idle(self) -> list[int]:
        return sorted(self.ready - set(self.busy))

    def submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        assert worker in self.ready
        assert worker not in self.busy
        assert task.id not in [s.id for s in self.busy.values()]
        self.busy[worker] = task
        self.shards.append(task)
        self.runs.append((worker, task.id, len(self.busy)))

    def wait(self, timeout_s: float) -> list[Outcome]:
        self.ready |= self.starting
        self.starting.clear()
        if not self.busy:
            return []
        worker, task = self.busy.popitem()
        event = self.script[task.id].pop(0) if self.script.get(task.id) else DONE
        if event == DONE and self.killers.get(task.id, set()) & rows_run(task):
            event = "killed_worker"
        if event == DONE:
            committed = not isinstance(task, Trial) or task.only is None
            return [Outcome(worker, task, footer(task) if committed else None)]
        failure = Failure(
            event, f"scripted {event}", "Traceback: x", "node-1", self.error.get(task.id)
        )  # type: ignore[arg-type]
        return [Outcome(worker, task, failure)]

    def replace(self, worker: int) -> None:
        assert worker not in self.busy
        self.replaced.append(worker)
        self.ready.remove(worker)
        self.starting.add(worker)

    def retire(self, worker: int) -> None:
        assert worker not in self.busy
        self.ready.remove(worker)

    def close(self) -> None: ...


def rows_run(task: Task) -> set[int]:
    """The rows of a shard that a worker runs, its trial's only ones or all but the culprits."""
    if not isinstance(task, Trial):
        return set(range(task.rows))
    return set(range(*(task.only or (0, task.rows)))) - {c.row for c in task.culprits}


def footer(task: Task) -> ShardFooter:
    return ShardFooter(
        run_id="r",
        shard=task.id,
        plan_sha256="p",
        rows_in=task.rows,
        rows_out=task.rows,
        statuses={"ok": task.rows},
        gap=Quantiles(),
        error=Quantiles(),
        error_histogram={},
        gap_histogram={},
        evaluations=8 * task.rows,
        padded_evaluations=0,
        digest="0" * 64,
        batch_rows=16,
        seconds={},
        node="n",
        versions={},
    )
