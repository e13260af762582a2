"""The step-batch loop: (row, node) items of many rows in batches of one fixed shape; rows enter,
are judged, and leave.

A track is one target of one row; it holds a slot from its first node to its verdict. Tracks that
need the same nodes next form a group; when all its items are evaluated, its judge is called. New
rows enter only when the groups in the queue do not fill a batch. What is summed is summed in node
order, and what is judged is judged per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.steps import Step

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
    """Nodes on [0, 1] that a group evaluates next, and where each one's gradient goes.

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
        self.shape = (slots, columns, elements)
        self.dtype = dtype
        self.device = device
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
        """Store gradients and values of f, each in its own place."""
        at = self._index(slots), self._index(columns)
        self.tensor[at] = step.gradients.to(self.dtype)
        values = step.values.double().cpu()
        self.values[slots, columns] = values.numpy()

    def add(self, slots: Integers, columns: Integers, gradients: Tensor) -> None:
        """index_add_ adds item after item, so the order within a slot is node order wherever
        batches were cut.
        """
        _, each, elements = self.shape
        flat = self.tensor.view(-1, elements)
        places = self._index(slots * each + columns)
        flat.index_add_(0, places, gradients)

    def put(self, slots: Integers, column: int, gradients: Tensor) -> None:
        self.tensor[self._index(slots), column] = gradients

    def read(self, slots: Integers, columns: int) -> Floats:
        """The first columns of some slots, [slots, columns, elements] float64."""
        found = self.tensor[self._index(slots), :columns]
        return found.double().cpu().numpy()

    def write(self, slots: Integers, sums: Floats) -> None:
        values = torch.from_numpy(sums)
        self.tensor[self._index(slots)] = values.to(self.device, self.dtype)

    def _index(self, numbers: Integers) -> Tensor:
        contiguous = np.ascontiguousarray(numbers)
        return torch.from_numpy(contiguous).to(self.device)


Judge = Callable[[Integers], None]


@dataclass(eq=False)
class TrackGroup:
    """Tracks that need the same nodes of their pieces [start, start + width] of the path.

    slots    [rows, targets]; −1 where a row's target is not part of the group
    cursor   items that were taken already
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
    def taken(self) -> bool:
        """Whether no item is left."""
        return self.cursor == self.items

    @property
    def tracks(self) -> Integers:
        return self.slots[self.slots >= 0]

    def take(self, most: int) -> Take:
        """The next items, `most` of them at most."""
        first = self.cursor
        self.cursor = min(self.items, first + most)
        items = np.arange(first, self.cursor)
        row, node = np.divmod(items, len(self.stage.nodes))
        return Take(self, row, node)


@dataclass(frozen=True, eq=False)
class Take:
    """The items of a group that are part of one step batch: which of its rows, and which of the
    stage's nodes.
    """

    group: TrackGroup
    row: Integers
    node: Integers

    def __len__(self) -> int:
        return len(self.row)

    @property
    def rows(self) -> Integers:
        """Row numbers of the problem."""
        return self.group.rows[self.row]

    @property
    def alphas(self) -> Floats:
        """Places on the rows' paths."""
        group = self.group
        nodes = group.stage.nodes[self.node]
        return group.start[self.row] + group.width[self.row] * nodes


class Loop:
    """Groups in turn, until none is left and no row is waiting."""

    def __init__(self, evaluator: Evaluator, admit: Callable[[int], TrackGroup | None]) -> None:
        self.evaluator = evaluator
        self.problem = evaluator.problem
        self.admit = admit
        self.queue: deque[TrackGroup] = deque()

    def run(self) -> Iterator[None]:
        """One step batch at a time; finished groups have been judged when it yields."""
        while takes := self._fill():
            self._evaluate(takes)
            for take in takes:
                if take.group.taken:
                    take.group.judge(take.group.tracks)
            yield

    def _fill(self) -> list[Take]:
        """The items of the next step batch, from the queue and, where that leaves room, from new
        rows.
        """
        takes: list[Take] = []
        room = self.problem.batch_rows
        while room:
            if not self.queue:
                group = self.admit(room)
                if group is None:
                    break
                self.queue.append(group)
            take = self.queue[0].take(room)
            takes.append(take)
            room -= len(take)
            if take.group.taken:
                self.queue.popleft()
        return takes

    def _evaluate(self, takes: list[Take]) -> None:
        rows = torch.from_numpy(np.concatenate([take.rows for take in takes]))
        alphas = torch.from_numpy(np.concatenate([take.alphas for take in takes]))
        wanted = self._wanted(takes)
        device = self.problem.device
        steps = self.evaluator.gradients(rows.to(device), alphas.to(device), wanted)
        end = 0
        for take in takes:
            start, end = end, end + len(take)
            for target, step in zip(wanted, steps, strict=True):
                _store(take, target, step.part(slice(start, end)))

    def _wanted(self, takes: list[Take]) -> list[int]:
        """Targets that any of the groups is about."""
        wanted = np.zeros(self.problem.targets_per_row, bool)
        for take in takes:
            wanted |= (take.group.slots >= 0).any(0)
        return np.flatnonzero(wanted).tolist()


def _store(take: Take, target: int, step: Step) -> None:
    """Hand one target's gradients of a take to the stage's store."""
    stage = take.group.stage
    slots, node = take.group.slots[take.row, target], take.node
    if (slots < 0).any():
        there = np.flatnonzero(slots >= 0)
        slots, node, step = slots[there], node[there], step.part(torch.from_numpy(there))
    if not len(slots):
        return
    if stage.weights is None:
        stage.store.keep(slots, stage.columns[node], step)
    else:
        _add(stage, stage.weights[node], slots, node, step.gradients.double())


def _add(stage: Stage, weights: Floats, slots: Integers, node: Integers, gradients: Tensor) -> None:
    """Sum gradients up, and keep those at the stage's edges on their own."""
    for edge, column in stage.edges:
        at = np.flatnonzero(node == edge)
        if len(at):
            items = torch.from_numpy(at).to(gradients.device)
            stage.store.put(slots[at], column, gradients[items])
    factors = torch.from_numpy(weights).to(gradients.device)
    stage.store.add(slots, stage.columns[node], gradients * factors[:, None])
