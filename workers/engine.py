"""The step-batch loop: (row, node) work items in batches of one fixed shape; rows enter, are judged, and leave.

Bits depend on nothing but the row: every batch has the same shape, gradients are added in node order in float64, and
what is judged per row is reduced per row (numpy's pairwise sums), whatever rows happen to be beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.tables import RowStatus
from integrand.workers.outputs import Forward, check_output, select
from integrand.workers.quadrature import QuadratureRule

Floats = NDArray[np.float64]
Judge = Callable[["Sums"], list[RowStatus | None]]

FLOOR = 16.0
"""Rounding errors, in units of machine epsilon, that f(x), f(x') and the sum may carry; below it nothing is certified."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Validated tensors of one call. `baselines` hold one row where all rows share it."""

    forward: Forward
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    forward_args: tuple[Tensor, ...]
    targets: Tensor | None
    batch_rows: int
    tick: Callable[[], None] = lambda: None

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[0]

    def arguments(self, rows: Tensor) -> list[Tensor]:
        return [a[rows] for a in self.forward_args]

    def baseline(self, rows: Tensor) -> list[Tensor]:
        return [b.expand(len(rows), *b.shape[1:]) if b.shape[0] == 1 else b[rows] for b in self.baselines]

    def difference(self, rows: Tensor) -> Floats:
        """x − x' of some rows, all inputs side by side: [rows, elements] float64."""
        parts = [(x[rows].double() - b.double()).reshape(len(rows), -1)
                 for x, b in zip(self.inputs, self.baseline(rows), strict=True)]  # fmt: skip
        return np.ascontiguousarray(torch.cat(parts, 1).cpu().numpy())


@dataclass(frozen=True, eq=False)
class Sums:
    """What is known of some live rows at the end of a level; arrays are [rows] or [rows, elements] float64.

    `coarser` holds the attributions of the two levels before, the nearest first, as far as there are any.
    """

    attributions: Floats
    coarser: tuple[Floats, ...]
    f_input: Floats
    f_baseline: Floats
    epsilon: float
    last: bool

    @cached_property
    def total(self) -> Floats:
        return np.asarray(self.attributions.sum(1))

    @cached_property
    def gap(self) -> Floats:
        """Completeness gap, Σ attributions − (f(x) − f(x')). Sundararajan et al. 2017, §3."""
        return self.total - (self.f_input - self.f_baseline)

    @cached_property
    def size(self) -> Floats:
        return np.asarray(np.abs(self.attributions).sum(1))

    @cached_property
    def deviation(self) -> Floats:
        """Estimated ‖a − a*‖₁: the larger of the difference to the level before and |gap|, guarded against chance.

        At kinks a difference is now and then far smaller than the error, so up to twice of it counts: as much as half the
        difference before, which is what errors of order 1/n leave. Measured on ReLU MLPs with 8 features: an estimate below
        half the true error in 1.2% of 5,400 rows without this, in 0.04% of 9,000 with it, for a sixth more evaluations.
        """
        differences = [np.abs(a - b).sum(1) for a, b in pairwise((self.attributions, *self.coarser))]
        seen = np.maximum(differences[0], np.abs(self.gap))
        most = 2 * seen if len(differences) == 1 else np.minimum(2 * seen, differences[1] / 2)
        return np.maximum(seen, most)

    @cached_property
    def error(self) -> Floats:
        """Estimated ‖a − a*‖₁ / ‖a‖₁."""
        return _ratio(self.deviation, self.size)

    @cached_property
    def at_floor(self) -> NDArray[np.bool_]:
        """Whether rounding alone may cause the deviation."""
        rounding = FLOOR * self.epsilon * (np.abs(self.f_input) + np.abs(self.f_baseline) + self.size)
        return np.asarray(self.deviation <= rounding)

    @property
    def finite(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.total))


@dataclass(frozen=True, eq=False)
class Verdict:
    """One finished row."""

    row: int
    status: RowStatus
    attributions: Floats
    gap: float
    error: float
    evaluations: int


