"""The adaptive mode: every track spends what its certificate needs.

A track starts on Patterson's nested rule. Where its spectrum decays, levels of 7, 15, 31 and 63
nodes certify it. Where f moves in a small part of the path only, that part and what lies beside it
are integrated as pieces of their own. Where the integrand is kinked, a grid takes over that can
grow until the evaluations are spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.autocast import PROBING
from integrand.workers.engine.evaluator import Evaluator, Floats, Integers
from integrand.workers.engine.loop import GradientStore, Loop, Stage, Statuses, TrackGroup, Verdicts
from integrand.workers.engine.tracks import Tracks, attributions, live_rows, masked
from integrand.workers.quadrature.kinked import (
    COLUMNS,
    FIRST_EDGE,
    JUDGED,
    LAST_EDGE,
    MEMORY,
    GridStage,
    class_sums,
    estimate_kinked,
    grid_stages,
)
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import (
    SpectralLevel,
    cancellation,
    estimate_smooth,
    moving_window,
    spectral_levels,
)

Flags = NDArray[np.bool_]

STATUSES = np.array(
    [RowStatus.nonfinite, RowStatus.ok, RowStatus.at_precision_floor, RowStatus.not_converged],
    object,
)
FLOOR = 16.0
"""Rounding errors, in units of machine epsilon, that f at both ends and the sum may carry; below it
nothing is certified.
"""
ROUNDING = 4.0
"""Rounding of gradients, in units of machine epsilon, that every error estimate includes."""
HALF_FLOOR = 0.17
"""The same under autocast, in units of the rounding error measured: f at both ends is float32
there.
"""
SEEN = 31
"""Nodes after which a spectrum without decay is taken for kinks: fewer do not tell them from fast
oscillation.
"""
WIDE = 1 << 16
"""Elements of a row from which on 31 gradients are kept of it at most, not 63."""
DEEPEST = 8
"""Pieces within pieces: a small part is at most a quarter of what is around it, so eight reach
1/65,536 of the path.
"""
SHARE = 0.5
"""Part of the tolerance that a piece may use, relative to its own attributions or to f(x) − f(x'),
whichever is larger.
"""
HOPELESS, RESOLVED = 2.0, 0.5
"""A track whose error falls like 1/n is given up when it would need this many times the evaluations
it may spend; not while its estimated error is larger than this, since fast oscillation may still be
resolved.
"""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a judge knows of some tracks, by track: `size` is ‖attributions‖₁, `total` their sum."""

    slots: Integers
    attributions: Floats
    deviation: Floats
    size: Floats
    total: Floats

    def take(self, which: Flags | Integers) -> Judged:
        return Judged(
            self.slots[which],
            self.attributions[which],
            self.deviation[which],
            self.size[which],
            self.total[which],
        )


def judged(slots: Integers, attributions: Floats, deviation: Floats) -> Judged:
    return Judged(slots, attributions, deviation, np.abs(attributions).sum(1), attributions.sum(1))


@dataclass(frozen=True)
class Piece:
    """A stretch of a track's path with f at both ends; `depth` counts the pieces around it."""

    start: float
    width: float
    f_start: float
    f_end: float
    depth: int


@dataclass(eq=False)
class Pieces:
    """A track that was cut: pieces still to do, the next one last, and what is known of those that
    are done.
    """

    waiting: list[Piece]
    depth: int = 0
    attributions: list[Floats] = field(default_factory=list)
    deviation: float = 0.0
    needed: int = 0


def integrate_adaptively(
    evaluator: Evaluator, accuracy: Adaptive, rows: Tensor, f_input: Floats, f_baseline: Floats
) -> Iterator[Verdicts]:
    """Verdicts in order of completion. `rows` [n] are row numbers of the problem; f_* [n, targets]
    belong to them.
    """
    yield from _Integration(evaluator, accuracy, rows, f_input, f_baseline).run()


class _Integration:
    def __init__(
        self,
        evaluator: Evaluator,
        accuracy: Adaptive,
        rows: Tensor,
        f_input: Floats,
        f_baseline: Floats,
    ) -> None:
        problem = evaluator.problem
        self.evaluator, self.problem, self.accuracy = evaluator, problem, accuracy
        self.levels = _affordable_levels(accuracy.max_evaluations, problem.elements)
        live = live_rows(problem.batch_rows, self.levels[0].count)
        self.tracks = Tracks(problem, rows, f_input, f_baseline, live)
        slots, elements = self.tracks.slots, problem.elements
        self.nested = GradientStore(
            slots, self.levels[-1].count, elements, problem.dtype, problem.device
        )
        self.sums = GradientStore(slots, COLUMNS, elements, torch.float64, problem.device)
        self.grid = grid_stages(accuracy.max_evaluations)
        self.cut: dict[int, Pieces] = {}
        self.finished: list[Verdicts] = []
        self.loop = Loop(evaluator, self._admit)

    def run(self) -> Iterator[Verdicts]:
        for _ in self.loop.run():
            yield from self.finished
            self.finished.clear()

    def _admit(self, room: int) -> TrackGroup | None:
        return self.tracks.admit(
            -(-room // self.levels[0].count), self._nested_stage(0), partial(self._judge_nested, 0)
        )

    # --- nested levels --------------------------------------------------------------------------

    def _nested_stage(self, index: int) -> Stage:
        first = self.levels[index - 1].count if index else 0
        columns = np.arange(first, self.levels[index].count)
        return Stage(patterson().nodes[columns], columns, self.nested)

    def _judge_nested(self, index: int, slots: Integers) -> None:
        for part in _parts(slots, self.levels[index].count * self.problem.elements):
            self._judge_level(index, part)

    def _judge_level(self, index: int, slots: Integers) -> None:
        level, tracks = self.levels[index], self.tracks
        new = level.count - (self.levels[index - 1].count if index else 0)
        tracks.spent[slots] += new
        difference = tracks.difference(slots)
        gradients = masked(self.nested.read(slots, level.count), difference)
        values = self.nested.values[slots, : level.count]
        found = attributions(
            self.evaluator, tracks, slots, level.functionals @ gradients, difference, new
        )
        slopes = (gradients @ difference[:, :, None])[:, :, 0]
        estimate = estimate_smooth(
            level, found, slopes, values, tracks.f_start[slots], tracks.f_end[slots]
        )
        tracks.gaps[slots] = level.count + 1 + 2 * cancellation(estimate.attributions)
        tracks.integrand[slots] = np.maximum(tracks.integrand[slots], estimate.integrand)
        open_ = self._settle(judged(slots, estimate.attributions, estimate.deviation))
        if len(open_):
            likely = judged(slots[open_], estimate.attributions[open_], estimate.likely[open_])
            self._go_on(index, likely, values[open_], estimate.converging[open_])

    def _go_on(self, index: int, likely: Judged, values: Floats, converging: Flags) -> None:
        """More nodes where they converge; else pieces, else a grid; what cannot be afforded ends
        here.
        """
        slots, level = likely.slots, self.levels[index]
        room = self._room(slots)
        grids = room >= self._grid_start()
        finer = np.zeros(len(slots), bool)
        if index + 1 < len(self.levels):
            fits = room >= self.levels[index + 1].count - level.count
            finer = fits & ((level.count < SEEN) | converging | ~grids)
            self._push(
                slots[finer], self._nested_stage(index + 1), partial(self._judge_nested, index + 1)
            )
        cut = [
            not finer[i] and self._cut(level, int(slot), values[i], bool(converging[i]))
            for i, slot in enumerate(slots)
        ]
        rest = ~finer & ~np.array(cut, bool)
        self._start_grid(slots[rest & grids])
        self._end(likely.take(rest & ~grids))

    def _room(self, slots: Integers) -> Integers:
        """Evaluations that tracks may still spend, less what their waiting pieces need at least."""
        kept = np.array(
            [len(self.cut[slot].waiting) if slot in self.cut else 0 for slot in slots.tolist()],
            np.int64,
        )
        return (
            self.accuracy.max_evaluations - self.tracks.spent[slots] - self.levels[0].count * kept
        )

    # --- pieces ---------------------------------------------------------------------------------

    def _cut(self, level: SpectralLevel, slot: int, values: Floats, converging: bool) -> bool:
        """Whether pieces are next: where f moves in a small part of the path, that part and what
        lies beside it; where the last level converges but not far enough, two halves.
        """
        tracks = self.tracks
        depth = self.cut[slot].depth if slot in self.cut else 0
        affordable = self._room(np.array([slot]))[0] >= 3 * self.levels[-1].count
        if depth >= DEEPEST or not affordable:
            return False
        window = moving_window(level, values, tracks.f_start[slot], tracks.f_end[slot])
        if window is None and converging and level is self.levels[-1]:
            window = (level.count // 2, level.count // 2)
        if window is None:
            return False
        nodes = np.concatenate([[0.0], patterson().nodes[level.order], [1.0]])
        known = np.concatenate([[tracks.f_start[slot]], values[level.order], [tracks.f_end[slot]]])
        ends = sorted({0, window[0] + 1, window[1] + 1, len(nodes) - 1})
        start, width = tracks.start[slot], tracks.width[slot]
        pieces = [
            Piece(
                start + width * nodes[a],
                width * (nodes[b] - nodes[a]),
                known[a],
                known[b],
                depth + 1,
            )
            for a, b in pairwise(ends)
        ]
        self.cut.setdefault(slot, Pieces([])).waiting.extend(reversed(pieces))
        tracks.cut[slot] = True
        self._begin_piece(slot)
        return True

    def _begin_piece(self, slot: int) -> None:
        pieces, tracks = self.cut[slot], self.tracks
        piece = pieces.waiting.pop()
        pieces.depth = piece.depth
        tracks.start[slot], tracks.width[slot] = piece.start, piece.width
        tracks.f_start[slot], tracks.f_end[slot] = piece.f_start, piece.f_end
        self._push(np.array([slot]), self._nested_stage(0), partial(self._judge_nested, 0))

    # --- grid -----------------------------------------------------------------------------------

    def _grid_start(self) -> int:
        """Evaluations of the first grid that may certify."""
        return next(
            (s.count for s in self.grid if s.cells >= JUDGED), self.accuracy.max_evaluations + 1
        )

    def _start_grid(self, slots: Integers) -> None:
        if len(slots):
            self.sums.clear(slots)
            self.tracks.carried[slots], self.tracks.doubled[slots] = 0, np.nan
            self._push(slots, self._grid_stage(self.grid[0]), partial(self._judge_grid, 0))

    def _grid_stage(self, stage: GridStage) -> Stage:
        edges = tuple(
            (node, column)
            for node, column in zip(stage.edges, (FIRST_EDGE, LAST_EDGE), strict=True)
            if node is not None
        )
        return Stage(stage.nodes, stage.columns, self.sums, np.ones(len(stage.nodes)), edges)

    def _judge_grid(self, index: int, slots: Integers) -> None:
        for part in _parts(slots, 2 * COLUMNS * self.problem.elements):
            self._judge_grid_stage(index, part)

    def _judge_grid_stage(self, index: int, slots: Integers) -> None:
        stage, tracks = self.grid[index], self.tracks
        tracks.spent[slots] += len(stage.nodes)
        tracks.gaps[slots] = 1
        difference = tracks.difference(slots)
        sums = masked(self.sums.read(slots, COLUMNS), difference)
        found = attributions(
            self.evaluator,
            tracks,
            slots,
            np.vstack([stage.weights, stage.contrasts]) @ sums,
            difference,
            len(stage.nodes),
        )
        gap = found[:, 0].sum(1) - (tracks.f_end[slots] - tracks.f_start[slots])
        alone = judged(slots, found[:, 0], estimate_kinked(stage, found, gap))
        careful = np.maximum(alone.deviation, MEMORY * tracks.carried[slots] / stage.cells)
        tracks.carried[slots] = alone.deviation * stage.cells
        known = replace(alone, deviation=careful)
        open_ = self._settle(known, certify=stage.cells >= JUDGED)
        needed = self._needed(stage, alone.take(open_))
        following = self.grid[index + 1] if index + 1 < len(self.grid) else None
        goes_on = (self._room(slots[open_]) >= (len(following.nodes) if following else np.inf)) & (
            needed == 0
        )
        self._end(known.take(open_[~goes_on]), needed[~goes_on])
        if following and goes_on.any():
            going = open_[goes_on]
            if following.fold:
                self.sums.write(slots[going], class_sums(sums[going]))
            self._push(
                slots[going], self._grid_stage(following), partial(self._judge_grid, index + 1)
            )

    def _needed(self, stage: GridStage, known: Judged) -> Integers:
        """Evaluations that the tolerance would take, where that is out of reach; 0 elsewhere.

        The order of convergence is the one seen over the last doubling of the grid, and at least 1.
        """
        needed = np.zeros(len(known.slots), np.int64)
        if not stage.full:
            return needed
        with np.errstate(divide="ignore", invalid="ignore"):
            order = np.fmax(np.log2(self.tracks.doubled[known.slots] / known.deviation), 1.0)
            ratio = np.fmax(known.deviation / self._allowed(known), 1.0)
            foreseen = np.minimum(stage.count * ratio ** (1 / order), 1e15)
        self.tracks.doubled[known.slots] = known.deviation
        late = stage.cells >= 2 * JUDGED and self.accuracy.on_unreachable == "stop"
        resolved = known.deviation < RESOLVED * known.size
        hopeless = late & resolved & (foreseen > HOPELESS * self.accuracy.max_evaluations)
        needed[hopeless] = foreseen[hopeless]
        return needed

    # --- verdicts -------------------------------------------------------------------------------

    def _allowed(self, known: Judged) -> Floats:
        """The deviation that the tolerance allows each track, or its piece."""
        tracks = self.tracks
        piece = SHARE * np.maximum(known.size, np.abs(tracks.change[known.slots]))
        return self._tolerance(known.slots) * np.where(tracks.cut[known.slots], piece, known.size)

    def _tolerance(self, slots: Integers) -> Floats | float:
        """What the tolerance leaves for the quadrature: under autocast, rounding has its share."""
        measured = self._measured(slots)
        return self.accuracy.tolerance - (0.0 if measured is None else measured)

    def _measured(self, slots: Integers) -> Floats | None:
        """Relative rounding error of tracks under autocast."""
        rounding = self.problem.rounding
        return (
            None
            if rounding is None
            else rounding[self.tracks.row[slots], self.tracks.target[slots]]
        )

    def _settle(self, known: Judged, *, certify: bool = True) -> Integers:
        """End the tracks whose deviation is allowed, or is what rounding leaves; places of those
        that stay open.
        """
        settled = ~np.isfinite(known.total + self.tracks.change[known.slots]) | self._at_floor(
            known
        )
        if certify:
            settled |= known.deviation <= self._allowed(known)
        self._end(known if settled.all() else known.take(settled))
        return np.flatnonzero(~settled)

    def _at_floor(self, known: Judged) -> Flags:
        """Whether rounding alone may cause the deviation: of f, once for every gap seen, or of an
        integrand that cancels.
        """
        tracks, slots = self.tracks, known.slots
        carried = tracks.magnitude[slots] + tracks.integrand[slots] + known.size
        measured = self._measured(slots)
        unit = FLOOR * self.problem.epsilon if measured is None else HALF_FLOOR * measured
        return np.asarray(known.deviation <= (1 + tracks.gaps[slots] / 16) * unit * carried)

    def _end(self, known: Judged, needed: Integers | None = None) -> None:
        """Verdicts of whole paths; a piece is put aside until all pieces of its track are done."""
        needed = np.zeros(len(known.slots), np.int64) if needed is None else needed
        cut = self.tracks.cut[known.slots]
        if not cut.any():
            self._release(known, needed)
            return
        self._release(known.take(~cut), needed[~cut])
        for i in np.flatnonzero(cut):
            self._end_piece(
                int(known.slots[i]),
                known.attributions[i],
                float(known.deviation[i]),
                int(needed[i]),
            )

    def _end_piece(self, slot: int, found: Floats, deviation: float, needed: int) -> None:
        pieces = self.cut[slot]
        pieces.attributions.append(found)
        pieces.deviation += deviation
        pieces.needed = max(pieces.needed, needed)
        if pieces.waiting and np.isfinite(found).all():
            self._begin_piece(slot)
            return
        del self.cut[slot]
        total = np.sum(pieces.attributions, axis=0)
        self._release(
            judged(np.array([slot]), total[None], np.array([pieces.deviation])),
            np.array([pieces.needed]),
        )

    def _release(self, known: Judged, needed: Integers) -> None:
        if not len(known.slots):
            return
        tracks, slots = self.tracks, known.slots
        measured = self._measured(slots)
        rounding = (
            ROUNDING * self.problem.epsilon * (known.size > 0) if measured is None else measured
        )
        error = _ratio(known.deviation, known.size) + rounding
        gap = known.total - tracks.change[slots]
        spent = tracks.spent[slots] + (0 if measured is None else PROBING)
        self.finished.append(
            Verdicts(
                tracks.row[slots],
                tracks.target[slots],
                self._statuses(known),
                known.attributions,
                gap,
                error,
                spent,
                needed,
            )
        )
        tracks.release(slots)

    def _statuses(self, known: Judged) -> Statuses:
        finite = np.isfinite(known.total + self.tracks.change[known.slots])
        tolerance = self._tolerance(known.slots)
        ok = (known.deviation <= tolerance * known.size) & (tolerance > 0)
        return STATUSES[np.select([~finite, ok, self._at_floor(known)], [0, 1, 2], 3)]

    def _push(self, slots: Integers, stage: Stage, judge: partial[None]) -> None:
        if len(slots):
            self.loop.queue.append(self.tracks.block(self.tracks.grouped(slots), stage, judge))


def _affordable_levels(most: int, elements: int) -> tuple[SpectralLevel, ...]:
    """Nested levels within the evaluations, and within the gradients that may be kept of a row."""
    kept = 31 if elements >= WIDE else 63
    return tuple(level for level in spectral_levels() if level.count <= min(most, kept))


def _parts(slots: Integers, numbers: int) -> Iterator[Integers]:
    """Slots in parts whose working arrays of `numbers` float64 each stay below 64 MiB."""
    size = max(1, (8 << 20) // max(1, numbers))
    for start in range(0, len(slots), size):
        yield slots[start : start + size]


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; 0/0 is 0 (nothing to be wrong about), anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part == 0, 0.0, part / whole)
