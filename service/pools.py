"""Where shards run: `LocalPool` in this process, `RayPool` on actors. Both answer the same small protocol.

One shard in flight per worker: a death can then be attributed to the shard that was running.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from integrand.schemas.errors import IntegrandError, SpecError, TransientError
from integrand.schemas.records import Shard, ShardFooter
from integrand.schemas.specs import Compute
from integrand.service.devices import REPEATABLE
from integrand.workers.worker import Beat, Setup, Worker

Item = TypeVar("Item")
Made = TypeVar("Made")
PROBE_S = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LossKind = Literal["raised", "killed_worker", "stalled", "preempted", "memory", "storage", "lost"]


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave no footer. `error` is set where it was one of our own."""

    kind: LossKind
    reason: str
    detail: str = ""
    node: str = ""
    error: IntegrandError | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at one shard."""

    worker: int
    shard: Shard
    result: ShardFooter | Failure


class Pool(Protocol):
    """Workers by number. The runner submits to idle ones and waits for outcomes."""

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """Run a pre-pass function over items, results in order."""

    def start(self, setup: Setup, compute: Compute, shards: int, stall_s: float) -> None:
        """Ask for workers that load the plan's model; raises what stops them from starting."""

    def idle(self) -> list[int]:
        """Numbers of workers that are ready and have nothing to do."""

    def submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        """Give an idle worker a shard, and the one that it may be given next."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Attempts that ended, at the latest after `timeout_s`."""

    def replace(self, worker: int) -> None:
        """A fresh worker under the same number."""

    def retire(self, worker: int) -> None:
        """Let an idle worker go: there is nothing left for it."""

    def close(self) -> None:
        """Stop everything, in flight or not."""


def failure_of(error: Exception, trace: str, node: str = "") -> Failure:
    """An exception raised by a shard, as a failure: storage faults are told apart from what the shard did."""
    own = error if isinstance(error, IntegrandError) else None
    kind: LossKind = "storage" if isinstance(error, TransientError) else "raised"
    return Failure(kind, f"{type(error).__name__}: {error}"[:500], trace[-4000:], node, own)


