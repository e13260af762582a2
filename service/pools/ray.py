"""Actors of a Ray cluster, each in its slot."""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from integrand.schemas.errors import IntegrandError, SpecError, TransientError
from integrand.schemas.records import Shard
from integrand.schemas.specs.compute import Compute
from integrand.service.pools.base import Item, Made, Outcome
from integrand.service.pools.clusters import RAY_TOKEN, protect_token, require_authentication
from integrand.service.pools.devices import REPEATABLE
from integrand.service.pools.failures import (
    Ended,
    Failure,
    failure_of,
    lost_context,
    worker_failure,
)
from integrand.service.pools.heartbeat import ClusterHeartbeat, probe
from integrand.workers import kernels
from integrand.workers.shards.worker import Beat, Setup

if TYPE_CHECKING:
    from integrand.workers.shards.actor import Place

UNREACHABLE_S = 60.0
"""How long Ray may take to find out that a node is dead: its head asks each one every 3 s, five
times.
"""
LAST_S = 5.0
"""A shard that runs is dropped so long before its node goes, lest it commit after that."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class _Slot:
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
    node_id: str = ""
    ended: Ended | None = None
    unreachable: float | None = None


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
    _slots: dict[int, _Slot] = field(default_factory=dict)
    _failed_starts: int = 0
    _fewest: int = 0
    _heartbeat: ClusterHeartbeat | None = None
    _starter: ThreadPoolExecutor | None = None
    _joining: Future[None] | None = None
    _own_ray: bool = False

    def prepare(self) -> None:
        """Start the local cluster in a thread: 3 s, most of which it waits. One elsewhere is up
        already.

        The thread stays as long as the cluster: Linux kills what was told to die with its parent
        once the thread ends that made it, and Ray tells its daemons so.
        """
        if self.address is None and self._joining is None:
            self._starter = ThreadPoolExecutor(1, "ray")
            self._joining = self._starter.submit(self._init)

    def map(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """Ray tasks, at most 64 in flight. They only create what is absent, so Ray may
        retry them.
        """
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
            done, _ = ray.wait(list(running), num_returns=1, timeout=self.poll_s)
            self._look()
            for ref in done:
                made[running.pop(ref)] = _fetch(ref)
        return made

    def connect(self) -> None:
        """Join the cluster, or start a local one that has room for all workers: pre-passes run on
        it before them.
        """
        import ray
        from ray.util.client import ray as client

        if self._joining is None:
            self._init()
        else:
            self._joining.result()
        if self._heartbeat is None and not client.is_connected():  # type: ignore[no-untyped-call]
            node: Any = ray._private.worker._global_node  # Ray has no public name for its socket
            self._heartbeat = ClusterHeartbeat(
                ray.get_runtime_context().gcs_address, node.raylet_socket_name
            )

    def _init(self) -> None:
        import ray

        if not ray.is_initialized():
            with _sigterm_kept():
                self._join()

    def _join(self) -> None:
        import ray

        try:
            if self.address:
                probe(self.address)
                if not self.allow_unauthenticated:
                    require_authentication(_found(self.address))
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                self._embed()
        except IntegrandError:
            raise
        except Exception as error:  # Ray raises no other type for a node that does not come up
            advice = (
                "check address, token and `ray status`"
                if self.address
                else "check memory and space in Ray's folder, /tmp/ray"
            )
            raise TransientError(
                f"Ray at {self.address or 'this machine'}",
                expected="a cluster that answers",
                seen=str(error)[:300],
                next_step=advice,
            ) from error

    def _embed(self) -> None:
        """A Ray of our own. It listens on every interface, and since 2.59 asks for the token that
        it makes.
        """
        import ray

        # where there is no home Ray says so itself, unless the token is given otherwise
        with suppress(OSError):
            RAY_TOKEN.parent.mkdir(mode=0o700, exist_ok=True)
        protect_token(RAY_TOKEN)
        ray.init(
            address="local",
            num_cpus=max(2, math.ceil(self.cpus)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self._own_ray = True
        protect_token(RAY_TOKEN)
        try:
            if not self.allow_unauthenticated:
                require_authentication(ray.get_runtime_context().gcs_address)
        except IntegrandError:
            ray.shutdown()
            raise

    def start(self, setup: Setup, compute: Compute, shards: int, stall_s: float) -> None:
        import ray

        from integrand.workers.shards.actor import ShardActor

        wanted = min(compute.worker_range.max, max(1, shards))
        self._fewest = min(compute.worker_range.min, wanted)
        self.connect()
        self._start_s, self._stall_s = compute.start_s, stall_s
        self._setup = ray.put(setup)
        remote: Any = ShardActor  # ray.remote hides what it returns from type checkers
        self._actors = remote.options(
            num_cpus=compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker,
            runtime_env=self._environment(compute),
        )
        for worker in range(wanted):
            self._seat(worker)

    def _environment(self, compute: Compute) -> dict[str, dict[str, str]] | None:
        """What workers need in their environment before they start. A cluster of our own has it
        from this process.

        A worker with an environment of its own is no prestarted one, and takes 0.7 s longer.
        """
        variables = REPEATABLE if compute.gpus_per_worker else {}
        if self.address is not None or compute.reproducible == "portable":
            variables = {**variables, **kernels.asked()}
        return {"env_vars": variables} if variables else None

    def _seat(self, worker: int) -> None:
        actor = self._actors.remote()
        self._slots[worker] = _Slot(actor, actor.load.remote(self._setup), time.monotonic())

    def idle(self) -> list[int]:
        if sum(s.is_ready for s in self._slots.values()) < self._fewest:
            return []
        self._fewest = 0  # enough came up to begin; from here on, whoever is ready works
        return [n for n, s in self._slots.items() if s.is_ready and s.shard is None]

    def submit(self, worker: int, shard: Shard, prefetch: Shard | None) -> None:
        slot = self._slots[worker]
        slot.shard, slot.call = shard, slot.actor.run.remote(shard, prefetch)
        slot.moved, slot.ticks, slot.beat = time.monotonic(), -1, None
        slot.ended = slot.unreachable = None

    def wait(self, timeout_s: float) -> list[Outcome]:
        import ray

        deadline = time.monotonic() + timeout_s
        while True:
            refs = [s.call for s in self._slots.values() if s.shard]
            refs += [s.ready for s in self._slots.values() if not s.is_ready]
            if not refs:
                return []
            left = max(0.0, min(self.poll_s, deadline - time.monotonic()))
            done, _ = ray.wait(refs, num_returns=1, timeout=left)
            came_up = self._settle_starts()
            ended = [(n, s) for n, s in self._slots.items() if s.shard and s.call in done]
            outcomes = [outcome for n, s in ended if (outcome := self._outcome(n, s))]
            self._watch()
            self._leave_nodes(self._look())
            if outcomes or came_up or time.monotonic() >= deadline:
                return outcomes

    def _settle_starts(self) -> bool:
        """Take note of actors that are up; raise what keeps them from starting. True if one came
        up.
        """
        import ray

        starting = {s.ready: n for n, s in self._slots.items() if not s.is_ready}
        done, _ = (
            ray.wait(list(starting), num_returns=len(starting), timeout=0) if starting else ([], [])
        )
        for ref in done:
            self._settle_start(starting[ref], ref)
        late = [
            s
            for s in self._slots.values()
            if not s.is_ready and time.monotonic() - s.since > self._start_s
        ]
        ready, needed = sum(s.is_ready for s in self._slots.values()), max(1, self._fewest)
        if late and ready < needed:
            raise TransientError(
                f"{len(late)} workers",
                expected=f"{needed} ready within {self._start_s:g} s",
                seen=f"{ready} ready; the cluster has {_resources()}",
                next_step="lower compute.workers or cpus_per_worker, or free the cluster",
            )
        return bool(done)

    def _settle_start(self, worker: int, ref: Any) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

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
            self._failed_starts += 1
            if self._failed_starts >= 3:
                raise TransientError(
                    "worker start",
                    expected="a worker that loads the model",
                    seen=f"{self._failed_starts} deaths: {str(error)[:400]}",
                ) from error
            self._seat(worker)
            return
        self._failed_starts = 0
        slot = self._slots[worker]
        slot.is_ready, slot.node, slot.node_id = True, place.node, place.node_id

    def _outcome(self, worker: int, slot: _Slot) -> Outcome | None:
        """Settle a call that ended. An actor that died is replaced, and so is one that lost its
        CUDA context.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        assert slot.shard
        shard, slot.shard = slot.shard, None
        try:
            result = ray.get(slot.call)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if lost_context(cause) or slot.ended:
                self.replace(worker)
            # The cause left its traceback behind; Ray kept it as text, coloured for terminals.
            return Outcome(
                worker, shard, failure_of(cause, _COLOURS.sub("", str(error)), slot.node)
            )
        except RayError as error:
            return self._lost(worker, slot, shard, error)
        # it lives, and may still run the shard, but nobody waits for that any more
        if isinstance(result, Beat):
            result = Failure("lost", "the connection to the worker broke", node=slot.node)
            self.replace(worker)
        elif slot.ended:  # killed, but it was faster: the next shard must not find it dead
            self.replace(worker)
        return Outcome(worker, shard, result)

    def _lost(self, worker: int, slot: _Slot, shard: Shard, error: Exception) -> Outcome | None:
        """Settle a call whose actor is gone. One that cannot be reached is asked until Ray knows
        what became of it.
        """
        from ray.exceptions import ActorUnavailableError

        if slot.ended is None and slot.node_id in self._look():
            slot.ended = "preempted"
        slot.unreachable = slot.unreachable or time.monotonic()
        unknown = (
            isinstance(error, ActorUnavailableError)
            and time.monotonic() - slot.unreachable < UNREACHABLE_S
        )
        if unknown and slot.ended is None:
            slot.shard, slot.call = shard, slot.actor.beat.remote()
            return None
        self.replace(worker)
        return Outcome(worker, shard, worker_failure(error, slot.node, ended=slot.ended))

    def _look(self) -> Mapping[str, float]:
        """Nodes that leave or left, and when; TransientError if the cluster is silent. A Ray Client
        is told nothing.
        """
        if self._heartbeat is None:
            return {}
        self._heartbeat.check()
        return self._heartbeat.leaving

    def _leave_nodes(self, leaving: Mapping[str, float]) -> None:
        """Take workers off nodes that leave: idle ones at once, for a node waits for them; busy
        ones in the last seconds.
        """
        import ray

        for worker, slot in list(self._slots.items()):
            if not slot.is_ready or slot.node_id not in leaving:
                continue
            if slot.shard is None:
                self.replace(worker)
            elif slot.ended is None and 0 < leaving[slot.node_id] < time.time() + LAST_S:
                # another host's clock: if it is wrong, a shard more or less is run again
                slot.ended = "preempted"
                ray.kill(slot.actor)

    def _watch(self) -> None:
        """Ask busy actors how far they are; kill those that finished no step batch for too long."""
        import ray

        now = time.monotonic()
        for slot in self._slots.values():
            if not slot.shard or slot.ended or slot.unreachable:
                continue
            answered = slot.beat is not None and bool(ray.wait([slot.beat], timeout=0)[0])
            if answered:
                ticks = _ticks(slot.beat)
                if ticks is not None and ticks != slot.ticks:
                    slot.ticks, slot.moved = ticks, now
            if slot.beat is None or answered:
                slot.beat = slot.actor.beat.remote()
            if now - slot.moved > self._stall_s:
                slot.ended = "stalled"
                ray.kill(slot.actor)

    def replace(self, worker: int) -> None:
        import ray

        ray.kill(self._slots[worker].actor)
        self._seat(worker)

    def retire(self, worker: int) -> None:
        import ray

        ray.kill(self._slots.pop(worker).actor)

    def close(self) -> None:
        import ray

        if self._joining is not None:
            wait([self._joining])
        if self._heartbeat is not None:
            self._heartbeat.close()
        if ray.is_initialized():
            for slot in self._slots.values():
                ray.kill(slot.actor)
            self._slots.clear()
            if self._own_ray:  # the caller's stays up
                ray.shutdown()
        if self._starter is not None:
            self._starter.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, which aborts the process; only the main
    thread may object.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _found(address: str) -> str:
    """`host:port` of the cluster that Ray finds on this machine for `auto`; other addresses are
    what they say.
    """
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address  # Ray has no public way to ask

    return str(canonicalize_bootstrap_address(address))


def _call(function: Callable[[Item], Made], item: Item) -> Made:
    return function(item)


def _ticks(ref: Any) -> int | None:
    """Ticks of an answered beat; None if its actor died, which the shard's own call will tell."""
    import ray
    from ray.exceptions import RayError

    try:
        beat: Beat = ray.get(ref)
    except RayError:
        return None
    return beat.ticks


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
        raise TransientError(
            "pre-pass",
            expected="a worker that lives through it",
            seen=str(error)[:300],
            next_step="run again: what was written is kept",
        ) from error


def _resources() -> str:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return ", ".join(f"{found.get(k, 0):g} {k}" for k in ("CPU", "GPU"))
