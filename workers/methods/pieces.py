"""Paths cut into pieces: where f moves in a small part of the path only, that part and what lies
beside it are integrated one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from integrand.workers.engine.problem import Floats, Integers
from integrand.workers.engine.tracks import Tracks
from integrand.workers.methods.verdicts import Judged, judged
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import SpectralLevel, moving_window

DEEPEST = 8
"""Pieces within pieces: a small part is at most a quarter of what is around it, so eight reach
1/65,536 of the path.
"""


@dataclass(frozen=True)
class Piece:
    """A stretch of a track's path with f at both ends; `depth` counts the pieces around it."""

    start: float
    width: float
    f_start: float
    f_end: float
    depth: int


@dataclass(eq=False)
class Parts:
    """A track that was cut: pieces still to do, the next one last, and what is known of those that
    are done.
    """

    waiting: list[Piece]
    depth: int = 0
    attributions: list[Floats] = field(default_factory=list)
    deviation: float = 0.0
    needed: int = 0


class Pieces:
    """Which tracks are cut, and into what.

    levels  of the nested rule, by which every piece starts
    most    evaluations that a track may spend
    cut     [slots] whether the path was cut into pieces
    """

    def __init__(self, tracks: Tracks, levels: Sequence[SpectralLevel], most: int) -> None:
        self.tracks = tracks
        self.levels = levels
        self.most = most
        self.cut = np.zeros(tracks.slots, bool)
        self._parts: dict[int, Parts] = {}

    def room(self, slots: Integers) -> Integers:
        """Evaluations that tracks may still spend, less what their waiting pieces need at least."""
        counts = [self._waiting(slot) for slot in slots.tolist()]
        waiting = np.array(counts, np.int64)
        left = self.most - self.tracks.spent[slots]
        return left - self.levels[0].count * waiting

    def divide(self, level: SpectralLevel, slot: int, values: Floats, converging: bool) -> bool:
        """Cut a track where f moves in a small part of the path; where the last level converges but
        not far enough, into two halves. Whether it was cut: its pieces are then waiting.

        `values` [level's nodes] are f at the nodes.
        """
        depth = self._parts[slot].depth if slot in self._parts else 0
        if depth >= DEEPEST:
            return False
        room = self.room(np.array([slot]))
        if room[0] < 3 * self.levels[-1].count:
            return False
        window = self._window(level, slot, values, converging)
        if window is None:
            return False
        pieces = self._pieces(level, slot, values, window, depth + 1)
        self._parts.setdefault(slot, Parts([])).waiting.extend(reversed(pieces))
        self.cut[slot] = True
        return True

    def start(self, slot: int) -> None:
        """Hand the track over to its next piece."""
        parts, tracks = self._parts[slot], self.tracks
        piece = parts.waiting.pop()
        parts.depth = piece.depth
        tracks.start[slot] = piece.start
        tracks.width[slot] = piece.width
        tracks.f_start[slot] = piece.f_start
        tracks.f_end[slot] = piece.f_end

    def judge(self, piece: Judged) -> Judged | None:
        """Put aside what is known of one track's piece. The whole track once all its pieces are
        done, or one of them is not finite; else None.
        """
        slot = int(piece.slots[0])
        parts = self._parts[slot]
        parts.attributions.append(piece.attributions[0])
        parts.deviation += float(piece.deviation[0])
        parts.needed = max(parts.needed, int(piece.needed[0]))
        if parts.waiting and np.isfinite(piece.attributions).all():
            return None
        del self._parts[slot]
        self.cut[slot] = False
        total = np.sum(parts.attributions, axis=0)[None]
        whole = judged(piece.slots, total, np.array([parts.deviation]))
        whole.needed[0] = parts.needed
        return whole

    def _waiting(self, slot: int) -> int:
        parts = self._parts.get(slot)
        return len(parts.waiting) if parts else 0

    def _window(
        self, level: SpectralLevel, slot: int, values: Floats, converging: bool
    ) -> tuple[int, int] | None:
        """Positions among the sorted nodes between which the track's f moves, or its middle."""
        f_start = self.tracks.f_start[slot]
        f_end = self.tracks.f_end[slot]
        window = moving_window(level, values, f_start, f_end)
        if window is None and converging and level is self.levels[-1]:
            middle = level.count // 2
            return middle, middle
        return window

    def _pieces(
        self,
        level: SpectralLevel,
        slot: int,
        values: Floats,
        window: tuple[int, int],
        depth: int,
    ) -> list[Piece]:
        """The window and what lies beside it, from the start of the track's path to its end."""
        tracks = self.tracks
        inner = patterson().nodes[level.order]
        nodes = np.concatenate([[0.0], inner, [1.0]])
        f_start, f_end = tracks.f_start[slot], tracks.f_end[slot]
        known = np.concatenate([[f_start], values[level.order], [f_end]])
        first, last = window
        ends = sorted({0, first + 1, last + 1, len(nodes) - 1})
        pieces = []
        for a, b in pairwise(ends):
            start = tracks.start[slot] + tracks.width[slot] * nodes[a]
            width = tracks.width[slot] * (nodes[b] - nodes[a])
            pieces.append(Piece(start, width, known[a], known[b], depth))
        return pieces
