"""What a kind of target says of a model's outputs and of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.part import kind_of
from integrand.schemas.specs.targets import TargetPart

Kind = TypeVar("Kind", bound=TargetPart)
Choice = Callable[[Tensor], Tensor]
"""From outputs `[rows, outputs]` to the indices that are explained, `[rows, targets]` int64."""


@dataclass(frozen=True, eq=False)
class TargetRows:
    """Rows whose targets are asked for.

    count    how many there are
    outputs  how many outputs the model has, None where they are no `[rows, outputs]`
    device   where their targets go
    column   what the source's target columns hold, `[rows]` int64, or `[rows, depth]` of several;
             None where the spec names none
    choose   runs the model on every row and gives the choice of its outputs
    """

    count: int
    outputs: int | None
    device: str
    column: Tensor | None
    choose: Callable[[Choice], Tensor]


class TargetKind(ABC, Generic[Kind]):
    """One kind of target, for its part of the spec.

    An extender overrides `of_sample` and `of_rows`, or takes `SameTargets` where every row has the
    same; `check` where other outputs than `[rows, outputs]` will do; `view` where numbers are made
    of outputs first; `refusals` where a row may name an output that is not there. How many targets
    a row has, which they are where that is known from the spec, and the columns that name them, if
    some do, stand in the part itself.
    """

    known_without_model: ClassVar[bool] = True
    """Whether a row that the model raises on has its target all the same."""

    def view(self, target: Kind) -> nn.Module | None:
        """What follows the model and counts as a part of it, so that the target is one of outputs
        of this; None where it is one of the model's own. It takes the output, and the part's
        weights `[rows, ...]` where it has some.
        """
        return None

    def check(self, target: Kind, out: Tensor) -> None:
        """Raises SpecError where outputs of this shape have no such targets."""
        if out.ndim != 2:
            raise SpecError(
                f"target.kind {kind_of(type(target))}",
                expected="model outputs [rows, outputs]",
                seen=f"shape {list(out.shape)}",
                next_step="use `scalar`, or `index` with a list",
            )

    @abstractmethod
    def of_sample(
        self, target: Kind, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor | None:
        """The first target of each row to plan with, `[rows, depth]` int64 on the device of `out`;
        None for scalar outputs.

        out     the model's outputs of these rows, seen by `check`
        column  their target columns, `[rows]` or `[rows, depth]` int64, if there are some

        Raises SpecError where the rows name no output of the model.
        """

    @abstractmethod
    def of_rows(self, target: Kind, rows: TargetRows) -> Tensor | None:
        """All targets of rows, `[rows, targets, depth]` int64; None for scalar outputs."""

    def refusals(self, column: Tensor, sizes: tuple[int, ...]) -> Mapping[int, str]:
        """Why rows are bad whose target the model does not have, by row; `sizes` of its output
        after the rows.
        """
        return {}


class SameTargets(TargetKind[Kind]):
    """Targets that every row has, as its part's `places` say them."""

    def of_sample(
        self, target: Kind, rows: int, out: Tensor, column: Tensor | None
    ) -> Tensor | None:
        table = _repeated(target, output_width(out), rows, str(out.device))
        return None if table is None else table[:, 0]

    def of_rows(self, target: Kind, rows: TargetRows) -> Tensor | None:
        return _repeated(target, rows.outputs, rows.count, rows.device)


def output_width(out: Tensor) -> int | None:
    """How many outputs a model has, where they are `[rows, outputs]`."""
    return int(out.shape[-1]) if out.ndim == 2 else None


def outside(places: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """`[rows]` bool: which places `[rows, depth]` an output of these sizes does not have."""
    limits = torch.tensor(sizes, device=places.device)
    return ((places < 0) | (places >= limits)).any(1)


def refused(places: Tensor, sizes: tuple[int, ...]) -> dict[int, str]:
    """Why rows are bad whose place, `[rows]` or `[rows, depth]`, is outside, by row."""
    table = places.reshape(len(places), len(sizes))
    wrong = outside(table, sizes).nonzero().flatten().tolist()
    known = f"{told(0 for _ in sizes)}..{told(size - 1 for size in sizes)}"
    return {row: f"target {told(table[row].tolist())} is outside {known}" for row in wrong}


def told(place: Iterable[int]) -> str:
    """A place as the column `target` shows it."""
    return ",".join(map(str, place))


def _repeated(target: TargetPart, outputs: int | None, rows: int, device: str) -> Tensor | None:
    places = target.places(outputs)
    if not places or not places[0]:
        return None
    return torch.tensor(places, device=device).expand(rows, -1, -1)
