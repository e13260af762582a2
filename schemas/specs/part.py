"""What every piece of a spec is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, Tag

Rule = Literal["left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
InputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Numbers = float | tuple[float, ...]

_MOST = 2**31 - 1
"""Torch and Arrow count in 32 bits here and there; `target` is an int32 column."""

Count = Annotated[int, Field(ge=1, le=_MOST)]


@dataclass(frozen=True)
class Read:
    """A column of the source that a part reads.

    holds  what its cells are taken as where they are text: numbers, whole numbers, lists of them,
           or the text itself
    shape  that nested lists must have; () if the part does not know
    """

    column: str
    holds: Literal["number", "integer", "list", "text"]
    shape: tuple[int, ...] = ()


class Part(BaseModel):
    """Base of every piece of a spec: frozen, no unknown fields, finite numbers only."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @property
    def reads(self) -> tuple[Read, ...]:
        """The columns of the source that this part reads, in order; a part that reads overrides
        it.
        """
        return ()


def branches_of(annotation: object, tag: str | None = None) -> dict[str, type[Part]]:
    """The parts that an annotation names, at any depth, by the word that tells them apart: tag,
    kind or class.
    """
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return {tag or str(kind_of(annotation) or annotation.__name__): annotation}
    inner = get_args(annotation)
    tag = next((str(mark.tag) for mark in inner if isinstance(mark, Tag)), tag)
    found: dict[str, type[Part]] = {}
    for part in inner:
        found |= branches_of(part, tag)
    return found


def kind_of(part: type[Part]) -> str | None:
    """The `kind` that a spec names this part by; None of parts that are told apart otherwise."""
    field = part.model_fields.get("kind")
    return None if field is None else str(field.default)


def repeated(names: Sequence[str]) -> list[str]:
    """Those that stand more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
