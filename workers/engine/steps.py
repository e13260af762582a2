"""One step batch: f and its gradients at (row, α) items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.workers.engine.problem import Problem
from integrand.workers.models.gradients import SideBySide, gradients_of, independent_of_inputs
from integrand.workers.models.outputs import select
from integrand.workers.models.recurrence import differentiable
from integrand.workers.models.row_tensors import padded


@dataclass(frozen=True, eq=False)
class Items:
    """Places on rows' paths: numbers of rows [items], and α float64 [items]."""

    rows: Tensor
    alphas: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Items:
        return Items(self.rows[start:stop], self.alphas[start:stop])

    def padded(self, size: int) -> Items:
        """As many as `size`: the last one over and over behind them."""
        if size == len(self):
            return self
        return Items(padded(self.rows, size), padded(self.alphas, size))

    @staticmethod
    def join(parts: Sequence[Items]) -> Items:
        if len(parts) == 1:
            return parts[0]
        rows = torch.cat([part.rows for part in parts])
        return Items(rows, torch.cat([part.alphas for part in parts]))


@dataclass(frozen=True, eq=False)
class Step:
    """One target of one step batch: ∂f/∂x, all inputs side by side [items, elements], and f
    [items].
    """

    gradients: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One pass through the model at a step batch of items, from which backward passes start."""

    problem: Problem
    items: Items
    points: Sequence[Tensor]
    output: Tensor

    def step(self, target: int, *, last: bool) -> Step:
        """f and ∂f/∂x for one target; `last` frees what the forward pass keeps.

        A backward pass starts from the summed outputs: rows are independent, so each gets its own
        gradient. An input that the output does not depend on gets zeros. Raises SpecError if the
        output depends on none.
        """
        table = self.problem.table(self.items.rows, target)
        with torch.enable_grad():
            values = select(self.output, table)
            total = values.sum()
        with self.problem.passes():
            found = gradients_of(total, self.points, keep_graph=not last, required=True)
        return Step(SideBySide.join(found), values.detach())


def forward_pass(problem: Problem, items: Items) -> ForwardPass:
    """The model at x' + α(x − x') for one step batch."""
    points = _points(problem, items)
    step = problem.forward if problem.step is None else problem.step
    with torch.enable_grad(), differentiable(points), problem.passes():
        # Copies, since a model whose first operation is in place must not write to leaves.
        out = step(*[p.clone() for p in points], *problem.arguments(items.rows))
    if not out.requires_grad:
        raise independent_of_inputs()
    return ForwardPass(problem, items, points, out)


def first_step(problem: Problem, items: Items) -> Step:
    """That of the first target, where no other is asked for."""
    return forward_pass(problem, items).step(0, last=True)


def _points(problem: Problem, items: Items) -> list[Tensor]:
    with torch.no_grad():
        ends = zip(problem.input(items.rows), problem.baseline(items.rows), strict=True)
        points = [_between(start, x, items.alphas) for x, start in ends]
    return [point.requires_grad_() for point in points]


def _between(start: Tensor, x: Tensor, alphas: Tensor) -> Tensor:
    """Takes x over."""
    ones = [1] * (x.ndim - 1)
    alpha = alphas.to(x.dtype).reshape(-1, *ones)
    return x.sub_(start).mul_(alpha).add_(start)
