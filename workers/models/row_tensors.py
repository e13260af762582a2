"""Rows as a model gets them: what is attributed, where its paths start, what goes along, and which
output is explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowTensors:
    """The tensors of some rows, none of them looked at.

    inputs        one per input, `[rows, ...]`
    baselines     like inputs, or `[1, ...]` where all rows share it; none where no path is meant
    forward_args  passed after the inputs and not attributed, `[rows, ...]`
    target        output indices `[rows, ...]` int64, or `[1, ...]` where all rows share them; None
                  for scalar outputs
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...] = ()
    forward_args: tuple[Tensor, ...] = ()
    target: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[0]

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the model is called with."""
        return (*self.inputs, *self.forward_args)

    @property
    def elements(self) -> int:
        """Attributed elements of a row, of all inputs."""
        return sum(x.shape[1:].numel() for x in self.inputs)

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    def take(self, index: Tensor | slice) -> RowTensors:
        """The rows of these numbers; what all rows share stays as it is."""
        return RowTensors(
            tuple(x[index] for x in self.inputs),
            tuple(shared_or_taken(b, index) for b in self.baselines),
            tuple(a[index] for a in self.forward_args),
            None if self.target is None else shared_or_taken(self.target, index),
        )

    def repeat(self, rows: int) -> RowTensors:
        """The same rows over and over, `rows` in all."""
        return self.take(torch.arange(rows, device=self.device) % self.rows)

    def expanded(self) -> RowTensors:
        """The same rows, each with a baseline and a target of its own."""
        index = torch.arange(self.rows, device=self.device)
        return replace(
            self,
            baselines=tuple(one_each(b, index) for b in self.baselines),
            target=None if self.target is None else one_each(self.target, index),
        )

    def to(self, device: torch.device | str) -> RowTensors:
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> RowTensors:
        """The same change to every tensor."""
        return RowTensors(
            tuple(change(x) for x in self.inputs),
            tuple(change(b) for b in self.baselines),
            tuple(change(a) for a in self.forward_args),
            None if self.target is None else change(self.target),
        )


def shared_or_taken(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """The rows of these numbers, or the one row that all share."""
    return tensor if tensor.shape[0] == 1 else tensor[index]


def one_each(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows of these numbers `[len(rows), ...]`; a shared one is a view, expanded."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(rows), *tensor.shape[1:])
    return tensor.index_select(0, rows)


def padded(rows: Tensor, size: int) -> Tensor:
    """`size` rows: those given, and the last one over and over."""
    missing = size - len(rows)
    if not missing:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
