"""Tracks of the adaptive mode, sent from phase to phase until each has its verdict.

A track starts on Patterson's nested rule (`nested.py`). Where its spectrum decays, levels of 7, 15,
31 and 63 nodes certify it. Where f moves in a small part of the path only, that part and what lies
beside it are integrated as pieces of their own (`pieces.py`). Where the integrand is kinked, a grid
takes over that can grow until the evaluations are spent (`grids.py`). What a track is held to says
`verdicts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import Loop, Stage, TrackGroup, Verdicts
from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import Tracks, live_rows
from integrand.workers.methods.grids import Grids, least_grid
from integrand.workers.methods.nested import Nested, affordable_levels
from integrand.workers.methods.pieces import Pieces
from integrand.workers.methods.verdicts import Criteria, Judged, Next


def integrate_adaptively(
    evaluator: Evaluator, accuracy: Adaptive, rows: Tensor, f_input: Floats, f_baseline: Floats
) -> Iterator[Verdicts]:
    """Verdicts in order of completion. `rows` [n] are row numbers of the problem; f_* [n, targets]
    belong to them.
    """
    problem, most = evaluator.problem, accuracy.max_evaluations
    levels = affordable_levels(most, problem.elements)
    live = live_rows(problem.batch_rows, levels[0].count)
    tracks = Tracks(problem, rows, f_input, f_baseline, live)
    pieces = Pieces(tracks, levels, most)
    criteria = Criteria(accuracy, tracks, pieces.cut)
    nested = Nested(evaluator, criteria, pieces, levels, least_grid(most))
    grids = Grids(evaluator, criteria, pieces)
    yield from _Conductor(evaluator, criteria, pieces, nested, grids).run()


class Phase(Protocol):
    """A way to integrate, in stages.

    follow  the steps that it takes from a judgement, in this order: groups queue in it
    start   forget what slots held before
    stage   nodes and where their gradients go
    judge   what is known of slots whose stage was evaluated, in parts
    """

    follow: tuple[Next, ...]

    def start(self, slots: Integers) -> None: ...
    def stage(self, index: int) -> Stage: ...
    def judge(self, index: int, slots: Integers) -> Iterator[Judged]: ...


class _Conductor:
    """Sends tracks from phase to phase until each has its verdict."""

    def __init__(
        self,
        evaluator: Evaluator,
        criteria: Criteria,
        pieces: Pieces,
        nested: Nested,
        grids: Grids,
    ) -> None:
        self.criteria = criteria
        self.tracks = criteria.tracks
        self.pieces = pieces
        self.nested = nested
        self.grids = grids
        self.finished: list[Verdicts] = []
        self.loop = Loop(evaluator, self._admit)

    def run(self) -> Iterator[Verdicts]:
        for _ in self.loop.run():
            yield from self.finished
            self.finished.clear()

    def _admit(self, room: int) -> TrackGroup | None:
        nested = self.nested
        rows = -(-room // nested.levels[0].count)
        judge = partial(self._judge, nested, 0)
        return self.tracks.admit(rows, nested.stage(0), judge)

    def _judge(self, phase: Phase, index: int, slots: Integers) -> None:
        for known in phase.judge(index, slots):
            for step in phase.follow:
                chosen = known.next == step
                if not chosen.any():
                    continue
                if step in (Next.DONE, Next.END):
                    self._end(known.take(chosen))
                else:
                    self._go(step, phase, index, known.slots[chosen])

    def _go(self, step: Next, phase: Phase, index: int, slots: Integers) -> None:
        if step is Next.FINER:
            self._evaluate(phase, index + 1, slots)
        elif step is Next.CUT:
            self._start_pieces(slots)
        else:
            self._start(self.grids, slots)

    def _start(self, phase: Phase, slots: Integers) -> None:
        phase.start(slots)
        self._evaluate(phase, 0, slots)

    def _start_pieces(self, slots: Integers) -> None:
        """A group each: pieces of one row's targets lie apart."""
        for slot in slots.tolist():
            self.pieces.start(slot)
            self._start(self.nested, np.array([slot]))

    def _evaluate(self, phase: Phase, index: int, slots: Integers) -> None:
        stage = phase.stage(index)
        judge = partial(self._judge, phase, index)
        by_row = self.tracks.grouped(slots)
        group = self.tracks.group(by_row, stage, judge)
        self.loop.queue.append(group)

    def _end(self, known: Judged) -> None:
        """Verdicts of whole paths; a piece is put aside until all pieces of its track are done."""
        cut = self.pieces.cut[known.slots]
        whole_paths = known.take(~cut) if cut.any() else known
        self._release(whole_paths)
        for i in np.flatnonzero(cut):
            piece = known.take(np.array([i]))
            whole = self.pieces.judge(piece)
            if whole is None:
                self._start_pieces(piece.slots)
            else:
                self._release(whole)

    def _release(self, known: Judged) -> None:
        if len(known.slots):
            self.finished.append(self.criteria.verdicts(known))
            self.tracks.release(known.slots)
