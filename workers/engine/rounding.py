"""What reduced precision within step batches costs each row.

How much of a gradient its rounding spoils differs from row to row (cancellation, flipped ReLUs,
underflow), so it is measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Rounding
from integrand.workers.engine.steps import Items, Step
from integrand.workers.models.row_tensors import padded

PROBES = (0.5, 0.5 - 0.15**0.5, 0.5 + 0.15**0.5)
"""Where on a row's path its gradient is taken in both precisions: the nodes of three-point
Gauss-Legendre.
"""
PROBING = 2 * len(PROBES)
"""Gradient evaluations that this costs a row."""
CAUTION, LEAST = 6.0, 2.0
"""A row's rounding error is taken for CAUTION times the one seen at the probes, and for LEAST
machine epsilon at least.
"""
HOPELESS = 1e6
"""Stands for a gradient that is nothing but rounding, NaN or inf."""


def measure_rounding(evaluator: Evaluator, rows: Tensor) -> Rounding:
    """What reduced precision does to some rows; NaN for other rows.

    Three nodes of a row's path, in it and in float32.
    """
    problem = evaluator.problem
    plain = Evaluator(replace(problem, step=None, reduced=None))
    shape = problem.rows, problem.targets_per_row
    none = torch.full(shape, torch.nan, dtype=torch.float64, device=problem.device)
    found = Rounding(none, none.clone(), none.clone())
    for part in rows.split(evaluator.capacity) if len(rows) else ():
        single, values = _apart(evaluator, plain, part)
        single = single.nan_to_num(nan=HOPELESS, posinf=HOPELESS)
        found.single[part] = single
        found.share[part] = (CAUTION * single).clamp(LEAST * problem.epsilon, HOPELESS)
        found.values[part] = values.nan_to_num(nan=0.0, posinf=0.0)
    evaluator.absorb(plain)
    return found


def _apart(reduced: Evaluator, plain: Evaluator, rows: Tensor) -> tuple[Tensor, Tensor]:
    """‖reduced − plain‖₁ / ‖reduced‖₁ of the integrand summed over the probes, and the mean of
    |reduced − plain| of f there, each [rows, targets].
    """
    full = reduced.capacity
    filled = padded(rows, full)
    difference = reduced.problem.features.difference(filled)
    wanted = range(reduced.problem.targets_per_row)
    error = torch.zeros(len(rows), len(wanted), dtype=torch.float64, device=rows.device)
    size, values = torch.zeros_like(error), torch.zeros_like(error)
    for probe in PROBES:
        rounded, exact = _steps(reduced, rows, probe), _steps(plain, rows, probe)
        for target in wanted:
            of_reduced, of_plain = rounded[target], exact[target]
            moved = of_reduced.gradients - of_plain.gradients
            both = padded(torch.stack([moved, of_reduced.gradients], 1), full)
            pulled = reduced.pull(filled, both.double())
            apart = (pulled * difference[:, None]).abs().sum(2)[: len(rows)]
            error[:, target] += apart[:, 0]
            size[:, target] += apart[:, 1]
            values[:, target] += (of_reduced.values - of_plain.values).abs() / len(PROBES)
    return torch.where(error == 0, 0.0, error / size), values


def _steps(evaluator: Evaluator, rows: Tensor, alpha: float) -> list[Step]:
    """Of every target at one place of the rows' paths."""
    problem = evaluator.problem
    alphas = torch.full((len(rows),), alpha, dtype=torch.float64, device=rows.device)
    shape = problem.targets_per_row, len(rows), problem.elements
    gradients = torch.empty(shape, dtype=problem.dtype, device=rows.device)
    values = torch.empty(shape[:2], dtype=torch.float64, device=rows.device)

    def receive(target: int, start: int, step: Step) -> None:
        stop = start + len(step.values)
        gradients[target, start:stop] = step.gradients
        values[target, start:stop] = step.values

    evaluator.gradients(Items(rows, alphas), range(problem.targets_per_row), receive)
    return [Step(*of_target) for of_target in zip(gradients, values, strict=True)]
