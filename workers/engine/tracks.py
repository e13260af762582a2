"""Live tracks: which row, target and piece of its path each slot is about."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import Judge, Stage, TrackGroup
from integrand.workers.engine.problem import Floats, Integers, Problem


def live_rows(batch_rows: int, nodes: int) -> int:
    """Rows that may be under way: one step batch of first nodes, and another one while the last of
    these is judged.
    """
    at_once = -(-batch_rows // nodes)
    return 2 * at_once + 1


class Tracks:
    """Arrays by slot, and the rows that still wait for one.

    row, target     what the slot is about
    start, width    its piece of the path
    f_start, f_end  f at both ends of the piece
    change          f(x) − f(x') of the row
    magnitude       |f(x)| + |f(x')|
    integrand       size of what may cancel in the integral, as far as seen
    spent           evaluations of the row so far
    gaps            how many values of f its last estimate compares
    """

    def __init__(
        self, problem: Problem, rows: Tensor, f_input: Floats, f_baseline: Floats, live: int
    ) -> None:
        self.problem = problem
        self.rows: Integers = rows.cpu().numpy()
        self.f_input, self.f_baseline = f_input, f_baseline
        at_once = min(live, max(len(self.rows), 1))
        self.slots = at_once * problem.targets_per_row
        self.row, self.target = np.zeros((2, self.slots), np.int64)
        self.start, self.width = np.zeros((2, self.slots))
        self.f_start, self.f_end = np.zeros((2, self.slots))
        self.change, self.magnitude = np.zeros((2, self.slots))
        self.integrand = np.zeros(self.slots)
        self.spent, self.gaps = np.zeros((2, self.slots), np.int64)
        self.free = list(reversed(range(self.slots)))
        self.waiting = 0

    def admit(self, most: int, stage: Stage, judge: Judge) -> TrackGroup | None:
        """A group of up to `most` new rows, as far as there are rows and slots for all of their
        targets.
        """
        targets = self.problem.targets_per_row
        count = min(most, len(self.rows) - self.waiting, len(self.free) // targets)
        if count <= 0:
            return None
        places = np.arange(self.waiting, self.waiting + count)
        self.waiting += count
        taken = [self.free.pop() for _ in range(count * targets)]
        slots = np.array(taken).reshape(count, targets)
        self._enter(slots, places)
        return self.group(slots, stage, judge)

    def _enter(self, slots: Integers, places: Integers) -> None:
        """Hand slots `[places, targets]` over to the rows at some places of those that wait."""
        f_input = self.f_input[places]
        f_baseline = self.f_baseline[places]
        self.row[slots] = self.rows[places][:, None]
        self.target[slots] = np.arange(slots.shape[1])
        self.start[slots] = 0
        self.width[slots] = 1
        self.f_start[slots] = f_baseline
        self.f_end[slots] = f_input
        self.change[slots] = f_input - f_baseline
        self.magnitude[slots] = np.abs(f_input) + np.abs(f_baseline)
        self.integrand[slots] = 0
        self.spent[slots] = 0

    def group(self, slots: Integers, stage: Stage, judge: Judge) -> TrackGroup:
        """A group of slots `[rows, targets]`, −1 for none, whose tracks of one row share their
        piece of the path.
        """
        one = slots.max(1)
        return TrackGroup(
            rows=self.row[one],
            slots=slots,
            start=self.start[one],
            width=self.width[one],
            stage=stage,
            judge=judge,
        )

    def grouped(self, slots: Integers) -> Integers:
        """Slots of whole paths by row and target, `[rows, targets]` with −1 for none, rows in order
        of appearance.
        """
        targets = self.problem.targets_per_row
        if targets == 1:
            return slots[:, None]
        rows, which = np.unique(self.row[slots], return_inverse=True)
        table = np.full((len(rows), targets), -1)
        table[which, self.target[slots]] = slots
        return table

    def release(self, slots: Integers) -> None:
        self.free.extend(slots.tolist())

    def rows_of(self, slots: Integers) -> Tensor:
        rows = torch.from_numpy(self.row[slots])
        return rows.to(self.problem.device)

    def difference(self, slots: Integers) -> Floats:
        """The piece's part of x − x', or of h(x) − h(x') behind a hoisted prefix: [slots, elements]
        float64.
        """
        whole = self.problem.difference(self.rows_of(slots))
        return whole * self.width[slots, None]


def attributions(
    evaluator: Evaluator,
    tracks: Tracks,
    slots: Integers,
    combined: Floats,
    difference: Floats,
    nodes: int,
) -> Floats:
    """Combinations of gradients `[slots, k, elements]` as attributions `[slots, k, features]`:
    times x − x'.

    `difference` [slots, elements] is that of the problem, which behind a hoisted prefix is not yet
    one of features; `nodes` new ones were evaluated since the last judgement.
    """
    problem = tracks.problem
    if problem.lift is not None:
        rows = tracks.rows_of(slots)
        whole = problem.lift.problem.difference(rows)
        difference = whole * tracks.width[slots, None]
        combined = evaluator.pull(rows, combined, nodes)
    combined *= difference[:, None, :]
    return combined


def in_parts(slots: Integers, numbers: int) -> Iterator[Integers]:
    """Slots in parts whose working arrays of `numbers` float64 each stay below 64 MiB."""
    size = max(1, (8 << 20) // max(1, numbers))
    for start in range(0, len(slots), size):
        yield slots[start : start + size]


def masked(gradients: Floats, difference: Floats) -> Floats:
    """Gradients `[slots, k, elements]` with zeros where x = x', whose attributions are 0 even for
    infinite gradients.
    """
    if np.isfinite(gradients).all():
        return gradients
    unmoved = difference[:, None, :] == 0
    return np.where(unmoved, 0.0, gradients)
