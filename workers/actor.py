"""The Ray shell around a worker of tasks, and nothing else."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import ray

from integrand.schemas.records import TaskFooter
from integrand.schemas.tasks import Task
from integrand.workers.share import keep_to_share
from integrand.workers.task_workers import Beat, WorkerSetup


@dataclass(frozen=True)
class Place:
    """Where an actor is: its host's name, for people, and Ray's id of its node."""

    node: str
    node_id: str


@ray.remote(  # type: ignore[call-overload]  # its stubs know no options of classes
    max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1}
)
class TaskActor:
    """One worker process. Ray never retries: the driver counts attempts and replaces dead
    actors.
    """

    def load(self, setup: WorkerSetup) -> Place:
        """Load the model. A method, not the constructor: Ray keeps the type of an exception only
        here.
        """
        here = ray.get_runtime_context()
        reserved: dict[str, float] = here.get_assigned_resources()  # type: ignore[no-untyped-call]
        keep_to_share(reserved.get("GPU", 0.0))
        self.worker = setup.make_worker()
        return Place(socket.gethostname(), here.get_node_id())

    def run(self, task: Task, prefetch: Task | None) -> TaskFooter | None:
        return self.worker.run(task, prefetch)

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Answers while `run` is busy, from a thread of its own."""
        return self.worker.beat()
