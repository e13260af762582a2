"""Verdicts of tracks whose integral has a closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.engine import Floats, Problem
from integrand.workers.exact import ExactIntegral, integrate_exactly
from integrand.workers.loop import Verdicts
from integrand.workers.shallow import ShallowNetwork

STATUSES = np.array([RowStatus.nonfinite, RowStatus.ok], object)
ROUNDING = 4.0
"""Rounding of the attributions as they are stored, in units of the machine epsilon of their dtype."""


def integrate_network(network: ShallowNetwork, problem: Problem, rows: Tensor
                      ) -> tuple[Iterator[Verdicts], tuple[Floats, Floats]]:  # fmt: skip
    """Verdicts by target, and f(x) and f(x') as the closed form has them, [rows, targets]. No gradient is evaluated."""
    found = [_integrate(network, problem, rows, target) for target in range(problem.targets_per_row)]
    ends = np.stack([f.f_input for f in found], 1), np.stack([f.f_baseline for f in found], 1)
    return (_verdicts(problem, rows, target, f) for target, f in enumerate(found)), ends


def _integrate(network: ShallowNetwork, problem: Problem, rows: Tensor, target: int) -> ExactIntegral:
    baseline, table = problem.baselines[0], problem.table(rows, target)
    return integrate_exactly(network, problem.inputs[0][rows], baseline if len(baseline) == 1 else baseline[rows],
                             None if table is None else table[:, 0], tick=problem.tick)  # fmt: skip


def _verdicts(problem: Problem, rows: Tensor, target: int, found: ExactIntegral) -> Verdicts:
    total, size = found.attributions.sum(1), np.abs(found.attributions).sum(1)
    gap = total - (found.f_input - found.f_baseline)
    moved = np.flatnonzero((size > 0) | ~np.isfinite(total))
    with np.errstate(invalid="ignore"):
        error = np.abs(gap[moved]) / np.where(size[moved] > 0, size[moved], 1.0) + ROUNDING * problem.epsilon
    zeros = np.zeros(len(moved), np.int64)
    statuses = STATUSES[np.isfinite(gap[moved]).astype(np.int64)]
    places = rows.cpu().numpy()[moved]
    return Verdicts(places, zeros + target, statuses, found.attributions[moved], gap[moved], error, zeros, zeros)
