"""Half precision within step batches: torch.autocast around the model, and what its rounding costs
each row.

Inputs, weights, f(x), f(x') and every sum stay float32; matrix products and convolutions are what
autocast rounds. How much of a gradient that spoils differs from row to row (cancellation, flipped
ReLUs, underflow), so it is measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.steps import Items, Step
from integrand.workers.models.outputs import Forward

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
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


def under_autocast(forward: Forward, dtype: torch.dtype, device: str) -> Forward:
    """`forward` with its matrix products and convolutions in `dtype`; a backward pass takes the
    dtypes of the forward one.
    """

    def half(*arguments: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return forward(*arguments)

    return half


def measure_rounding(evaluator: Evaluator, rows: Tensor) -> Tensor:
    """Relative L1 error that autocast is taken to cause in the attributions of some rows,
    [problem's rows, targets] float64; NaN for other rows.

    Three nodes of its path, with autocast and without.
    """
    problem = evaluator.problem
    plain = Evaluator(replace(problem, step=None, half=None))
    shape = problem.rows, problem.targets_per_row
    found = torch.full(shape, torch.nan, dtype=torch.float64, device=problem.device)
    for part in rows.split(evaluator.capacity) if len(rows) else ():
        measured = _apart(evaluator, plain, part)
        cautious = (CAUTION * measured).nan_to_num(nan=HOPELESS, posinf=HOPELESS)
        found[part] = cautious.clamp(LEAST * problem.epsilon, HOPELESS)
    evaluator.absorb(plain)
    return found


def _apart(half: Evaluator, plain: Evaluator, rows: Tensor) -> Tensor:
    """‖half − plain‖₁ / ‖half‖₁ of the integrand summed over the probes, [rows, targets]."""
    difference = half.problem.features.difference(rows)
    wanted = range(half.problem.targets_per_row)
    error = torch.zeros(len(rows), len(wanted), dtype=torch.float64, device=rows.device)
    size = torch.zeros_like(error)
    for probe in PROBES:
        rounded, exact = _gradients(half, rows, probe), _gradients(plain, rows, probe)
        for target in wanted:
            both = torch.stack([rounded[target] - exact[target], rounded[target]], 1)
            pulled = half.pull(rows, both.double())
            apart = (pulled * difference[:, None]).abs().sum(2)
            error[:, target] += apart[:, 0]
            size[:, target] += apart[:, 1]
    return torch.where(error == 0, 0.0, error / size)


def _gradients(evaluator: Evaluator, rows: Tensor, alpha: float) -> list[Tensor]:
    """Of every target at one place of the rows' paths, [rows, elements]."""
    problem = evaluator.problem
    alphas = torch.full((len(rows),), alpha, dtype=torch.float64, device=rows.device)
    shape = problem.targets_per_row, len(rows), problem.elements
    found = torch.empty(shape, dtype=problem.dtype, device=rows.device)

    def receive(target: int, start: int, stop: int, step: Step) -> None:
        found[target, start:stop] = step.gradients

    evaluator.gradients(Items(rows, alphas), range(problem.targets_per_row), receive)
    return list(found)
