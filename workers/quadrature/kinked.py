"""The rule and the certificate of kinked integrands: grids that grow by classes of nodes, and what
leaving one out shows.

Gradients of ReLU networks jump along the path, so every rule's error falls like 1/n and no spectrum
foresees it. An even grid is then as good as any. Its nodes are summed in classes (every eighth or
sixteenth node), and each class's share is compared with what its neighbours would give in its
place. A jump shows in the two classes beside it whatever its place in the cell, and by how much it
shows is known: the root of the summed squares of these differences, times a constant of the
pattern, is the root mean square of the error over all places of the jumps.

Between N and 2N cells the grid grows by two classes at a time; nodes then weigh as much as they are
far from their neighbours. Sums per class and the two outermost gradients are all that is kept of a
row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.quadrature.smooth import CPU, cancellation

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLASSES = 16
COLUMNS = CLASSES + 2
FIRST_EDGE, LAST_EDGE = CLASSES, CLASSES + 1
START = 32
"""Cells of the first grid."""
JUDGED = 64
"""Cells below which nothing is certified: a spike may still lie between the nodes."""
PERIODS = 8
"""Of the explicit grid that weights are read off: edges reach one period in at most."""
JUMPS = 64
"""Places in each of its cells at which the gradient is made to jump."""
EVEN = tuple(range(0, CLASSES, 2))
GROWTH = ((1, 9), (5, 13), (3, 11), (7, 15))
"""Odd classes in the order in which they join."""
CAUTION, FEW = 2.5, 1.0
"""Multiples of the root mean square error: CAUTION + FEW / (independent differences seen)."""
CANCELLED = 2.0
"""Most that the gap counts for: jumps beside the ends show in it, less where features cancel."""
MEMORY = 1.0
"""A certificate's share of what the stage before foresees with errors like 1/n: one lucky sum does
not end a row.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class GridStage:
    """What a stage adds to a grid on [0, 1], and how its sums are read.

    nodes      [new] in (0, 1), in order of evaluation; `columns` [new]: the class that each is
               summed in
    edges      positions among `nodes` of a new first and a new last node of the whole grid; None if
               unchanged
    readings   [1 + classes, COLUMNS] float64, on the device: the integral as a combination of the
               sums, and each class against its neighbours
    scale      root mean square error / root of the summed squares of the contrasts
    fold       whether a full grid's 16 classes become 8 before this stage's nodes are added
    """

    cells: float
    count: int
    nodes: Floats
    columns: Integers
    edges: tuple[int | None, int | None]
    readings: Tensor
    scale: float
    fold: bool

    @property
    def full(self) -> bool:
        """Whether the nodes are evenly spaced."""
        return bool(np.log2(self.cells / START) % 1 == 0)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Weights and contrasts of a set of classes, in units of one cell of the fine grid."""

    weights: Floats
    contrasts: Floats
    scale: float

    def readings(self, cells: int, device: torch.device) -> Tensor:
        """Both, below each other, for a path of that many fine cells."""
        both = np.vstack([self.weights, self.contrasts]) / cells
        return torch.tensor(both, device=device)


@cache
def grid_stages(most: int, device: torch.device = CPU) -> tuple[GridStage, ...]:
    """Stages of at most `most` nodes in all."""
    stages = [_first_stage(device)]
    fine = 2 * START
    while True:
        for step in range(1, len(GROWTH) + 1):
            stage = _stage(fine, step, stages[-1].count, device)
            if stage.count > most:
                return tuple(s for s in stages if s.count <= most)
            stages.append(stage)
        fine *= 2


def _first_stage(device: torch.device) -> GridStage:
    index = np.arange(1, START)
    pattern = _pattern(EVEN)
    return GridStage(
        cells=START,
        count=len(index),
        nodes=index / START,
        columns=2 * index % CLASSES,
        edges=(0, len(index) - 1),
        readings=pattern.readings(2 * START, device),
        scale=pattern.scale,
        fold=False,
    )


def _stage(fine: int, step: int, before: int, device: torch.device) -> GridStage:
    index = np.arange(1, fine)
    index = index[np.isin(index % CLASSES, GROWTH[step - 1])]
    pattern = _pattern(tuple(sorted(EVEN + sum(GROWTH[:step], ()))))
    last = len(index) - 1
    return GridStage(
        cells=fine / 2 * (1 + step / len(GROWTH)),
        count=before + len(index),
        nodes=index / fine,
        columns=index % CLASSES,
        edges=(0 if index[0] == 1 else None, last if index[-1] == fine - 1 else None),
        readings=pattern.readings(fine, device),
        scale=pattern.scale,
        fold=step == 1 and fine > 2 * START,
    )


@cache
def _pattern(classes: tuple[int, ...]) -> Pattern:
    """Read off an explicit grid of eight periods: its interior repeats, what is left belongs to the
    two edges.

    Worked example, the 8 even classes. Their nodes lie at 2, 4, 6, …, 126 of 128 cells, and each
    one's share of the path is what is nearer to it than to any other node:

        node                      2   4   6   8  10  12  14  16  18  20 …     sum
        share                     3   2   2   2   2   2   2   2   2   2       128
        without class 0           3   2   2   2   2   2   3   ·   3   2       128
        contrast of class 0       0   0   0   0   0   0  −1  +2  −1   0         0
        without class 2           ·   5   2   2   2   2   2   3   ·   3       128
        contrast of class 2      +3  −3   0   0   0   0   0  −1  +2  −1         0

    So the integral is 2 × the sum of each class, and 1 more of the first and of the last node. The
    contrast of class 0 is +2 of its own sum, −1 of the sums of its neighbours 14 and 2, and +1 of
    the first and of the last node, which lie beside the ends and not beside a node of class 0. That
    of class 2 is +2 of its own sum, −1 of those of 0 and 4, and −1 of the first node, which stands
    in for the neighbour that it does not have: +1 of node 2 and −2 of node 4 are left over.
    """
    cells = PERIODS * CLASSES
    nodes = np.arange(1, cells)
    nodes = nodes[np.isin(nodes % CLASSES, classes)]
    shares = _shares(nodes, cells)
    contrasts = np.stack([shares - _shares_without(c, nodes, cells) for c in classes])
    return Pattern(
        _by_column(shares, nodes, cells),
        np.stack([_by_column(contrast, nodes, cells) for contrast in contrasts]),
        _scale(shares, contrasts, nodes, cells),
    )


def _shares(nodes: Integers, cells: int) -> Floats:
    """The part of the path nearest to each node, in cells."""
    return np.diff(np.concatenate([[0.0], (nodes[1:] + nodes[:-1]) / 2, [float(cells)]]))


def _shares_without(left_out: int, nodes: Integers, cells: int) -> Floats:
    """The same where the nodes of one class have none."""
    stays = nodes % CLASSES != left_out
    shares = np.zeros(len(nodes))
    shares[stays] = _shares(nodes[stays], cells)
    return shares


def _by_column(weights: Floats, nodes: Integers, cells: int) -> Floats:
    """Weights of nodes as weights of sums: what one period in the middle says of each class, and
    what is left over near both ends.
    """
    half = cells // 2
    period = (nodes >= half) & (nodes < half + CLASSES)
    columns = np.zeros(COLUMNS)
    columns[nodes[period] % CLASSES] = weights[period]
    left_over = weights - columns[nodes % CLASSES]
    columns[FIRST_EDGE] = left_over[nodes < half].sum()
    columns[LAST_EDGE] = left_over[nodes >= half].sum()
    return columns


def _scale(shares: Floats, contrasts: Floats, nodes: Integers, cells: int) -> float:
    """Over all places of one jump: root mean square error of the integral / root mean of the
    contrasts' squares.

    The gradient is 0 before the jump and 1 behind it, so that its integral is what lies behind.
    """
    jumps = (np.arange(cells * JUMPS) + 0.5) / JUMPS
    gradients = nodes[:, None] > jumps
    errors = shares @ gradients - (cells - jumps)
    responses = contrasts @ gradients
    return float(np.sqrt((errors**2).mean() / (responses**2).sum(0).mean()))


def class_sums(sums: Tensor) -> Tensor:
    """Sums [..., COLUMNS, elements] of a full fine grid as those of the even classes of the next
    finer one.
    """
    folded = torch.zeros_like(sums)
    halves = sums[..., :CLASSES, :].unflatten(-2, (2, CLASSES // 2))
    folded[..., 0:CLASSES:2, :] = halves[..., 0, :, :] + halves[..., 1, :, :]
    folded[..., CLASSES:, :] = sums[..., CLASSES:, :]
    return folded


@dataclass(frozen=True, eq=False)
class KinkedEstimate:
    """attributions [rows, elements]; the others [rows] float64.

    size, total  ‖attributions‖₁ and their sum
    deviation    estimated ‖a − a*‖₁, from one stage alone
    """

    attributions: Tensor
    size: Tensor
    total: Tensor
    deviation: Tensor


def estimate_kinked(stage: GridStage, found: Tensor, change: Tensor) -> KinkedEstimate:
    """Attributions and their deviation at one stage, all float64.

    found   [rows, 1 + classes, elements]: the attributions and the contrasts, both times x − x'
    change  [rows]: f at the end of the path less f at its start
    """
    integral, contrasts = found[:, 0], found[:, 1:]
    size, total = integral.abs().sum(1), integral.sum(1)
    spread = stage.scale * contrasts.square().sum(1).sqrt()
    caution = CAUTION + FEW / _independent(contrasts, spread)
    cancelled = cancellation(size, total).clamp(max=CANCELLED)
    by_gap = 1.25 * cancelled * (total - change).abs()
    deviation = torch.maximum(caution * spread.sum(1), by_gap)
    return KinkedEstimate(integral, size, total, deviation)


def _independent(contrasts: Tensor, spread: Tensor) -> Tensor:
    """Effective number of independent contrasts, [rows] from 1 up: the rank of their Gram matrix by
    its moments.

    Features weigh as they do in the L1 norm.
    """
    weight = torch.where(spread > 0, spread, torch.inf).rsqrt()
    scaled = contrasts * weight[:, None]
    gram = scaled @ scaled.transpose(1, 2)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    effective = trace.square() / gram.square().sum((1, 2))
    return effective.nan_to_num(nan=1.0).clamp(min=1.0)
