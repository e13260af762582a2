"""Groups of tracks that need the same nodes next, and the gradients that these give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.engine.problem import Problem
from integrand.workers.engine.steps import Items, Step
from integrand.workers.engine.tracks import Tracks, to_device

Floats = NDArray[np.float64]
Stage = TypeVar("Stage")


@dataclass(frozen=True, eq=False)
class Samples:
    """What nodes gave: gradients [tracks, nodes, elements] in the problem's dtype, and f [tracks,
    nodes] float64.
    """

    gradients: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Paths:
    """The pieces of paths that tracks lie on: targets of one row share theirs, and so their forward
    passes.

    first      for each path one of its tracks, on the device
    of_target  for each target, in the order of the tracks, the paths that its tracks lie on; None
               where these are all
    """

    first: slice | Tensor
    of_target: dict[int, Tensor | None]


class TrackGroup(Generic[Stage]):
    """Tracks, ordered by target, and the nodes of their pieces of the path that are evaluated next.

    stage   what they are evaluated for; with `apart` each track lies on a path of its own, since
            targets of one row are cut in different places
    items   every node of every path
    taken   items that are part of a step batch already
    """

    def __init__(
        self,
        problem: Problem,
        tracks: Tracks,
        nodes: Floats,
        stage: Stage,
        *,
        apart: bool = False,
    ) -> None:
        self.tracks, self.stage = tracks, stage
        self._paths = _paths(tracks, problem.targets_per_row, apart=apart)
        self._nodes = len(nodes)
        self.items = _items(tracks, self._paths, nodes)
        self.taken = 0
        shape = len(self._paths.of_target), len(self.items)
        device = problem.device
        self._gradients = torch.empty(*shape, problem.elements, dtype=problem.dtype, device=device)
        self._values = torch.empty(shape, dtype=torch.float64, device=device)

    @property
    def wanted(self) -> list[int]:
        """Targets that any of the tracks is about."""
        return list(self._paths.of_target)

    @property
    def left(self) -> int:
        """Items that are part of no step batch yet."""
        return len(self.items) - self.taken

    def put(self, target: int, start: int, step: Step) -> None:
        """Take what was found of one wanted target from item `start` on."""
        place = self.wanted.index(target)
        stop = start + len(step.values)
        self._gradients[place, start:stop] = step.gradients
        self._values[place, start:stop] = step.values

    def samples(self) -> Samples:
        """Handed over once, by a group whose items were all evaluated."""
        found = Samples(self._by_track(self._gradients), self._by_track(self._values))
        self._gradients = self._values = self._values[:0]
        return found

    def _by_track(self, found: Tensor) -> Tensor:
        """[targets, items, ...] as [tracks, nodes, ...]."""
        by_path = found.reshape(len(found), -1, self._nodes, *found.shape[2:])
        chosen = self._paths.of_target.values()
        if all(paths is None for paths in chosen):
            return by_path.flatten(0, 1)
        parts = []
        for own, paths in zip(by_path, chosen, strict=True):
            parts.append(own if paths is None else own[paths])
        return torch.cat(parts)


def _paths(tracks: Tracks, targets: int, *, apart: bool) -> Paths:
    if targets == 1:
        return Paths(slice(None), {0: None})
    lying = np.arange(len(tracks)) if apart else tracks.row
    _, first, path = np.unique(lying, return_index=True, return_inverse=True)
    of_target: dict[int, Tensor | None] = {}
    for target in np.unique(tracks.target).tolist():
        own = path[tracks.target == target]
        every = len(own) == len(first) and np.array_equal(own, np.arange(len(first)))
        of_target[target] = None if every else to_device(own, tracks.device)
    return Paths(to_device(first, tracks.device), of_target)


def _items(tracks: Tracks, paths: Paths, nodes: Floats) -> Items:
    """Node by node of one path after the other."""
    rows = tracks.rows[paths.first].repeat_interleave(len(nodes))
    places = to_device(nodes, tracks.device)
    start, width = tracks.start[paths.first], tracks.width[paths.first]
    alphas = start[:, None] + width[:, None] * places
    return Items(rows, alphas.flatten())
