"""How many tracks enter at once, and of how many something is made at once: always of as many, so
that sums are of one shape, and bits do not depend on who else is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from integrand.workers.engine.batching import EVEN
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import EVERY, Some


@dataclass(frozen=True)
class ByDevice:
    """A number for CPUs and one for everything else."""

    cpu: int
    gpu: int

    def on(self, device: torch.device) -> int:
        return self.cpu if device.type == "cpu" else self.gpu


PART_BYTES = ByDevice(cpu=4 << 20, gpu=256 << 20)
"""What the working arrays of one part of a group may take: a cache, or enough to fill a GPU."""
NARROW_PART = ByDevice(cpu=64, gpu=1 << 13)
"""Tracks of a part where only some rows are: it is filled up, however few there are."""
WAVE_BYTES, WAVE_ROWS = 528 << 10, 192
"""So many rows enter at once for more than one step batch, as long as their gradients take less:
they make up for what calling torch takes.
"""


def wave_rows(problem: Problem, nodes: int, most_bytes: int = WAVE_BYTES) -> int:
    """Rows that enter at once, and of which something is made at once after so many nodes: about a
    step batch, or more where their gradients take less than so many bytes.
    """
    row_bytes = nodes * problem.elements * problem.targets_per_row * problem.dtype.itemsize
    small = min(WAVE_ROWS, most_bytes // row_bytes)
    return max(problem.batch_rows // nodes, small, 1)


def part_rows(evaluator: Evaluator, numbers: int, most: int) -> int:
    """Tracks of which something is made at once, with so many float64 numbers of each: always as
    many, so that sums are of one shape.
    """
    fits = PART_BYTES.on(evaluator.problem.device) // (8 * max(1, numbers))
    return even(min(most, fits) // evaluator.shrunk)


def even(count: int) -> int:
    """A multiple of EVEN that is not more, or as it is below that; at least 1."""
    return max(1, count - count % EVEN if count >= EVEN else count)


def in_parts(count: int, size: int) -> Iterator[tuple[Some, int]]:
    """Which of `count` tracks are in each part, and how many of them are real: in the last one the
    last track is there over and over.
    """
    if count == size:
        yield EVERY, count
        return
    for start in range(0, count, size):
        stop = start + size
        if stop <= count:
            yield slice(start, stop), size
        else:
            yield np.arange(start, stop).clip(max=count - 1), count - start
