"""What a check of a run tells: what does not hold, and what could not be checked. Imports neither
torch nor ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from integrand.schemas.errors import IntegrandError

Subject = TypeVar("Subject")
REDO = "move the object away, and `_manifest.json` with it, and run again: its shard is then redone"


@dataclass(frozen=True)
class Finding:
    """Something that does not hold."""

    where: str
    expected: str
    seen: str
    next_step: str = REDO

    def __str__(self) -> str:
        return (
            f"{self.where}\n  expected: {self.expected}\n  seen: {self.seen}\n  next:"
            f" {self.next_step}"
        )


@dataclass(frozen=True)
class Unchecked:
    """Something that may hold or not: it could not be looked at."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


Remark: TypeAlias = Finding | Unchecked


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One question to a run or to a part of it: what it asks, in words, and who answers."""

    name: str
    description: str
    remarks: Callable[[Subject], Iterator[Remark]]


def finding_of(error: IntegrandError) -> Finding:
    """An error that a reader would have ended with."""
    return Finding(error.where, error.expected, error.seen, error.next_step)


def reason(error: IntegrandError) -> str:
    """An error in one line, as the reason why something was not checked."""
    seen = f"seen: {error.seen}" if error.seen else ""
    parts = [part for part in (error.where, seen) if part]
    return ", ".join(parts)


def listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "nothing"
