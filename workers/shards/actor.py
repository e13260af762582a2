"""The Ray shell around `Worker`, and nothing else."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import ray

from integrand.schemas.records import Shard, ShardFooter
from integrand.workers.shards.worker import Beat, Setup, Worker


@dataclass(frozen=True)
class Place:
    """Where an actor is: its host's name, for people, and Ray's id of its node."""

    node: str
    node_id: str


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1})
class ShardActor:
    """One worker process. Ray never retries: the driver counts attempts and replaces dead
    actors.
    """

    def load(self, setup: Setup) -> Place:
        """Load the model. A method, not the constructor: Ray keeps the type of an exception only
        here.
        """
        self.worker = Worker(setup)
        return Place(socket.gethostname(), ray.get_runtime_context().get_node_id())

    def run(self, shard: Shard, prefetch: Shard | None) -> ShardFooter | None:
        return self.worker.run(shard, prefetch)

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Answers while `run` is busy, from a thread of its own."""
        return self.worker.beat()
