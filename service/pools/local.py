"""One worker in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from integrand.schemas.records import Shard
from integrand.schemas.specs.compute import Compute
from integrand.service.pools.base import Item, Made, Outcome
from integrand.service.pools.failures import failure_of
from integrand.workers.shards.worker import Setup, Worker


class LocalPool:
    """One worker in this process: no Ray, no isolation. A model that dies or hangs takes the run
    with it.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._setup: Setup | None = None
        self._next: tuple[Shard, Shard | None] | None = None

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        return [function(item) for item in items]

    def prepare(self) -> None:
        pass

    def start(self, setup: Setup, compute: Compute, shards: int, stall_s: float) -> None:
        self._setup, self._worker = setup, Worker(setup)

    def idle(self) -> list[int]:
        return [0] if self._worker and not self._next else []

    def submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        self._next = shard, prefetch

    def wait(self, timeout_s: float) -> list[Outcome]:
        assert self._worker
        if self._next is None:
            return []
        (shard, prefetch), self._next = self._next, None
        try:
            return [Outcome(0, shard, self._worker.run(shard, prefetch))]
        except Exception as error:  # noqa: BLE001 — whatever the shard raised is its outcome, as with Ray
            return [Outcome(0, shard, failure_of(error, traceback.format_exc()))]

    def replace(self, worker: int) -> None:
        assert self._setup
        self.close()
        self._worker = Worker(self._setup)

    def retire(self, worker: int) -> None:
        self.close()

    def close(self) -> None:
        if self._worker:
            self._worker.close()
        self._worker = None
