"""Verdicts of tracks whose integral has a closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.closed_form.integral import ExactIntegral, integrate_exactly
from integrand.workers.closed_form.recognition import ShallowNetwork
from integrand.workers.engine.evaluator import Floats, Problem
from integrand.workers.engine.loop import Verdicts
from integrand.workers.models.row_tensors import shared_or_taken

STATUSES = np.array([RowStatus.nonfinite, RowStatus.ok, RowStatus.at_precision_floor], object)
ROUNDING = 4.0
"""Rounding of the attributions as they are stored, in units of the machine epsilon of their dtype.
"""
TOLERANCE = 1e-2
"""Relative error above which rounding has spoilt a row, where no tolerance was asked for: terms
that cancel do that.
"""


def integrate_network(
    network: ShallowNetwork, problem: Problem, rows: Tensor, tolerance: float = TOLERANCE
) -> tuple[Iterator[Verdicts], tuple[Floats, Floats]]:
    """Verdicts by target, and f(x) and f(x') as the closed form has them, [rows, targets]. No
    gradient is evaluated.

    A row above the tolerance is what rounding allows.
    """
    found = [
        _integrate(network, problem, rows, target) for target in range(problem.targets_per_row)
    ]
    ends = np.stack([f.f_input for f in found], 1), np.stack([f.f_baseline for f in found], 1)
    return (_verdicts(problem, rows, target, f, tolerance) for target, f in enumerate(found)), ends


def _integrate(
    network: ShallowNetwork, problem: Problem, rows: Tensor, target: int
) -> ExactIntegral:
    table = problem.table(rows, target)
    return integrate_exactly(
        network,
        problem.inputs[0][rows],
        shared_or_taken(problem.baselines[0], rows),
        None if table is None else table[:, 0],
        tick=problem.tick,
    )


def _verdicts(
    problem: Problem, rows: Tensor, target: int, found: ExactIntegral, tolerance: float
) -> Verdicts:
    """Of all rows; those with x = x' are settled already, and settled again the same way: zeros,
    gap 0, error 0.
    """
    total, size = found.attributions.sum(1), np.abs(found.attributions).sum(1)
    with np.errstate(invalid="ignore"):
        gap = total - (found.f_input - found.f_baseline)
    error = _errors(gap, size, ROUNDING * problem.epsilon)
    finite = np.isfinite(gap) & np.isfinite(size)
    statuses = STATUSES[np.select([~finite, error <= tolerance], [0, 1], 2)]
    zeros = np.zeros(len(rows), np.int64)
    return Verdicts(
        rows.cpu().numpy(), zeros + target, statuses, found.attributions, gap, error, zeros, zeros
    )


def _errors(gap: Floats, size: Floats, rounding: float) -> Floats:
    """Relative errors: the gap's share of ‖a‖₁ and the rounding of stored numbers; 0 where there is
    nothing to round.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(gap) / size + rounding
    return np.where((size == 0) & (gap == 0), 0.0, relative)
