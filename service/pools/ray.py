"""Actors of a Ray cluster, each in its slot.

The modules that import Ray at their top are loaded with this one, by `choice` and only once a job
goes to Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from integrand.schemas.errors import IntegrandError, SpecError, TransientError
from integrand.schemas.specs.compute import Compute
from integrand.schemas.tasks import Task
from integrand.service.pools.base import Item, Made, Outcome
from integrand.service.pools.connection import Connection
from integrand.service.pools.prepasses import map_on_ray
from integrand.service.pools.slot import Slot
from integrand.workers import kernels
from integrand.workers.actor import Place, TaskActor
from integrand.workers.task_workers import WorkerSetup

MOST_FAILED_STARTS = 3


@dataclass
class RayPool:
    """Actors on Ray: an embedded local cluster with room for `cpus` without `address`, the cluster
    there otherwise.

    Off loopback either must ask for a token, unless `allow_unauthenticated`.
    """

    address: str | None = None
    cpus: float = 2
    allow_unauthenticated: bool = False
    poll_s: float = 1.0
    _slots: dict[int, Slot] = field(default_factory=dict)
    _failed_starts: int = 0
    _fewest: int = 0

    def __post_init__(self) -> None:
        self._connection = Connection(self.address, self.cpus, self.allow_unauthenticated)

    def prepare(self) -> None:
        """Start the local cluster beside whatever the caller does."""
        self._connection.prepare()

    def connect(self) -> None:
        """Join the cluster, or start a local one that has room for all workers: pre-passes run on
        it before them.
        """
        self._connection.open()

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        self.connect()
        return map_on_ray(function, items, self._connection.leaving, self.poll_s)

    def start(self, setup: WorkerSetup, compute: Compute, tasks: int, stall_s: float) -> None:
        wanted = min(compute.worker_range.max, max(1, tasks))
        self._fewest = min(compute.worker_range.min, wanted)
        self.connect()
        self._check_gpus(compute)
        self._start_s, self._stall_s = compute.start_s, stall_s
        self._setup = ray.put(setup)
        self._actors = self._actor_class(compute)
        for worker in range(wanted):
            self._fill(worker)

    def _check_gpus(self, compute: Compute) -> None:
        """SpecError for a worker that needs more GPUs than a cluster of our own has; another one
        may grow.
        """
        there = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
        if self.address is not None or compute.gpus_per_worker <= there:
            return
        raise SpecError(
            "compute.gpus_per_worker",
            expected=f"at most {there:g}, which Ray finds on this machine",
            seen=f"{compute.gpus_per_worker:g}",
            next_step="lower it, or name a cluster that has more (--address)",
        )

    def _actor_class(self, compute: Compute) -> Any:
        """The remote class of the workers, with what each of them takes."""
        remote: Any = TaskActor  # ray.remote hides what it returns from type checkers
        return remote.options(
            num_cpus=compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker,
            runtime_env=self._environment(compute),
        )

    def _environment(self, compute: Compute) -> dict[str, dict[str, str]] | None:
        """What workers need in their environment before they start. A cluster of our own has it
        from this process.

        A worker with an environment of its own is no prestarted one, and takes 0.7 s longer.
        """
        variables: dict[str, str] = {}
        if compute.gpus_per_worker:
            variables |= kernels.REPEATABLE_CUDA
        if self.address is not None or compute.reproducible == "portable":
            variables |= kernels.asked()
        return {"env_vars": variables} if variables else None

    def _fill(self, worker: int) -> None:
        self._slots[worker] = Slot.fresh(self._actors, self._setup)

    def idle(self) -> list[int]:
        if sum(s.is_ready for s in self._slots.values()) < self._fewest:
            return []
        self._fewest = 0  # enough came up to begin; from here on, whoever is ready works
        return [n for n, s in self._slots.items() if s.is_idle]

    def submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        self._slots[worker].submit(task, prefetch)

    def wait(self, timeout_s: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout_s
        while True:
            pending = [s.pending for s in self._slots.values() if s.pending is not None]
            if not pending:
                return []
            left = max(0.0, min(self.poll_s, deadline - time.monotonic()))
            done, _ = ray.wait(pending, num_returns=1, timeout=left)
            came_up = self._settle_starts()
            outcomes = self._settle_calls(done)
            for slot in self._slots.values():
                slot.watch(self._stall_s)
            self._leave_nodes(self._connection.leaving())
            if outcomes or came_up or time.monotonic() >= deadline:
                return outcomes

    # --- starts ----------------------------------------------------------------------------

    def _settle_starts(self) -> bool:
        """Take note of actors that are up; raise what keeps them from starting. True if one came
        up.
        """
        starting = {s.loading: n for n, s in self._slots.items() if not s.is_ready}
        if not starting:
            return False
        done, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0)
        for ref in done:
            self._settle_start(starting[ref], ref)
        self._check_late()
        return bool(done)

    def _check_late(self) -> None:
        """TransientError if too few actors came up in time."""
        slots = self._slots.values()
        now = time.monotonic()
        late = sum(not s.is_ready and now - s.since > self._start_s for s in slots)
        ready = sum(s.is_ready for s in slots)
        needed = max(1, self._fewest)
        if late and ready < needed:
            raise TransientError(
                f"{late} workers",
                expected=f"{needed} ready within {self._start_s:g} s",
                seen=f"{ready} ready; the cluster has {_resources()}",
                next_step=(
                    "lower compute.workers, cpus_per_worker or gpus_per_worker, or free the cluster"
                ),
            )

    def _settle_start(self, worker: int, ref: Any) -> None:
        try:
            place: Place = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, IntegrandError):
                raise error.cause from None
            raise SpecError(
                "worker start",
                expected="the model to load on the worker as it did at planning",
                seen=str(error)[-600:],
            ) from error
        except RayError as error:
            self._start_again(worker, error)
            return
        self._failed_starts = 0
        self._slots[worker].place = place

    def _start_again(self, worker: int, error: RayError) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise TransientError(
                "worker start",
                expected="a worker that loads the model",
                seen=f"{self._failed_starts} deaths: {str(error)[:400]}",
            ) from error
        self._fill(worker)

    # --- ends ------------------------------------------------------------------------------

    def _settle_calls(self, done: Sequence[Any]) -> list[Outcome]:
        over = [n for n, s in self._slots.items() if s.task is not None and s.call in done]
        outcomes = (self._outcome(worker) for worker in over)
        return [outcome for outcome in outcomes if outcome is not None]

    def _outcome(self, worker: int) -> Outcome | None:
        """Settle a call that ended. An actor that died is replaced, and so is one that lost its
        CUDA context.
        """
        slot = self._slots[worker]
        end = slot.ended(self._connection.leaving)
        if end is None:
            return None
        task, slot.task = slot.task, None
        assert task is not None
        if end.actor_lost:
            self.replace(worker)
        return Outcome(worker, task, end.result)

    def _leave_nodes(self, leaving: Mapping[str, float]) -> None:
        """Take workers off nodes that leave: idle ones at once, for a node waits for them; busy
        ones in the last seconds.
        """
        for worker, slot in list(self._slots.items()):
            if slot.node_id not in leaving:
                continue
            if slot.is_idle:
                self.replace(worker)
            elif slot.must_leave(leaving):
                slot.kill("preempted")

    def replace(self, worker: int) -> None:
        ray.kill(self._slots[worker].actor)
        self._fill(worker)

    def retire(self, worker: int) -> None:
        ray.kill(self._slots.pop(worker).actor)

    def close(self) -> None:
        self._connection.settle()
        if ray.is_initialized():
            for slot in self._slots.values():
                ray.kill(slot.actor)
            self._slots.clear()
        self._connection.close()


def _resources() -> str:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return ", ".join(f"{found.get(k, 0):g} {k}" for k in ("CPU", "GPU"))
