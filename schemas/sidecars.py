"""What lies beside the objects of a run: the heads of plans, attempts, progress and pointers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from integrand.schemas.record import Record


class SpecHead(Record):
    """What tells of a stored plan whose it is."""

    kind: str = "attribute"
    name: str


class PlanHead(Record):
    """A stored plan of whatever kind."""

    format_version: Literal[1] = 1
    run_id: str
    spec: SpecHead


class Attempt(Record):
    """One failed attempt at a shard. Only charged ones count towards quarantine, and none from
    before a release.
    """

    shard: str
    outcome: Literal[
        "raised", "killed_worker", "stalled", "preempted", "memory", "storage", "lost", "released"
    ]
    rows: tuple[int, int] | None = Field(
        None, description="Rows [start, stop) that were tried; None: all."
    )
    charged: bool
    alone: bool
    reason: str
    detail: str
    node: str
    at: str


class DriverProgress(Record):
    """`_progress.json`: where the driver of a run stood when it last said so. Advisory: nothing is
    decided by it.
    """

    at: str
    shards_done: int
    shards_planned: int
    rows_per_second: float
    eta_s: float | None


class Pointer(Record):
    """`_latest/<name>.json`."""

    run_id: str
    logical_date: str
    written: str
