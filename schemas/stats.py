"""What the footers of many shards amount to, and the blocks in which a run folder caches that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from integrand.schemas.counters import Adds, add_by_key, close, counters, first, largest
from integrand.schemas.ids import add_digests
from integrand.schemas.record import Record
from integrand.schemas.records import ShardFooter

MOST_ENVIRONMENTS, MOST_REASONS = 16, 8
"""Most that are kept by name, first in alphabetical order: what is folded must not grow with the
run.
"""


def _lowered(footer: ShardFooter) -> bool:
    return footer.determinism == "tolerance"


def _lowered_reasons(footer: ShardFooter) -> tuple[str, ...]:
    if not _lowered(footer):
        return ()
    why = footer.lowered or "says so"
    return (f"shard {footer.shard} {why}",)


class Stats(Record):
    """What a set of shards holds. A commutative monoid: the sum of two tells of the union of
    disjoint sets.

    Every field says how it adds up, and what it is of one shard where no field of a footer has its
    name. Nothing in it grows with rows or shards.
    """

    shards: Annotated[int, Adds(sum, of=lambda footer: 1)] = 0
    rows_in: Annotated[int, Adds(sum, in_rows=False)] = 0
    rows_out: Annotated[int, Adds(sum)] = 0
    statuses: Annotated[dict[str, int], Adds(add_by_key)] = Field(
        {}, description="Output rows by status."
    )
    gap_histogram: Annotated[dict[str, int], Adds(add_by_key)] = Field(
        {}, description="Rows by decimal exponent of |gap|, as in footers."
    )
    error_histogram: Annotated[dict[str, int], Adds(add_by_key)] = Field(
        {}, description="Rows by decimal exponent of error_estimate."
    )
    gap_max: Annotated[float | None, Adds(largest, of=lambda footer: footer.gap.max)] = None
    error_max: Annotated[float | None, Adds(largest, of=lambda footer: footer.error.max)] = None
    reasons: Annotated[dict[str, int], Adds(add_by_key)] = Field(
        {}, description="Rows that get reasons, by reasons_status."
    )
    evaluations: Annotated[int, Adds(sum)] = 0
    padded_evaluations: Annotated[int, Adds(sum, in_rows=False)] = 0
    duplicates: Annotated[int, Adds(sum, in_rows=False)] = 0
    digest: Annotated[str, Adds(add_digests)] = Field(
        add_digests(()), description="Logical digest of the rows."
    )
    seconds: Annotated[dict[str, float], Adds(add_by_key, in_rows=False, alike=close)] = Field(
        {}, description="Time of workers by stage."
    )
    environments: Annotated[
        tuple[str, ...],
        Adds(first(MOST_ENVIRONMENTS), of=lambda footer: (footer.environment,)),
    ] = Field((), description="Torch builds and processors that made the rows.")
    lowered: Annotated[int, Adds(sum, of=_lowered)] = Field(
        0, description="Shards of determinism level `tolerance`."
    )
    lowered_reasons: Annotated[tuple[str, ...], Adds(first(MOST_REASONS), of=_lowered_reasons)] = (
        Field((), description="Why, said of the first of these shards.")
    )


COUNTERS = counters(Stats)


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