class LocalPool:
    """One worker in this process: no Ray, no isolation. A model that dies or hangs takes the run with it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._setup: Setup | None = None
        self._next: tuple[Shard, Shard | None] | None = None

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        return [function(item) for item in items]

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


@dataclass
class _Seat:
    """One actor of a RayPool and what it is doing."""

    actor: Any
    ready: Any
    since: float
    is_ready: bool = False
    shard: Shard | None = None
    call: Any = None
    beat: Any = None
    ticks: int = -1
    moved: float = 0.0
    node: str = ""
    stalled: bool = False


@dataclass
class RayPool:
    """Actors on Ray: an embedded local cluster with room for `cpus` without `address`, the cluster there otherwise."""

    address: str | None = None
    cpus: float = 2
    poll_s: float = 1.0
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _failed_starts: int = 0
    _fewest: int = 0

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """Ray tasks, at most 64 in flight. They only create what is absent, so Ray may retry them."""
        import ray

        self.connect()
        task: Any = ray.remote(_call).options(num_cpus=1, max_retries=3)
        made: list[Any] = [None] * len(items)
        running: dict[Any, int] = {}
        waiting = list(enumerate(items))[::-1]
        while waiting or running:
            while waiting and len(running) < 64:
                place, item = waiting.pop()
                running[task.remote(function, item)] = place
            done, _ = ray.wait(list(running), num_returns=1)
            for ref in done:
                made[running.pop(ref)] = _fetch(ref)
        return made

    def connect(self) -> None:
        """Join the cluster, or start a local one that has room for all workers: pre-passes run on it before them."""
        import ray

        if ray.is_initialized():
            return
        try:
            if self.address:
                _probe(self.address)
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(num_cpus=max(2, math.ceil(self.cpus)), include_dashboard=False, log_to_driver=False,
                         logging_level=logging.ERROR)  # fmt: skip
        except (OSError, RuntimeError, ValueError) as error:
            raise TransientError(f"Ray at {self.address or 'this machine'}", expected="a cluster that answers",
                                 seen=str(error)[:300], next_step="check address, token and `ray status`") from error  # fmt: skip

    def start(self, setup: Setup, compute: Compute, shards: int, stall_s: float) -> None:
        import ray

        from integrand.workers.actor import ShardActor

        wanted = min(compute.worker_range.max, max(1, shards))
        self._fewest = min(compute.worker_range.min, wanted)
        self.connect()
        self._start_s, self._stall_s = compute.start_s, stall_s
        self._setup = ray.put(setup)
        remote: Any = ShardActor  # ray.remote hides what it returns from type checkers
        self._actors = remote.options(num_cpus=compute.cpus_per_worker, num_gpus=compute.gpus_per_worker,
                                      runtime_env={"env_vars": REPEATABLE} if compute.gpus_per_worker else None)  # fmt: skip
        for worker in range(wanted):
            self._seat(worker)

    def _seat(self, worker: int) -> None:
        actor = self._actors.remote()
        self._seats[worker] = _Seat(actor, actor.load.remote(self._setup), time.monotonic())

    def idle(self) -> list[int]:
        if sum(s.is_ready for s in self._seats.values()) < self._fewest:
            return []
        self._fewest = 0  # enough came up to begin; from here on, whoever is ready works
        return [n for n, s in self._seats.items() if s.is_ready and s.shard is None]

    def submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        seat = self._seats[worker]
        seat.shard, seat.call = shard, seat.actor.run.remote(shard, prefetch)
        seat.moved, seat.ticks, seat.beat, seat.stalled = time.monotonic(), -1, None, False

    def wait(self, timeout_s: float) -> list[Outcome]:
        import ray

        deadline = time.monotonic() + timeout_s
        while True:
            refs = [s.call for s in self._seats.values() if s.shard]
            refs += [s.ready for s in self._seats.values() if not s.is_ready]
            if not refs:
                return []
            left = max(0.0, min(self.poll_s, deadline - time.monotonic()))
            done, _ = ray.wait(refs, num_returns=1, timeout=left)
            came_up = self._settle_starts()
            outcomes = [self._outcome(n, s) for n, s in list(self._seats.items()) if s.shard and s.call in done]
            self._watch()
            if outcomes or came_up or time.monotonic() >= deadline:
                return outcomes

    def _settle_starts(self) -> bool:
        """Take note of actors that are up; raise what keeps them from starting. True if one came up."""
        import ray

        starting = {s.ready: n for n, s in self._seats.items() if not s.is_ready}
        done, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0) if starting else ([], [])
        for ref in done:
            self._settle_start(starting[ref], ref)
        late = [s for s in self._seats.values() if not s.is_ready and time.monotonic() - s.since > self._start_s]
        ready, needed = sum(s.is_ready for s in self._seats.values()), max(1, self._fewest)
        if late and ready < needed:
            raise TransientError(f"{len(late)} workers", expected=f"{needed} ready within {self._start_s:g} s",
                                 seen=f"{ready} ready; the cluster has {_resources()}",
                                 next_step="lower compute.workers or cpus_per_worker, or free the cluster")  # fmt: skip
        return bool(done)

    def _settle_start(self, worker: int, ref: Any) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            beat: Beat = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, IntegrandError):
                raise error.cause from None
            raise SpecError("worker start", expected="the model to load on the worker as it did at planning",
                            seen=str(error)[-600:]) from error  # fmt: skip
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= 3:
                raise TransientError("worker start", expected="a worker that loads the model",
                                     seen=f"{self._failed_starts} deaths: {str(error)[:400]}") from error  # fmt: skip
            self._seat(worker)
            return
        self._failed_starts = 0
        self._seats[worker].is_ready, self._seats[worker].node = True, beat.node

    def _outcome(self, worker: int, seat: _Seat) -> Outcome:
        """Settle a call that ended; a dead actor is replaced."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        assert seat.shard
        shard, seat.shard = seat.shard, None
        try:
            return Outcome(worker, shard, ray.get(seat.call))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            # The cause left its traceback behind; Ray kept it as text, coloured for terminals.
            return Outcome(worker, shard, failure_of(cause, _COLOURS.sub("", str(error)), seat.node))
        except RayError as error:
            self.replace(worker)
            return Outcome(worker, shard, loss_of(error, seat.node, stalled=seat.stalled))

    def _watch(self) -> None:
        """Ask busy actors how far they are; kill those that finished no step batch for too long."""
        import ray

        now = time.monotonic()
        for seat in self._seats.values():
            if not seat.shard or seat.stalled:
                continue
            answered = seat.beat is not None and bool(ray.wait([seat.beat], timeout=0)[0])
            if answered:
                ticks = _ticks(seat.beat)
                if ticks is not None and ticks != seat.ticks:
                    seat.ticks, seat.moved = ticks, now
            if seat.beat is None or answered:
                seat.beat = seat.actor.beat.remote()
            if now - seat.moved > self._stall_s:
                seat.stalled = True
                ray.kill(seat.actor)

    def replace(self, worker: int) -> None:
        import ray

        ray.kill(self._seats[worker].actor)
        self._seat(worker)

    def retire(self, worker: int) -> None:
        import ray

        ray.kill(self._seats.pop(worker).actor)

    def close(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        for seat in self._seats.values():
            ray.kill(seat.actor)
        self._seats.clear()
        if not self.address:
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), PROBE_S).close()


def _call(function: Callable[[Item], Made], item: Item) -> Made:
    return function(item)


def _ticks(ref: Any) -> int | None:
    """Ticks of an answered beat; None if its actor died, which the shard's own call will tell."""
    import ray
    from ray.exceptions import RayActorError

    try:
        beat: Beat = ray.get(ref)
    except RayActorError:
        return None
    return beat.ticks


def loss_of(error: Exception, node: str, *, stalled: bool) -> Failure:
    """What took an actor away, as far as Ray can tell. Ray has no class of its own for an actor whose node died."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    kind: LossKind = "killed_worker"
    text = " ".join(str(error).split())[:600]
    if stalled:
        kind, text = "stalled", "no step batch finished within the stall limit; the worker was killed"
    elif isinstance(error, OutOfMemoryError):
        kind = "memory"
    elif getattr(error, "preempted", False):
        kind = "preempted"
    elif isinstance(error, NodeDiedError) or "its node has died" in text:
        kind = "lost"
    return Failure(kind, text, type(error).__name__, node)


def _fetch(ref: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, IntegrandError):
            raise error.cause from None
        raise
    except RayError as error:
        raise TransientError("pre-pass", expected="a worker that lives through it", seen=str(error)[:300],
                             next_step="run again: what was written is kept") from error  # fmt: skip


def _resources() -> str:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return ", ".join(f"{found.get(k, 0):g} {k}" for k in ("CPU", "GPU"))


def make_pool(kind: Literal["ray", "local"], address: str | None, compute: Compute) -> Pool:
    """The pool for a job; a local Ray is given room for as many workers as the job may ask for."""
    if kind == "local":
        return LocalPool()
    return RayPool(address, cpus=compute.worker_range.max * compute.cpus_per_worker)


__all__ = ["Failure", "LocalPool", "Outcome", "Pool", "RayPool", "make_pool"]
