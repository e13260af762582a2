"""f at the ends of rows whose baselines are taken together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.workers.engine.endpoints import endpoint_values
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.methods.base import Settle


@dataclass(frozen=True, eq=False)
class Ends:
    """Rows `[n]`, and f(x) less the mean of f over their baselines `[n, targets]` float64."""

    rows: Tensor
    change: Tensor

    def take(self, which: Tensor | slice) -> Ends:
        return Ends(self.rows[which], self.change[which])


def ends_of(evaluator: Evaluator, rows: Tensor, settle: Settle) -> Ends:
    """Given to `settle`; every row is kept."""
    draws = evaluator.problem.draws
    each = torch.arange(draws, device=rows.device)
    paths = (rows[:, None] * draws + each).flatten()
    f_input, f_baseline = endpoint_values(evaluator, paths)
    of_draws = f_baseline.reshape(len(rows), draws, -1)
    mean = of_draws[:, 0]
    for draw in range(1, draws):  # in one order whoever is beside a row
        mean = mean + of_draws[:, draw]
    mean = mean / draws
    at_row = f_input[::draws]
    settle(rows, at_row, mean)
    return Ends(rows, at_row - mean)


def path_ends(evaluator: Evaluator, rows: Tensor, settle: Settle) -> tuple[Ends, Tensor]:
    """The same of paths, each with one baseline, and which of them have a way to go, `[n]` bool."""
    f_input, f_baseline = endpoint_values(evaluator, rows)
    moving = settle(rows, f_input, f_baseline)
    return Ends(rows, f_input - f_baseline), moving
