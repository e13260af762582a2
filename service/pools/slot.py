"""One place of a pool: the actor that fills it, the task it runs, and what becomes of both."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from integrand.schemas.records import TaskFooter
from integrand.schemas.tasks import Task
from integrand.service.pools.failures import (
    Ended,
    Failure,
    failure_of,
    lost_context,
    worker_failure,
)
from integrand.workers.actor import Place
from integrand.workers.task_workers import Beat

UNREACHABLE_S = 60.0
"""How long Ray may take to find out that a node is dead: its head asks each one every 3 s, five
times.
"""
LAST_S = 5.0
"""A task that runs is dropped so long before its node goes, lest it commit after that."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class End:
    """What an attempt came to, and whether its actor can be given no other task."""

    result: TaskFooter | Failure | None
    actor_lost: bool


@dataclass
class Slot:
    """An actor and the one call it is busy with.

    A slot starts, is ready, is busy with a task, and is ready again; a fresh one takes its place
    once its actor is lost.
    """

    actor: Any
    loading: Any
    since: float
    place: Place | None = None
    task: Task | None = None
    call: Any = None
    beat: Any = None
    ticks: int = -1
    moved: float = 0.0
    killed: Ended | None = None
    unreachable: float | None = None

    @classmethod
    def fresh(cls, actors: Any, setup: Any) -> Slot:
        """A new actor of a remote class, which begins to load what `setup` refers to."""
        actor = actors.remote()
        return cls(actor, actor.load.remote(setup), time.monotonic())

    @property
    def is_ready(self) -> bool:
        return self.place is not None

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.task is None

    @property
    def node(self) -> str:
        return self.place.node if self.place else ""

    @property
    def node_id(self) -> str:
        return self.place.node_id if self.place else ""

    @property
    def pending(self) -> Any:
        """What Ray is asked to wait for; None of an idle actor."""
        if not self.is_ready:
            return self.loading
        return self.call if self.task is not None else None

    def submit(self, task: Task, prefetch: Task | None) -> None:
        """Begin a task; what was seen of the one before is forgotten."""
        self.task = task
        self.call = self.actor.run.remote(task, prefetch)
        self.moved = time.monotonic()
        self.ticks = -1
        self.beat = self.killed = self.unreachable = None

    def ended(self, leaving: Callable[[], Mapping[str, float]]) -> End | None:
        """What a call came to that is over; None while Ray does not know what became of its actor.

        leaving   asked for the nodes that go or went, where an actor died with its node
        """
        try:
            result = ray.get(self.call)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            # The cause left its traceback behind; Ray kept it as text, coloured for terminals.
            failure = failure_of(cause, _COLOURS.sub("", str(error)), self.node)
            return End(failure, lost_context(cause) or self.killed is not None)
        except RayError as error:
            return self._lost(error, leaving)
        # it lives, and may still run the task, but nobody waits for that any more
        if isinstance(result, Beat):
            broken = Failure("lost", "the connection to the worker broke", node=self.node)
            return End(broken, actor_lost=True)
        # if it was killed, it was faster: the next task must not find it dead
        return End(result, self.killed is not None)

    def _lost(self, error: RayError, leaving: Callable[[], Mapping[str, float]]) -> End | None:
        """An actor that cannot be reached is asked until Ray knows what became of it."""
        if self.killed is None and self.node_id in leaving():
            self.killed = "preempted"
        self.unreachable = self.unreachable or time.monotonic()
        may_live = isinstance(error, ActorUnavailableError) and self.killed is None
        if may_live and time.monotonic() - self.unreachable < UNREACHABLE_S:
            self.call = self.actor.beat.remote()
            return None
        return End(worker_failure(error, self.node, ended=self.killed), actor_lost=True)

    def kill(self, reason: Ended) -> None:
        """End a busy actor; its call will tell, and give this reason."""
        self.killed = reason
        ray.kill(self.actor)

    def must_leave(self, leaving: Mapping[str, float]) -> bool:
        """Whether its node goes so soon that a task which runs there is dropped."""
        # another host's clock: if it is wrong, a task more or less is run again
        return self.killed is None and 0 < leaving[self.node_id] < time.time() + LAST_S

    def watch(self, stall_s: float) -> None:
        """Ask a busy actor how far it is; kill it if it finished no step batch for so long."""
        if self.task is None or self.killed or self.unreachable:
            return
        now = time.monotonic()
        answered = self.beat is not None and bool(ray.wait([self.beat], timeout=0)[0])
        ticks = _ticks(self.beat) if answered else None
        if ticks is not None and ticks != self.ticks:
            self.ticks = ticks
            self.moved = now
        if self.beat is None or answered:
            self.beat = self.actor.beat.remote()
        if now - self.moved > stall_s:
            self.kill("stalled")


def _ticks(ref: Any) -> int | None:
    """Ticks of an answered beat; None if its actor died, which the task's own call will tell."""
    try:
        beat: Beat = ray.get(ref)
    except RayError:
        return None
    return beat.ticks
