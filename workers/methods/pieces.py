"""Paths cut into pieces: where f moves in a small part of the path only, that part and what lies
beside it are integrated one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from integrand.workers.engine.tracks import Integers, Tracks
from integrand.workers.methods.criteria import Judged
from integrand.workers.quadrature.smooth import SpectralLevel, moving_window

DEEPEST = 8
"""Pieces within pieces: a small part is at most a quarter of what is around it, so eight reach
1/65,536 of the path.
"""
Key = tuple[int, int]
"""Row and target of a track."""


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

    waiting: list[Piece] = field(default_factory=list)
    attributions: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    deviation: float = 0.0
    needed: int = 0


class Pieces:
    """Which tracks are cut, and into what.

    levels  of the nested rule, by which every piece starts
    most    evaluations that a track may spend
    """

    def __init__(self, levels: Sequence[SpectralLevel], most: int) -> None:
        self.levels = levels
        self.most = most
        self._parts: dict[Key, Parts] = {}

    def room(self, tracks: Tracks) -> Tensor:
        """Evaluations that tracks may still spend, less what their waiting pieces need at least."""
        return self.most - tracks.spent - tracks.reserved

    def divisible(
        self, level: SpectralLevel, tracks: Tracks, path: Tensor, converging: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which tracks may be cut, and where: between which of the level's places [tracks, 2].

        Where f moves in a small part of the path; where the last level converges but not far
        enough, into two halves. `path` [tracks, places] is f there.
        """
        window, exists = moving_window(level, path)
        if level is self.levels[-1]:
            window = torch.where(exists[:, None], window, level.count // 2 + 1)
            exists = exists | converging
        affordable = self.room(tracks) >= 3 * self.levels[-1].count
        return exists & affordable & (tracks.depth < DEEPEST), window

    def cut(self, level: SpectralLevel, tracks: Tracks, path: Tensor, window: Tensor) -> None:
        """Cut tracks at both ends of their windows: their pieces are then waiting."""
        ends = torch.stack([tracks.start, tracks.width], 1).cpu().numpy()
        depths = tracks.depth.tolist()
        places = level.places.cpu().numpy()
        known, windows = path.cpu().numpy(), window.cpu().numpy()
        for i, key in enumerate(_keys(tracks)):
            start, width = ends[i]
            stops = sorted({0, *windows[i].tolist(), len(places) - 1})
            pieces = []
            for a, b in pairwise(stops):
                piece = Piece(
                    start=start + width * places[a],
                    width=width * (places[b] - places[a]),
                    f_start=known[i, a],
                    f_end=known[i, b],
                    depth=depths[i] + 1,
                )
                pieces.append(piece)
            self._parts.setdefault(key, Parts()).waiting.extend(reversed(pieces))

    def start(self, tracks: Tracks) -> Tracks:
        """The tracks on their next pieces."""
        pieces, waiting = [], []
        for key in _keys(tracks):
            parts = self._parts[key]
            pieces.append(parts.waiting.pop())
            waiting.append(len(parts.waiting))
        numbers = [(p.start, p.width, p.f_start, p.f_end) for p in pieces]
        columns = torch.tensor(numbers, dtype=torch.float64).to(tracks.device)
        counts = torch.tensor([(p.depth, w) for p, w in zip(pieces, waiting, strict=True)])
        depth, left = counts.to(tracks.device).unbind(1)
        start, width, f_start, f_end = columns.unbind(1)
        return replace(
            tracks,
            start=start,
            width=width,
            f_start=f_start,
            f_end=f_end,
            depth=depth,
            reserved=self.levels[0].count * left,
        )

    def collect(self, tracks: Tracks, known: Judged) -> tuple[Integers, Integers, Judged | None]:
        """Put aside what is known of tracks' pieces. Which tracks have pieces waiting; which are
        whole, since all their pieces are done or one is not finite, and what is known of these.
        """
        waiting: list[int] = []
        whole: list[int] = []
        found: list[Judged] = []
        numbers = torch.stack([known.deviation, known.total], 1).tolist()
        needed = known.needed.tolist()
        for i, key in enumerate(_keys(tracks)):
            parts = self._parts[key]
            deviation, total = numbers[i]
            parts.attributions.append(known.attributions[i : i + 1])
            parts.gradients.append(known.gradients[i : i + 1])
            parts.deviation += deviation
            parts.needed = max(parts.needed, needed[i])
            if parts.waiting and np.isfinite(total):
                waiting.append(i)
            else:
                whole.append(i)
                found.append(_sum(self._parts.pop(key), known.take(slice(i, i + 1))))
        together = Judged.join(found) if found else None
        return np.array(waiting, np.int64), np.array(whole, np.int64), together


def whole_again(tracks: Tracks) -> Tracks:
    """The tracks as they are once their pieces were put together."""
    return replace(tracks, depth=torch.zeros_like(tracks.depth))


def _keys(tracks: Tracks) -> list[Key]:
    return list(zip(tracks.row.tolist(), tracks.target.tolist(), strict=True))


def _sum(parts: Parts, last: Judged) -> Judged:
    """What is known of a whole track, whose last piece this was."""
    total = reduce(torch.add, parts.attributions)
    return replace(
        last,
        attributions=total,
        gradients=reduce(torch.add, parts.gradients),
        size=total.abs().sum(1),
        total=total.sum(1),
        reported=total.abs().sum(1),
        deviation=torch.full_like(last.deviation, parts.deviation),
        needed=torch.full_like(last.needed, parts.needed),
    )