def batches(rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """`rows` in pieces of exactly `size`, the last one padded with its own last row; with the count that is real."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        yield torch.cat([piece, piece[-1:].expand(size - len(piece))]), len(piece)


@torch.no_grad()
def forward_outputs(problem: Problem, points: Sequence[Tensor], rows: Tensor, *, check: bool = True) -> Tensor:
    """Outputs at some rows of `points` (one row where all share it), batch by fixed batch: [rows, ...]."""
    found = []
    for piece, count in batches(rows, problem.batch_rows):
        at = [p.expand(len(piece), *p.shape[1:]) if p.shape[0] == 1 else p[piece] for p in points]
        out = problem.forward(*at, *problem.arguments(piece))
        table = None if problem.targets is None else problem.targets[piece]
        found.append((check_output(out, len(piece), table) if check else out)[:count])
        problem.tick()
    return torch.cat(found)


def endpoint_values(problem: Problem, rows: Tensor) -> tuple[Floats, Floats]:
    """f(x) and f(x') of some rows, [rows] float64; a baseline that all rows share is evaluated once."""
    table = None if problem.targets is None else problem.targets[rows]
    f_input = select(forward_outputs(problem, problem.inputs, rows), table)
    if all(b.shape[0] == 1 for b in problem.baselines) and not problem.forward_args:
        shared = forward_outputs(problem, problem.baselines, rows[:1])
        f_baseline = select(shared.expand(len(rows), *shared.shape[1:]), table)
    else:
        f_baseline = select(forward_outputs(problem, problem.baselines, rows), table)
    return f_input.double().cpu().numpy(), f_baseline.double().cpu().numpy()


def step_gradients(problem: Problem, rows: Tensor, alphas: Tensor) -> Tensor:
    """∂f/∂x at x' + α(x − x') for one step batch, all inputs side by side: [rows, elements].

    One backward pass of the summed outputs: rows are independent, so each gets its own gradient. An input that the
    output does not depend on gets zeros. Raises SpecError if the output depends on none.
    """
    with torch.enable_grad():
        points = [_between(b, x[rows], alphas).requires_grad_()
                  for x, b in zip(problem.inputs, problem.baseline(rows), strict=True)]  # fmt: skip
        out = problem.forward(*points, *problem.arguments(rows))
        table = None if problem.targets is None else problem.targets[rows]
        values = select(out, table)
        if not values.requires_grad:
            raise independent_of_inputs()
        gradients = torch.autograd.grad(values.sum(), points, allow_unused=True)
    if all(g is None for g in gradients):
        raise independent_of_inputs()
    flat = [(torch.zeros_like(p) if g is None else g).reshape(len(rows), -1)
            for g, p in zip(gradients, points, strict=True)]  # fmt: skip
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


def independent_of_inputs() -> SpecError:
    return SpecError("model output", expected="an output that depends on the inputs through differentiable operations",
                     seen="no gradient path to any input",
                     next_step="remove detach(), no_grad(), argmax or rounding between input and output")  # fmt: skip


def _between(baseline: Tensor, x: Tensor, alphas: Tensor) -> Tensor:
    alpha = alphas.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return (baseline + alpha * (x - baseline)).detach()


def integrate(problem: Problem, rule: QuadratureRule, judge: Judge, rows: Tensor, f_input: Floats,
              f_baseline: Floats) -> Generator[Verdict, None, int]:  # fmt: skip
    """Run rows through the rule until `judge` gives each a status; verdicts come in order of completion.

    Returns the number of padded evaluations that filled step batches up.

    `rows` [n] are row numbers of `problem`; `f_input`, `f_baseline` [n] belong to them.
    """
    loop = _Loop(problem, rule, rows)
    while loop.fill():
        finished = loop.step()
        for level, places in finished.items():
            yield from _judge_level(loop, judge, level, places, f_input, f_baseline)
    return loop.padded


def _judge_level(loop: _Loop, judge: Judge, level: int, places: list[int], f_input: Floats, f_baseline: Floats
                 ) -> Iterator[Verdict]:  # fmt: skip
    slots = [loop.slot_of[p] for p in places]
    difference = loop.problem.difference(loop.rows[places])
    now = np.ascontiguousarray(loop.sums[level][slots].cpu().numpy()) * difference
    before = tuple(np.ascontiguousarray(loop.sums[coarser][slots].cpu().numpy()) * difference
                   for coarser in range(level - 1, max(level - 3, -1), -1))  # fmt: skip
    last = level == len(loop.rule.levels) - 1
    sums = Sums(now, before, f_input[places], f_baseline[places], loop.epsilon, last)
    gap, error = sums.gap, sums.error if before else np.full(len(places), np.nan)
    for i, (place, status) in enumerate(zip(places, judge(sums), strict=True)):
        if status is None:
            loop.extend(place, level + 1)
            continue
        loop.release(place)
        yield Verdict(int(loop.rows[place]), status, now[i], gap[i], error[i], loop.rule.levels[level])


class _Loop:
    """Live rows, their pending nodes and their running sums. A place is a position in `rows`; a slot holds its sums."""

    def __init__(self, problem: Problem, rule: QuadratureRule, rows: Tensor) -> None:
        self.problem, self.rule, self.rows = problem, rule, rows
        self.first_level = min(1, len(rule.levels) - 1)
        device, size = problem.inputs[0].device, problem.batch_rows
        self.slots = size // rule.levels[self.first_level] + 2
        elements = sum(x[0].numel() for x in problem.inputs)
        self.sums = torch.zeros(len(rule.levels), self.slots, elements, dtype=torch.float64, device=device)
        self.epsilon = float(torch.finfo(problem.inputs[0].dtype).eps)
        self.weights = torch.from_numpy(rule.weights.copy()).to(device)
        self.free = deque(range(self.slots))
        self.slot_of: dict[int, int] = {}
        self.pending: deque[tuple[int, int, int, int]] = deque()
        self.next_place = 0
        self.batch: list[tuple[int, int, int, int]] = []
        self.padded = 0

    def fill(self) -> bool:
        """Choose the items of the next step batch: pending nodes first, then new rows. False when nothing is left."""
        room, self.batch = self.problem.batch_rows, []
        while room and (self.pending or self._admit()):
            place, start, stop, level = self.pending.popleft()
            taken = min(room, stop - start)
            self.batch.append((place, start, start + taken, level))
            room -= taken
            if start + taken < stop:
                self.pending.appendleft((place, start + taken, stop, level))
        self.padded += room if self.batch else 0
        return bool(self.batch)

    def _admit(self) -> bool:
        if self.next_place == len(self.rows) or not self.free:
            return False
        place, slot = self.next_place, self.free.popleft()
        self.next_place += 1
        self.slot_of[place] = slot
        self.sums[:, slot] = 0
        self.pending.append((place, 0, self.rule.levels[self.first_level], self.first_level))
        return True

    def extend(self, place: int, level: int) -> None:
        """Ask for the nodes that `level` adds to the one before."""
        self.pending.append((place, self.rule.levels[level - 1], self.rule.levels[level], level))

    def release(self, place: int) -> None:
        self.free.append(self.slot_of.pop(place))

    def step(self) -> dict[int, list[int]]:
        """Evaluate the batch, add it to the sums, and return by level the places whose level is now complete."""
        counts = [stop - start for _, start, stop, _ in self.batch]
        nodes = np.concatenate([np.arange(start, stop) for _, start, stop, _ in self.batch])
        real, size = len(nodes), self.problem.batch_rows
        places = np.full(size, self.batch[-1][0])
        places[:real] = np.repeat([item[0] for item in self.batch], counts)
        alphas = np.full(size, self.rule.nodes[nodes[-1]])
        alphas[:real] = self.rule.nodes[nodes]
        rows = self.rows[self._indices(places)]
        gradients = step_gradients(self.problem, rows, torch.from_numpy(alphas).to(rows.device))[:real].double()
        slots = np.repeat([self.slot_of[item[0]] for item in self.batch], counts)
        self._add(self._indices(slots), self._indices(nodes), gradients)
        self.problem.tick()
        done: dict[int, list[int]] = {}
        for place, _, stop, level in self.batch:
            if stop == self.rule.levels[level]:
                done.setdefault(level, []).append(place)
        return done

    def _indices(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self.rows.device)

    def _add(self, slots: Tensor, nodes: Tensor, gradients: Tensor) -> None:
        """index_add_ adds item after item, so the order within a row is node order wherever batches were cut."""
        weights = self.weights[:, nodes]
        for level, used in enumerate(weights.any(1).tolist()):
            if used:
                self.sums[level].index_add_(0, slots, gradients * weights[level, :, None])


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; 0/0 is 0 (nothing to be wrong about), anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part == 0, 0.0, part / whole)
