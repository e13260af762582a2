"""Half precision within step batches: torch.autocast around the model, and what its rounding costs
each row.

Inputs, weights, f(x), f(x') and every sum stay float32; matrix products and convolutions are what
autocast rounds. How much of a gradient that spoils differs from row to row (cancellation, flipped
ReLUs, underflow), so it is measured.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Floats
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


def measure_rounding(evaluator: Evaluator, rows: Tensor) -> Floats:
    """Relative L1 error that autocast is taken to cause in the attributions of some rows,
    [problem's rows, targets].

    Three nodes of its path, with autocast and without.
    """
    problem = evaluator.problem
    plain = Evaluator(replace(problem, step=None, half=None))
    found = np.full((problem.rows, problem.targets_per_row), np.nan)
    for part in rows.split(evaluator.capacity) if len(rows) else ():
        found[part.cpu().numpy()] = _apart(evaluator, plain, part)
    evaluator.absorb(plain)
    found = np.nan_to_num(CAUTION * found, nan=HOPELESS, posinf=HOPELESS)
    return np.asarray(found.clip(LEAST * problem.epsilon, HOPELESS))


def _apart(half: Evaluator, plain: Evaluator, rows: Tensor) -> Floats:
    """‖half − plain‖₁ / ‖half‖₁ of the integrand summed over the probes, [rows, targets]."""
    wanted = range(half.problem.targets_per_row)
    difference = half.problem.features.difference(rows)
    error, size = np.zeros((2, len(rows), len(wanted)))
    for probe in PROBES:
        alphas = torch.full((len(rows),), probe, dtype=torch.float64, device=rows.device)
        rounded = half.gradients(rows, alphas, wanted)
        exact = plain.gradients(rows, alphas, wanted)
        for target in wanted:
            seen = rounded[target].gradients
            both = torch.stack([seen - exact[target].gradients, seen], 1)
            pulled = half.pull(rows, both.double().cpu().numpy(), 1)
            apart = np.abs(pulled * difference[:, None]).sum(2)
            error[:, target] += apart[:, 0]
            size[:, target] += apart[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / size)
