"""One step batch: f and its gradients at (row, α) items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.workers.engine.problem import Problem
from integrand.workers.models.gradients import SideBySide, gradients_of, independent_of_inputs
from integrand.workers.models.outputs import select


@dataclass(frozen=True, eq=False)
class Step:
    """One target of one step batch: ∂f/∂x, all inputs side by side [rows, elements], and f
    [rows].
    """

    gradients: Tensor
    values: Tensor

    def part(self, items: slice | Tensor) -> Step:
        """Some of the items, by their places."""
        if isinstance(items, Tensor):
            items = items.to(self.gradients.device)
        return Step(self.gradients[items], self.values[items])


def join(steps: Sequence[Step]) -> Step:
    """Steps of one target, one after the other."""
    if len(steps) == 1:
        return steps[0]
    gradients = torch.cat([step.gradients for step in steps])
    return Step(gradients, torch.cat([step.values for step in steps]))


def step_gradients(
    problem: Problem, rows: Tensor, alphas: Tensor, wanted: Sequence[int] = (0,)
) -> list[Step]:
    """f and ∂f/∂x at x' + α(x − x') for one step batch: one forward pass, one backward pass per
    wanted target.

    A backward pass starts from the summed outputs: rows are independent, so each gets its own
    gradient. An input that the output does not depend on gets zeros. Raises SpecError if the output
    depends on none.
    """
    with torch.enable_grad():
        points = [
            _between(b, x[rows], alphas).requires_grad_()
            for x, b in zip(problem.inputs, problem.baseline(rows), strict=True)
        ]
        # Copies, since a model whose first operation is in place must not write to leaves.
        step = problem.forward if problem.step is None else problem.step
        out = step(*[p.clone() for p in points], *problem.arguments(rows))
        if not out.requires_grad:
            raise independent_of_inputs()
        return [
            _backward(problem, out, points, rows, target, last=target == wanted[-1])
            for target in wanted
        ]


def _backward(
    problem: Problem,
    out: Tensor,
    points: Sequence[Tensor],
    rows: Tensor,
    target: int,
    *,
    last: bool,
) -> Step:
    table = problem.table(rows, target)
    values = select(out, table)
    found = gradients_of(values.sum(), points, keep_graph=not last, required=True)
    return Step(SideBySide.join(found), values.detach())


def _between(baseline: Tensor, x: Tensor, alphas: Tensor) -> Tensor:
    ones = [1] * (x.ndim - 1)
    alpha = alphas.to(x.dtype).reshape(-1, *ones)
    point = baseline + alpha * (x - baseline)
    return point.detach()
