"""Pieces of a job of any kind: what hands them out and counts attempts knows their id and rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Task(Protocol):
    """A piece of a job that one worker does at a time, and commits whole or not at all."""

    @property
    def id(self) -> str:
        """Its name within the job."""

    @property
    def rows(self) -> int:
        """Rows that it reads."""


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True, slots=True)
class Culprit:
    """One row of a task, counted from 0, whose worker was lost whenever the row was tried."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Trial(Generic[AnyTask]):
    """A task that lost its workers, tried again in part, or without the rows that are known to be
    why.

    only      rows [start, stop) to run without a commit; an empty range only reads. None: all,
              committed.
    culprits  rows that are not run: they end as `failed`.
    """

    task: AnyTask
    only: tuple[int, int] | None = None
    culprits: tuple[Culprit, ...] = ()

    @property
    def id(self) -> str:
        return self.task.id

    @property
    def rows(self) -> int:
        return self.task.rows


def whole(task: Task) -> Task:
    """The planned task, where `task` may be a trial of it."""
    return task.task if isinstance(task, Trial) else task
