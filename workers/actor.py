"""The Ray shell around `Worker`, and nothing else."""

from __future__ import annotations

import ray

from integrand.schemas.records import Shard, ShardFooter
from integrand.workers.worker import Beat, Setup, Worker


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1})
class ShardActor:
    """One worker process. Ray never retries: the driver counts attempts and replaces dead actors."""

    def load(self, setup: Setup) -> Beat:
        """Load the model. A method, not the constructor: Ray keeps the type of an exception only here."""
        self.worker = Worker(setup)
        return self.worker.beat()

    def run(self, shard: Shard, prefetch: Shard | None) -> ShardFooter:
        return self.worker.run(shard, prefetch)

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Answers while `run` is busy, from a thread of its own."""
        return self.worker.beat()
