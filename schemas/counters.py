"""How a counter of many shards comes about: said once, at its field, and read by whoever adds up,
compares or counts again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from integrand.schemas.records import ShardFooter

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Adds(Generic[Value]):
    """How a field of what disjoint sets of shards hold adds up, as in `Annotated[int, Adds(sum)]`.

    add      the union's value from those of its parts: associative, commutative; of no parts the
             neutral value
    of       the value of one shard; None: its footer's field of the same name
    in_rows  whether the stored rows of a shard tell that field, so that it can be counted again
    alike    whether two values are the same
    """

    add: Callable[[Sequence[Value]], Value]
    of: Callable[[ShardFooter], Value] | None = None
    in_rows: bool = True
    alike: Callable[[Value, Value], bool] = operator.eq

    @property
    def recounted(self) -> bool:
        """Whether the footer's field of the same name can be counted again."""
        return self.of is None and self.in_rows


def counters(kind: type[BaseModel]) -> dict[str, Adds[Any]]:
    """The fields of a record that say how they add up, in their order."""
    return {
        name: rule
        for name, field in kind.model_fields.items()
        for rule in field.metadata
        if isinstance(rule, Adds)
    }


# --- ways to add up ----------------------------------------------------------------------------


def add_by_key(counts: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    """Sum of several counters, keys sorted."""
    total: dict[str, Number] = {}
    for key in sorted(set().union(*counts)):
        total[key] = sum(count.get(key, 0) for count in counts)
    return total


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of those that there are."""
    known = [value for value in values if value is not None]
    return max(known, default=None)


def first(most: int) -> Callable[[Iterable[tuple[str, ...]]], tuple[str, ...]]:
    """Different names, sorted, the first `most` of them alone: sums must not grow with the run."""

    def add(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        different: set[str] = set()
        different.update(*parts)
        return tuple(sorted(different)[:most])

    return add


def close(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether sums of floats are the same but for the order in which they were added."""
    return one.keys() == other.keys() and all(
        math.isclose(one[k], other[k], rel_tol=1e-9, abs_tol=1e-9) for k in one
    )
