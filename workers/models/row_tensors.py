"""Rows as a model gets them: what is attributed, where its paths start, what goes along, and which
output is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from integrand.workers.models.reporting import Reporting


@dataclass(frozen=True, eq=False)
class RowTensors:
    """The tensors of some rows, none of them looked at.

    inputs        one per input, `[rows, ...]`
    baselines     like inputs, or `[1, ...]` where all rows share it; none where no path is meant
    forward_args  passed after the inputs and not attributed, `[rows, ...]`
    target        output indices `[rows, ...]` int64, or `[1, ...]` where all rows share them; None
                  for scalar outputs
    draws         baselines of each row, K. Where there are several, a baseline is `[1, ...]`, the
                  same for all, `[K, ...]`, shared by all rows, or `[rows × K, ...]`, each row's
                  own, one draw after the other; a forward argument may be `[rows × K, ...]`, too
    keys          `[rows, 2]` int64, by which rows draw random numbers; None where none is drawn
    reporting     what is reported of rows; None where that is their attributions alone
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...] = ()
    forward_args: tuple[Tensor, ...] = ()
    target: Tensor | None = None
    draws: int = 1
    keys: Tensor | None = None
    reporting: Reporting | None = None

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

    @property
    def paths(self) -> int:
        """A row's path to each of its baselines: draw by draw of one row after the other."""
        return self.rows * self.draws

    def owner(self, paths: Tensor) -> Tensor:
        """The rows that paths belong to."""
        return paths if self.draws == 1 else paths // self.draws

    def of_row(self, tensor: Tensor, paths: Tensor) -> Tensor:
        """What the rows of these paths have of an input or an argument, a copy `[paths, ...]`; of
        an argument what the path has, where each has its own.
        """
        own = tensor.shape[0] == self.paths
        return tensor.index_select(0, paths if own else self.owner(paths))

    def of_draw(self, baseline: Tensor, paths: Tensor) -> Tensor:
        """Where these paths start, `[paths, ...]`."""
        if self.draws > 1 and baseline.shape[0] == self.draws:
            return one_each(baseline, paths % self.draws)
        return one_each(baseline, paths)

    def take(self, index: Tensor | slice) -> RowTensors:
        """The rows of these numbers; what all rows share stays as it is."""

        def own(tensor: Tensor) -> Tensor:
            """Of rows, or of all paths of each."""
            if tensor.shape[0] == self.rows:
                return tensor[index]
            by_row = tensor.reshape(self.rows, self.draws, *tensor.shape[1:])
            return by_row[index].flatten(0, 1)

        def own_or_shared(baseline: Tensor) -> Tensor:
            shared = self.draws > 1 and baseline.shape[0] == self.draws
            return baseline if shared or baseline.shape[0] == 1 else own(baseline)

        return replace(
            self,
            inputs=tuple(x[index] for x in self.inputs),
            baselines=tuple(own_or_shared(b) for b in self.baselines),
            forward_args=tuple(own(a) for a in self.forward_args),
            target=None if self.target is None else shared_or_taken(self.target, index),
            keys=None if self.keys is None else self.keys[index],
            reporting=self._reporting(lambda members: shared_or_taken(members, index)),
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

    def first_draw(self) -> RowTensors:
        """The same rows with the first of their baselines alone."""
        if self.draws == 1:
            return self
        return self._along(torch.arange(self.rows, device=self.device) * self.draws)

    def along_paths(self) -> RowTensors:
        """Every path as a row with one baseline."""
        if self.draws == 1:
            return self
        return self._along(torch.arange(self.paths, device=self.device))

    def _along(self, paths: Tensor) -> RowTensors:
        """These paths as rows."""
        return RowTensors(
            tuple(self.of_row(x, paths) for x in self.inputs),
            tuple(b if b.shape[0] == 1 else self.of_draw(b, paths) for b in self.baselines),
            tuple(self.of_row(a, paths) for a in self.forward_args),
            None if self.target is None else one_each(self.target, self.owner(paths)),
            keys=None if self.keys is None else self.of_row(self.keys, paths),
            reporting=self._reporting(lambda m: one_each(m, self.owner(paths))),
        )

    def _reporting(self, change: Callable[[Tensor], Tensor]) -> Reporting | None:
        return None if self.reporting is None else self.reporting.each(change)

    def to(self, device: torch.device | str) -> RowTensors:
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> RowTensors:
        """The same change to every tensor."""
        return replace(
            self,
            inputs=tuple(change(x) for x in self.inputs),
            baselines=tuple(change(b) for b in self.baselines),
            forward_args=tuple(change(a) for a in self.forward_args),
            target=None if self.target is None else change(self.target),
            keys=None if self.keys is None else change(self.keys),
            reporting=self._reporting(change),
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


def keys_of_rows(tensors: Sequence[Tensor]) -> Tensor:
    """A key for each row, made of what it holds: `[rows, 2]` int64, on the device of the rows."""
    arrays = [t.detach().reshape(len(t), -1).cpu().contiguous().view(torch.uint8) for t in tensors]
    digests = []
    for row in range(len(tensors[0])):
        digest = blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[row].numpy().tobytes())
        digests.append(digest.digest())
    keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64)
    return keys.reshape(-1, 2).to(tensors[0].device)
