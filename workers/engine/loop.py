"""The step-batch loop: items of many rows in step batches; rows enter, are judged, and leave.

A track is one target of one row. Tracks that need the same nodes next form a group, and a complete
group goes to whoever judges it, who may add new ones. New rows enter only when the groups in the
queue do not fill a step batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic

import numpy as np

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import Stage, TrackGroup
from integrand.workers.engine.parts import even
from integrand.workers.engine.steps import Items, Step
from integrand.workers.engine.tracks import Tracks

NEGLIGIBLE = 128
"""No new rows enter for the sake of less than this part of a step batch."""


@dataclass(frozen=True, eq=False)
class Take(Generic[Stage]):
    """Items [start, stop) of a group that are part of one step batch, from `offset` on."""

    group: TrackGroup[Stage]
    start: int
    stop: int
    offset: int

    @property
    def items(self) -> Items:
        return self.group.items.part(self.start, self.stop)

    def receive(self, target: int, start: int, step: Step) -> None:
        """Hand the group what is its own of a step about the batch's items from `start` on."""
        first = max(start, self.offset)
        last = min(start + len(step.values), self.offset + self.stop - self.start)
        if first >= last or target not in self.group.wanted:
            return
        own = slice(first - start, last - start)
        found = Step(step.gradients[own], step.values[own])
        self.group.put(target, self.start + first - self.offset, found)


Enter = Callable[[], TrackGroup[Stage] | None]
"""A group of new rows; None once all have entered."""


class Loop(Generic[Stage]):
    """Groups in turn, until none is left and no row is waiting."""

    def __init__(self, evaluator: Evaluator, enter: Enter[Stage]) -> None:
        self.evaluator = evaluator
        self.enter = enter
        self.queue: deque[TrackGroup[Stage]] = deque()

    def add(self, group: TrackGroup[Stage]) -> None:
        """Its turn is next: what was begun is finished first, so that little is kept."""
        self.queue.appendleft(group)

    def __iter__(self) -> Iterator[TrackGroup[Stage]]:
        """Groups as they are completed, until nothing is left to evaluate; again once groups were
        added.
        """
        while takes := self._fill():
            self._evaluate(takes)
            for take in takes:
                if not take.group.left:
                    yield take.group

    def _fill(self) -> list[Take[Stage]]:
        """The items of the next step batch, from the queue and, where that leaves room, from new
        rows.
        """
        takes: list[Take[Stage]] = []
        full = self.evaluator.capacity
        filled = 0
        while filled < full:
            if not self.queue:
                if takes and full - filled < full // NEGLIGIBLE:
                    break
                group = self.evaluator.within_memory(self.enter)
                if group is None:
                    break
                self.queue.append(group)
            group = self.queue[0]
            count = min(group.left, full - filled)
            takes.append(Take(group, group.taken, group.taken + count, filled))
            group.taken += count
            filled += count
            if not group.left:
                self.queue.popleft()
        return takes

    def _evaluate(self, takes: list[Take[Stage]]) -> None:
        items = self.evaluator.within_memory(partial(Items.join, [take.items for take in takes]))
        wanted = sorted({target for take in takes for target in take.group.wanted})

        def receive(target: int, start: int, step: Step) -> None:
            for take in takes:
                take.receive(target, start, step)

        self.evaluator.gradients(items, wanted, receive)


class Entrance(Generic[Stage]):
    """Tracks that wait, by target and row, and enter in waves of rows.

    wave  rows that enter at once, as long as memory does not run out
    part  tracks of which something is made at once afterwards
    """

    def __init__(self, evaluator: Evaluator, tracks: Tracks, *, wave: int, part: int) -> None:
        self.evaluator, self.tracks, self.wave_rows, self.part = evaluator, tracks, wave, part
        self.targets = evaluator.problem.targets_per_row
        self.entered = 0

    def next_group(self, make: Callable[[Tracks], TrackGroup[Stage]]) -> TrackGroup[Stage] | None:
        """`make` of the next wave, which has entered then; None once all rows have."""
        wave = self._wave()
        if wave is None:
            return None
        group = make(wave)
        self.entered += len(wave) // self.targets
        return group

    def _wave(self) -> Tracks | None:
        rows = len(self.tracks) // self.targets
        stop = min(rows, self.entered + self._size())
        if self.entered == rows:
            return None
        if stop - self.entered == rows:
            return self.tracks
        if self.targets == 1:
            return self.tracks.take(slice(self.entered, stop))
        own = np.arange(self.entered, stop)
        firsts = np.arange(self.targets) * rows
        return self.tracks.take((firsts[:, None] + own).reshape(-1))

    def _size(self) -> int:
        rows = even(self.wave_rows // self.evaluator.shrunk)
        return rows - rows % self.part if rows > self.part else rows
