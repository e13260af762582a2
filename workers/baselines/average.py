"""Several kinds of baseline side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from integrand.schemas.specs.baselines import AverageBaseline, BaselinePart
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.data.prepasses.base import PrePass


@dataclass(frozen=True)
class Average(BaselineKind[AverageBaseline]):
    """The draws of all its members, one member after the other.

    kinds  those that a member may be of
    """

    kinds: Mapping[type[BaselinePart], BaselineKind[Any]]

    def prepasses(self, part: AverageBaseline) -> tuple[PrePass[Any], ...]:
        needed = (self._kind(member).prepasses(member) for member in part.of)
        return tuple(chain.from_iterable(needed))

    def check(self, part: AverageBaseline, place: Place) -> None:
        """SpecError for a member that does not fit the input."""
        for member in part.of:
            self._kind(member).check(member, place)

    def tensor(self, part: AverageBaseline, rows: PlaceRows) -> Tensor:
        tensors = list(self._members(part, rows))
        draws = [member.draws_per_row for member in part.of]
        pairs = list(zip(tensors, draws, strict=True))
        if all(len(tensor) == count for tensor, count in pairs):
            return torch.cat(tensors)
        each = [_of_each_row(tensor, count, rows.rows) for tensor, count in pairs]
        return torch.cat(each, 1).flatten(0, 1)

    def _members(self, part: AverageBaseline, rows: PlaceRows) -> Iterator[Tensor]:
        for number, member in enumerate(part.of):
            yield self._kind(member).tensor(member, replace(rows, member=number))

    def _kind(self, member: BaselinePart) -> BaselineKind[Any]:
        return self.kinds[type(member)]


def _of_each_row(tensor: Tensor, draws: int, rows: int) -> Tensor:
    """`[rows, draws, *shape]` of a tensor that rows share or not."""
    shape = tensor.shape[1:]
    if len(tensor) == draws:
        return tensor.expand(rows, draws, *shape)
    return tensor.reshape(rows, draws, *shape)
