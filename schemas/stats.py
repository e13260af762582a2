"""What the footers of many shards amount to, and the blocks in which a run folder caches that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from integrand.schemas.ids import add_digests
from integrand.schemas.records import Record

MOST_ENVIRONMENTS, MOST_REASONS = 16, 8
"""Most that are kept by name, first in alphabetical order: what is folded must not grow with the
run.
"""


class Stats(Record):
    """What a set of shards holds. A commutative monoid: `merge` of two tells of the union of
    disjoint sets.

    Nothing in it grows with rows or shards.
    """

    shards: int = 0
    rows_in: int = 0
    rows_out: int = 0
    statuses: dict[str, int] = Field({}, description="Output rows by status.")
    gap_histogram: dict[str, int] = Field(
        {}, description="Rows by decimal exponent of |gap|, as in footers."
    )
    error_histogram: dict[str, int] = Field(
        {}, description="Rows by decimal exponent of error_estimate."
    )
    gap_max: float | None = None
    error_max: float | None = None
    evaluations: int = 0
    padded_evaluations: int = 0
    duplicates: int = 0
    digest: str = Field(add_digests(()), description="Logical digest of the rows.")
    seconds: dict[str, float] = Field({}, description="Time of workers by stage.")
    environments: tuple[str, ...] = Field(
        (), description="Torch builds and processors that made the rows."
    )
    lowered: int = Field(0, description="Shards of determinism level `tolerance`.")
    lowered_reasons: tuple[str, ...] = Field(
        (), description="Why, said of the first of these shards."
    )


@dataclass(frozen=True, slots=True)
class Member:
    """One shard's object as storage tells of it: `version` is its ETag, or its time of change in ns
    if local.

    Without a version (an empty one) nothing tells whether it is still the same.
    """

    shard: str
    size: int
    version: str


class Block(Record):
    """`_stats/<sha256 of these bytes>.json`: footers folded together, for as long as every member
    is what it was.
    """

    format_version: Literal[1] = 1
    plan_sha256: str
    members: tuple[Member, ...]
    stats: Stats
