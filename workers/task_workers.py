"""What a worker of any kind of job is to the pool that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from integrand.schemas.records import TaskFooter
from integrand.schemas.tasks import Task

GivenTask = TypeVar("GivenTask", bound=Task, contravariant=True)


@dataclass(frozen=True)
class Beat:
    """How far a worker has come: `ticks` counts finished step batches and stages, not
    heartbeats.
    """

    ticks: int
    node: str
    pid: int


class TaskWorker(Protocol[GivenTask]):
    """Runs the tasks of one plan, one after another, in a process of its own or in the driver's."""

    def run(self, task: GivenTask, prefetch: GivenTask | None = None) -> TaskFooter | None:
        """What a task's committed object says of itself; None after a trial of some of its rows,
        which commits nothing.

        `prefetch` is a hint: the next task may go elsewhere.
        """

    def beat(self) -> Beat:
        """Asked from another thread while `run` is busy."""

    def close(self) -> None:
        """Let go of threads and files."""


class WorkerSetup(Protocol):
    """What a worker is made from. It is pickled, and travels to the process of the worker."""

    def make_worker(self) -> TaskWorker[Any]:
        """A worker for the tasks of the plan that this is of. Raises SpecError, DataError or
        IntegrityError where there can be none.
        """
