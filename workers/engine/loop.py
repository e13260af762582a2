"""The step-batch loop: (row, node) items of many rows in batches of one fixed shape; rows enter,
are judged, and leave.

A track is one target of one row; it holds a slot from its first node to its verdict. A block is a
group of tracks that need the same nodes next; when all its items are evaluated, its judge is
called. New rows enter only when the blocks in the queue do not fill a batch. What is summed is
summed in node order, and what is judged is judged per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator, Floats, Integers, Step

Statuses = NDArray[np.object_]
"""RowStatus by track."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Finished tracks: arrays [tracks] and [tracks, elements]; `error` is NaN where a rule gives
    none.

    needed    evaluations that the tolerance would have taken, where a track ended because it is out
              of reach; else 0
    """

    rows: Integers
    targets: Integers
    statuses: Statuses
    attributions: Floats
    gap: Floats
    error: Floats
    evaluations: Integers
    needed: Integers


@dataclass(frozen=True, eq=False)
class Stage:
    """Nodes on [0, 1] that a block evaluates next, and where each one's gradient goes.

    columns    [nodes]: position in the store
    weights    [nodes]: factor of the gradient; None to store it as it is
    edges      (node, column) of gradients that are also kept on their own, weighted alike
    """

    nodes: Floats
    columns: Integers
    store: GradientStore
    weights: Floats | None = None
    edges: tuple[tuple[int, int], ...] = ()


class GradientStore:
    """Per slot and column a gradient, or a sum of gradients: [slots, columns, elements]. Made at
    its first use.
    """

    def __init__(
        self, slots: int, columns: int, elements: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape, self.dtype, self.device = (slots, columns, elements), dtype, device
        self.values = np.zeros((slots, columns))
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        if self._tensor is None:
            self._tensor = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return self._tensor

    def clear(self, slots: Integers) -> None:
        self.tensor[self._index(slots)] = 0

    def keep(self, slots: Integers, columns: Integers, step: Step) -> None:
        """GradientStore gradients and values of f, each in its own place."""
        self.tensor[self._index(slots), self._index(columns)] = step.gradients.to(self.dtype)
        self.values[slots, columns] = step.values.double().cpu().numpy()

    def add(self, slots: Integers, columns: Integers, gradients: Tensor) -> None:
        """index_add_ adds item after item, so the order within a slot is node order wherever
        batches were cut.
        """
        flat = self.tensor.view(-1, self.shape[2])
        flat.index_add_(0, self._index(slots * self.shape[1] + columns), gradients)

    def put(self, slots: Integers, column: int, gradients: Tensor) -> None:
        self.tensor[self._index(slots), column] = gradients

    def read(self, slots: Integers, columns: int) -> Floats:
        """The first columns of some slots, [slots, columns, elements] float64."""
        return self.tensor[self._index(slots), :columns].double().cpu().numpy()

    def write(self, slots: Integers, sums: Floats) -> None:
        self.tensor[self._index(slots)] = torch.from_numpy(sums).to(self.device, self.dtype)

    def _index(self, numbers: Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)


Judge = Callable[[Integers], None]


@dataclass(eq=False)
class TrackGroup:
    """Tracks that need the same nodes of their pieces [start, start + width] of the path.

    slots    [rows, targets]; −1 where a row's target is not part of the block
    """

    rows: Integers
    slots: Integers
    start: Floats
    width: Floats
    stage: Stage
    judge: Judge
    cursor: int = 0

    @property
    def items(self) -> int:
        return len(self.rows) * len(self.stage.nodes)

    @property
    def tracks(self) -> Integers:
        return self.slots[self.slots >= 0]


@dataclass(frozen=True, eq=False)
class Take:
    """The items of a block that are part of one step batch: which of its rows, and which of the
    stage's nodes.
    """

    block: TrackGroup
    row: Integers
    node: Integers


class Loop:
    """Blocks in turn, until none is left and no row is waiting."""

    def __init__(self, evaluator: Evaluator, admit: Callable[[int], TrackGroup | None]) -> None:
        self.evaluator, self.problem, self.admit = evaluator, evaluator.problem, admit
        self.queue: deque[TrackGroup] = deque()

    def run(self) -> Iterator[None]:
        """One step batch at a time; finished blocks have been judged when it yields."""
        while takes := self._fill():
            self._evaluate(takes)
            for take in takes:
                if take.block.cursor == take.block.items:
                    take.block.judge(take.block.tracks)
            yield

    def _fill(self) -> list[Take]:
        """The items of the next step batch, from the queue and, where that leaves room, from new
        rows.
        """
        takes, room = [], self.problem.batch_rows
        while room:
            if not self.queue:
                block = self.admit(room)
                if block is None:
                    break
                self.queue.append(block)
            block = self.queue[0]
            first, block.cursor = block.cursor, min(block.items, block.cursor + room)
            room -= block.cursor - first
            items = np.arange(first, block.cursor)
            takes.append(
                Take(block, items // len(block.stage.nodes), items % len(block.stage.nodes))
            )
            if block.cursor == block.items:
                self.queue.popleft()
        return takes

    def _evaluate(self, takes: list[Take]) -> None:
        rows = np.concatenate([t.block.rows[t.row] for t in takes])
        alphas = np.concatenate(
            [
                t.block.start[t.row] + t.block.width[t.row] * t.block.stage.nodes[t.node]
                for t in takes
            ]
        )
        wanted = [
            i
            for i in range(self.problem.targets_per_row)
            if any((t.block.slots[:, i] >= 0).any() for t in takes)
        ]
        steps = self.evaluator.gradients(
            torch.from_numpy(rows).to(self.problem.device),
            torch.from_numpy(alphas).to(self.problem.device),
            wanted,
        )
        end = 0
        for take in takes:
            start, end = end, end + len(take.row)
            for target, step in zip(wanted, steps, strict=True):
                _put(take, target, Step(step.gradients[start:end], step.values[start:end]))


def _put(take: Take, target: int, step: Step) -> None:
    """Hand one target's gradients of a take to the stage's store."""
    stage, slots = take.block.stage, take.block.slots[take.row, target]
    node = take.node
    if (slots < 0).any():
        there = np.flatnonzero(slots >= 0)
        index = torch.from_numpy(there).to(step.gradients.device)
        slots, node, step = (
            slots[there],
            node[there],
            Step(step.gradients[index], step.values[index]),
        )
    if not len(slots):
        return
    if stage.weights is None:
        stage.store.keep(slots, stage.columns[node], step)
        return
    gradients = step.gradients.double()
    for edge, column in stage.edges:
        at = np.flatnonzero(node == edge)
        if len(at):
            stage.store.put(slots[at], column, gradients[torch.from_numpy(at).to(gradients.device)])
    weights = torch.from_numpy(stage.weights[node]).to(gradients.device)
    stage.store.add(slots, stage.columns[node], gradients * weights[:, None])
