"""The integral itself, where it has a closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Exact
from integrand.schemas.tables import RowStatus
from integrand.workers.closed_form.integral import ExactIntegral, integrate_exactly
from integrand.workers.closed_form.recognition import ShallowNetwork
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared, closed_form
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.verdicts import Verdicts, coded
from integrand.workers.methods.base import JUDGED, Method, Needs, Settle
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors

Floats = NDArray[np.float64]

STATUSES = (RowStatus.nonfinite, RowStatus.ok, RowStatus.at_precision_floor)
ROUNDING = 4.0
"""Rounding of the attributions as they are stored, in units of the machine epsilon of their dtype.
"""
TOLERANCE = 1e-2
"""Relative error above which rounding has spoilt a row, where no tolerance was asked for: terms
that cancel do that.
"""


class ExactMethod(Method[Exact]):
    """The closed form or nothing. A plan reserves what the adaptive mode would take."""

    needs_closed_form = True

    @property
    def most_evaluations(self) -> int:
        return 1

    @property
    def needs(self) -> Needs:
        return JUDGED

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    def closed_form(
        self, forward: Forward, rows: RowTensors, transform: str = "none"
    ) -> ShallowNetwork:
        found = find_network(forward, rows, transform)
        if isinstance(found, str):
            raise _no_closed_form(found)
        return found

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        if prepared.network is None:
            raise _no_closed_form("the job was planned without")
        return integrate_network(prepared.network, evaluator.problem, rows, settle, TOLERANCE)


def find_network(forward: Forward, rows: RowTensors, transform: str) -> ShallowNetwork | str:
    """The network whose integral has a closed form, or why there is none. Up to eight rows are
    tried.
    """
    if transform != "none":
        return f"the output transform {transform}"
    depth = 0 if rows.target is None else rows.target.shape[-1]
    if len(rows.inputs) > 1 or rows.forward_args or depth > 1:
        return "several inputs, forward_args or a tensor output"
    x = rows.inputs[0]
    finite = x[torch.isfinite(x).reshape(len(x), -1).all(1)][:8]
    return closed_form(forward, finite) if len(finite) else "no finite row"


def _no_closed_form(reason: str) -> SpecError:
    return SpecError(
        "accuracy.kind exact",
        expected=(
            "a ReLU network of at most two hidden layers, explained before any output transform"
        ),
        seen=reason,
        next_step="use `adaptive`, which certifies an error estimate",
    )


def integrate_network(
    network: ShallowNetwork, problem: Problem, rows: Tensor, settle: Settle, tolerance: float
) -> Iterator[Verdicts]:
    """Verdicts by target of all rows, after f(x) and f(x') as the closed form has them. No gradient
    is evaluated.

    A row above the tolerance is what rounding allows.
    """
    targets = range(problem.targets_per_row)
    found = [_integrate(network, problem, rows, target) for target in targets]
    f_input = np.stack([integral.f_input for integral in found], 1)
    f_baseline = np.stack([integral.f_baseline for integral in found], 1)
    settle(rows, _placed(f_input, problem), _placed(f_baseline, problem))
    for target, integral in zip(targets, found, strict=True):
        yield _verdicts(problem, rows, target, integral, tolerance)


def _placed(numbers: NDArray[Any], problem: Problem) -> Tensor:
    return torch.from_numpy(numbers).to(problem.device)


def _integrate(
    network: ShallowNetwork, problem: Problem, rows: Tensor, target: int
) -> ExactIntegral:
    table = problem.table(rows, target)
    (baseline,) = problem.baselines
    return integrate_exactly(
        network,
        problem.input(rows)[0],
        baseline if len(baseline) == 1 else problem.baseline(rows)[0],
        None if table is None else table[:, 0],
        tick=problem.tick,
    )


def _verdicts(
    problem: Problem, rows: Tensor, target: int, found: ExactIntegral, tolerance: float
) -> Verdicts:
    """Of all rows; those with x = x' are settled already, and settled again the same way: zeros,
    gap 0, error 0.
    """
    values = found.attributions
    total = values.sum(1)
    size = np.abs(values).sum(1)
    with np.errstate(invalid="ignore"):
        gap = total - (found.f_input - found.f_baseline)
    reported = _reported(problem, rows, values, size)
    error = _errors(gap, size, reported, ROUNDING * problem.epsilon)
    finite = np.isfinite(gap) & np.isfinite(size)
    places = np.select([~finite, error <= tolerance], [0, 1], 2)
    none = torch.zeros_like(rows)
    return Verdicts(
        rows=rows,
        targets=none + target,
        status=coded(STATUSES, _placed(places, problem)),
        attributions=_placed(values, problem),
        gap=_placed(gap, problem),
        error=_placed(error, problem),
        evaluations=none,
        needed=none,
        gradients=_placed(found.gradients, problem),
    )


def _reported(problem: Problem, rows: Tensor, values: Floats, size: Floats) -> Floats:
    """‖·‖₁ of the numbers that are reported, `[rows]`: of attributions, or of sums of them."""
    sums = problem.reported(rows, torch.from_numpy(values).to(rows.device)).cpu().numpy()
    return size if sums.shape == values.shape else np.abs(sums).sum(1)


def _errors(gap: Floats, size: Floats, reported: Floats, rounding: float) -> Floats:
    """Relative errors: the gap's share of ‖·‖₁ of what is reported and the rounding of numbers that
    go into it; 0 where there is nothing to round.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        cancelled = np.where(size > 0, size / reported, 1.0)
        relative = np.abs(gap) / reported + rounding * cancelled
    nothing = (size == 0) & (gap == 0)
    relative = np.where((size > 0) & (reported == 0), np.inf, relative)
    return np.where(nothing, 0.0, relative)
