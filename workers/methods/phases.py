"""Tracks of the adaptive mode, sent from phase to phase until each has its verdict.

A track starts on Patterson's nested rule (`nested.py`). Where its spectrum decays, levels of 7, 15,
31 and 63 nodes certify it. Where f moves in a small part of the path only, that part and what lies
beside it are integrated as pieces of their own (`pieces.py`). Where the integrand is kinked, a grid
takes over that can grow until the evaluations are spent (`grids.py`). What a track is held to says
`criteria.py`.

Gradients, and what is made of them, stay on the device. Of every group that was judged, the host
learns where each track goes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import Floats, Samples, TrackGroup
from integrand.workers.engine.loop import Entrance, Loop
from integrand.workers.engine.parts import NARROW_PART, ByDevice, wave_rows
from integrand.workers.engine.reason_margins import ReasonSums
from integrand.workers.engine.tracks import EVERY, Some, Tracks, whole_paths
from integrand.workers.engine.verdicts import Verdicts
from integrand.workers.methods.criteria import Criteria, Judged, Next
from integrand.workers.methods.grids import Grids, least_grid
from integrand.workers.methods.nested import Gradients, Nested, affordable_levels
from integrand.workers.methods.pieces import Pieces, whole_again

Kept = TypeVar("Kept", bound="Held")
AHEAD = ByDevice(cpu=0, gpu=1)
"""Judgements that the host asks for later: a GPU would stand still while the host waits for it."""


def integrate_adaptively(
    evaluator: Evaluator,
    accuracy: Adaptive,
    rows: Tensor,
    f_input: Tensor,
    f_baseline: Tensor,
    sums: ReasonSums | None = None,
) -> Iterator[Verdicts]:
    """Verdicts in order of completion. `rows` [n] are row numbers of the problem; f_* [n, targets]
    belong to them. `sums` are what may be reasons, where tracks go on until these are certain.
    """
    problem, most = evaluator.problem, accuracy.max_evaluations
    tracks = whole_paths(problem, rows, f_input, f_baseline)
    levels = affordable_levels(most, problem.elements, problem.device)
    pieces = Pieces(levels, most)
    there = None if sums is None else sums.to(problem.device)
    criteria = Criteria(accuracy, problem, there)
    nested = Nested(evaluator, criteria, pieces, levels, least_grid(most))
    grids = Grids(evaluator, criteria, pieces)
    entrance: Entrance[Stage] = Entrance(
        evaluator, tracks, wave=wave_rows(problem, levels[0].count), part=nested.part(0)
    )
    yield from _Conductor(evaluator, criteria, pieces, nested, grids).run(entrance)


class Held(Protocol):
    """What a phase keeps of tracks."""

    def take(self: Kept, which: Some) -> Kept: ...


class Phase(Protocol[Kept]):
    """A way to integrate, in stages.

    chunks  nodes of a stage, evaluated one chunk after the other
    absorb  what is kept of tracks, with the samples of one more chunk; None before the first
    judge   what is known of tracks after a stage, and what is kept of them
    """

    def chunks(self, index: int) -> list[Floats]: ...
    def absorb(
        self, index: int, chunk: int, tracks: Tracks, kept: Kept | None, samples: Samples
    ) -> Kept: ...
    def judge(self, index: int, tracks: Tracks, kept: Kept) -> tuple[Judged, Kept]: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """What a group's nodes are evaluated for, and what is kept of its tracks so far.

    cut  whether its tracks are on pieces of their paths
    """

    phase: Phase[Any]
    index: int = 0
    chunk: int = 0
    kept: Held | None = None
    cut: bool = False

    @property
    def nodes(self) -> Floats:
        return self.phase.chunks(self.index)[self.chunk]

    @property
    def last_chunk(self) -> bool:
        return self.chunk + 1 == len(self.phase.chunks(self.index))

    @property
    def count(self) -> int:
        """Nodes of all its chunks."""
        return sum(len(nodes) for nodes in self.phase.chunks(self.index))


@dataclass(frozen=True, eq=False)
class Standing:
    """Tracks that were judged, what is known of them, and what is kept."""

    tracks: Tracks
    known: Judged
    kept: Held

    def take(self, which: Some) -> Standing:
        if which is EVERY:
            return self
        return Standing(self.tracks.take(which), self.known.take(which), self.kept.take(which))


class OnItsWay:
    """Numbers of a device that go to the host while it does something else."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._sent: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._sent = torch.cuda.Event()
            self._sent.record()

    def arrived(self) -> NDArray[np.int64]:
        """Wait for them."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._numbers.numpy()


@dataclass(frozen=True, eq=False)
class Judgement:
    """Tracks after a stage, and where each goes next: a `Next`."""

    stage: Stage
    standing: Standing
    following: OnItsWay


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
        self.evaluator = evaluator
        self.criteria = criteria
        self.pieces = pieces
        self.nested = nested
        self.grids = grids

    def run(self, entrance: Entrance[Stage]) -> Iterator[Verdicts]:
        loop: Loop[Stage] = Loop(self.evaluator, partial(self._enter, entrance))
        judgements: deque[Judgement] = deque()
        ahead = AHEAD.on(self.evaluator.problem.device)
        while True:
            for group in loop:
                judgements.extend(self._take_in(group, loop))
                if len(judgements) > ahead:
                    yield from self._follow(judgements.popleft(), loop)
            if not judgements:
                return
            yield from self._follow(judgements.popleft(), loop)

    def _enter(self, entrance: Entrance[Stage]) -> TrackGroup[Stage] | None:
        first = Stage(phase=self.nested)
        return entrance.next_group(lambda wave: self._group(wave, first))

    def _take_in(self, group: TrackGroup[Stage], loop: Loop[Stage]) -> Iterator[Judgement]:
        """The judgement of a group, once its last chunk of nodes was evaluated."""
        stage, kept = group.stage, self._absorb(group)
        if stage.last_chunk:
            yield self._judge(group.tracks, stage, kept)
        else:
            following = replace(stage, chunk=stage.chunk + 1, kept=kept)
            self._evaluate(group.tracks, following, loop)

    def _absorb(self, group: TrackGroup[Stage]) -> Held:
        stage, within = group.stage, self.evaluator.within_memory
        samples = within(group.samples)
        absorb = partial(stage.phase.absorb, stage.index, stage.chunk, group.tracks, stage.kept)
        kept: Held = within(partial(absorb, samples))
        return kept

    def _judge(self, tracks: Tracks, stage: Stage, kept: Held) -> Judgement:
        tracks = replace(tracks, spent=tracks.spent + stage.count)
        judge = partial(stage.phase.judge, stage.index, tracks, kept)
        known, kept = self.evaluator.within_memory(judge)
        tracks = replace(tracks, integrand=known.integrand)
        return Judgement(stage, Standing(tracks, known, kept), OnItsWay(known.next))

    def _follow(self, judgement: Judgement, loop: Loop[Stage]) -> Iterator[Verdicts]:
        """Send tracks where their judgement says."""
        stage, standing = judgement.stage, judgement.standing
        following = judgement.following.arrived()
        ended = _which((following == Next.DONE) | (following == Next.END))
        if ended is not None:
            yield from self._end(self._some(standing, ended), stage, loop)
        for step in (Next.FINER, Next.CUT, Next.GRID):
            chosen = _which(following == step)
            if chosen is not None:
                self._go(step, self._some(standing, chosen), stage, loop)

    def _some(self, standing: Standing, which: Some) -> Standing:
        return self.evaluator.within_memory(partial(standing.take, which))

    def _go(self, step: Next, standing: Standing, stage: Stage, loop: Loop[Stage]) -> None:
        tracks = standing.tracks
        if step is Next.FINER:
            for some in self._batches(standing, stage):
                finer = replace(stage, index=stage.index + 1, chunk=0, kept=some.kept)
                self._evaluate(some.tracks, finer, loop)
        elif step is Next.CUT:
            kept = standing.kept
            assert isinstance(kept, Gradients)
            level, path = self.nested.path(stage.index, tracks, kept)
            self.pieces.cut(level, tracks, path, standing.known.window)
            self._start_pieces(tracks, loop)
        else:
            self._evaluate(tracks, Stage(phase=self.grids, cut=stage.cut), loop)

    def _batches(self, standing: Standing, stage: Stage) -> Iterator[Standing]:
        """About step batches of their next nodes, one after the other: little is kept at a time.
        Targets of one row stay together.
        """
        problem, count = self.evaluator.problem, len(standing.tracks)
        nodes = len(stage.phase.chunks(stage.index + 1)[0])
        size = max(problem.batch_rows // nodes, NARROW_PART.on(problem.device))
        if problem.targets_per_row > 1 or count <= size:
            yield standing
            return
        for start in range(0, count, size):
            yield self._some(standing, slice(start, start + size))

    def _end(self, standing: Standing, stage: Stage, loop: Loop[Stage]) -> Iterator[Verdicts]:
        """Verdicts of whole paths; pieces are put aside until all of their track are done."""
        tracks, known = standing.tracks, standing.known
        if not stage.cut:
            yield self.criteria.verdicts(tracks, known)
            return
        waiting, whole, together = self.pieces.collect(tracks, known)
        if together is not None:
            yield self._together(whole_again(tracks.take(whole)), together)
        if len(waiting):
            self._start_pieces(tracks.take(waiting), loop)

    def _together(self, tracks: Tracks, known: Judged) -> Verdicts:
        """Verdicts of paths whose pieces are all done, sized one by one: bits do not depend on how
        many there are.
        """
        found = []
        for i in range(len(tracks)):
            one = slice(i, i + 1)
            found.append(self.criteria.of_reported(tracks.take(one), known.take(one)))
        return self.criteria.verdicts(tracks, Judged.join(found))

    def _start_pieces(self, tracks: Tracks, loop: Loop[Stage]) -> None:
        pieces = self.pieces.start(tracks)
        self._evaluate(pieces, Stage(phase=self.nested, cut=True), loop)

    def _evaluate(self, tracks: Tracks, stage: Stage, loop: Loop[Stage]) -> None:
        group = self.evaluator.within_memory(partial(self._group, tracks, stage))
        loop.add(group)

    def _group(self, tracks: Tracks, stage: Stage) -> TrackGroup[Stage]:
        problem = self.evaluator.problem
        return TrackGroup(problem, tracks, stage.nodes, stage, apart=stage.cut)


def _which(chosen: NDArray[np.bool_]) -> Some | None:
    """Numbers of the chosen ones; None where there are none."""
    if not chosen.any():
        return None
    return EVERY if chosen.all() else np.flatnonzero(chosen)
