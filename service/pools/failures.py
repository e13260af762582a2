"""Why an attempt at a task gave no footer: what it raised, or what took its worker away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from integrand.schemas.errors import IntegrandError, TransientError
from integrand.schemas.redaction import redact

FailureKind = Literal[
    "raised", "killed_worker", "stalled", "preempted", "memory", "storage", "lost"
]
Ended = Literal["stalled", "preempted"]
"""Why we killed a worker ourselves."""

_ENDED: dict[Ended, str] = {
    "stalled": "no step batch finished within the stall limit; the worker was killed",
    "preempted": "the worker's node was being taken away",
}
# As Ray 2.60 words them: it has no class for an actor whose node died, nor for one whose driver's
# node did.
_NODE_DIED = ("its node has died", "its owner has died")
_OUT_OF_MEMORY = "due to the node running low on memory"


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave no footer. `error` is set where it was one of our own."""

    kind: FailureKind
    reason: str
    detail: str = ""
    node: str = ""
    error: IntegrandError | None = None


def failure_of(error: Exception, trace: str, node: str = "") -> Failure:
    """An exception raised by a task, as a failure: storage faults are told apart from what the
    task did.
    """
    own = error if isinstance(error, IntegrandError) else None
    kind: FailureKind = "storage" if isinstance(error, TransientError) else "raised"
    return Failure(
        kind, redact(f"{type(error).__name__}: {error}")[:500], redact(trace)[-4000:], node, own
    )


def worker_failure(error: Exception, node: str, *, ended: Ended | None) -> Failure:
    """What took an actor away: we did, for the reason `ended`, or what Ray tells of it."""
    text = _ENDED[ended] if ended else redact(" ".join(str(error).split()))[:600]
    return Failure(ended or _kind(error), text, type(error).__name__, node)


def lost_context(error: Exception) -> bool:
    """Whether a process can use its GPU no more, as after an illegal access: every later call in it
    fails too.
    """
    return "CUDA error" in str(error)


def _kind(error: Exception) -> FailureKind:
    from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError

    text = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError) or _OUT_OF_MEMORY in text:
        return "memory"
    if getattr(error, "preempted", False):
        return "preempted"
    if isinstance(error, NodeDiedError | ActorUnavailableError) or any(
        sign in text for sign in _NODE_DIED
    ):
        return "lost"
    return "killed_worker"
