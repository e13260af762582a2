"""Results of one call while they come in, and what they are returned as."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.engine.loop import Verdicts
from integrand.workers.engine.problem import Floats, Problem
from integrand.workers.engine.row_results import NUMBERS, RowResults

Tensors = Tensor | tuple[Tensor, ...]
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attributions and diagnostics, one entry per row; `[rows, targets]` where a list of targets
    was asked for.

    attributions    like `inputs`: `[rows, ...]` in the inputs' dtype, units of f; NaN where the row
                    has none
    f_input         f(x), `[rows]` float64
    f_baseline      f(x'), `[rows]` float64
    gap             Σ attributions − (f(x) − f(x')), `[rows]` float64, units of f, signed
    error_estimate  estimated ‖a − a*‖₁ / ‖a‖₁, `[rows]` float64; NaN where the rule gives none
    evaluations     gradient evaluations of the row as if alone, `[rows]` int32
    status, reason  what became of each row (row by row, target by target), and why if it is not ok
    padded          gradient evaluations that only filled step batches up
    batch_rows      rows of a step batch: fewer than planned where memory ran out
    """

    attributions: Tensors
    f_input: Tensor
    f_baseline: Tensor
    gap: Tensor
    error_estimate: Tensor
    evaluations: Tensor
    status: tuple[RowStatus, ...]
    reason: tuple[str | None, ...]
    padded: int = 0
    batch_rows: int = 0


@dataclass(frozen=True, eq=False)
class Explained:
    """Results `[rows, targets]` of a call, and what its step batches were: see `Attribution`."""

    results: RowResults
    padded: int
    batch_rows: int


def as_attribution(found: Explained, inputs: Tensors, *, several: bool) -> Attribution:
    """Results as they are returned for `inputs`: one entry per row, or `[rows, targets]` where
    several targets were asked for.
    """
    results = found.results if several else found.results.flat()
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    pairs = zip(results.attributions, xs, strict=True)
    values = tuple(torch.from_numpy(value).to(x.device) for value, x in pairs)
    numbers = {name: torch.from_numpy(getattr(results, name)) for name in NUMBERS}
    return Attribution(
        attributions=values if isinstance(inputs, tuple) else values[0],
        status=tuple(results.status.reshape(-1).tolist()),
        reason=tuple(results.reason.reshape(-1).tolist()),
        padded=found.padded,
        batch_rows=found.batch_rows,
        **numbers,
    )


def numpy_dtype(tensor: Tensor) -> np.dtype[np.floating[Any]]:
    """Of the array that a tensor is on the host."""
    nothing = torch.empty(0, dtype=tensor.dtype)
    return nothing.numpy().dtype


Reason = Callable[[Verdicts, int], str | None]
"""Why the verdict at a place is not ok."""


class Report:
    """Results per (row, target) while they come in; a row that never gets to its targets fails or
    settles for all.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.results = RowResults.empty(
            (problem.rows, problem.targets_per_row),
            inputs=[tuple(x.shape[1:]) for x in problem.inputs],
            dtypes=[numpy_dtype(x) for x in problem.inputs],
        )

    def set_bad_inputs(self) -> Tensor:
        """Mark rows whose input or baseline is not finite; return the numbers of the others."""
        clean = torch.ones(self.problem.rows, dtype=torch.bool)
        for kind, tensors in (("input", self.problem.inputs), ("baseline", self.problem.baselines)):
            for i, tensor in enumerate(tensors):
                elements = torch.isfinite(tensor).reshape(len(tensor), -1)
                finite = elements.all(1).cpu().expand(self.problem.rows)
                bad = ~finite & clean
                self.results.reason[bad.numpy()] = f"{kind} {i} holds NaN or inf"
                clean &= finite
        numbers = clean.nonzero().flatten()
        return numbers.to(self.problem.device)

    def settle(self, rows: Tensor, f_input: Floats, f_baseline: Floats) -> NDArray[np.bool_]:
        """Take f at both ends, and settle rows with x = x' (all zeros) and with a non-finite f;
        return which of `rows` remain to integrate.
        """
        places = rows.cpu().numpy()
        self.results.f_input[places] = f_input
        self.results.f_baseline[places] = f_baseline
        finite = self._set_nonfinite(places)
        moved = self._moved(rows)
        values = np.where(finite & ~moved[:, None], 0, np.nan)
        self.results.gap[places] = values
        self.results.error_estimate[places] = values
        for column in self.results.attributions:
            ones = [1] * (column.ndim - values.ndim)
            column[places] = values.reshape(*values.shape, *ones)
        return np.asarray(finite.any(1) & moved)

    def take(self, verdicts: Iterator[Verdicts], reason: Reason) -> None:
        """Put each verdict in its place, with a reason where it has none yet: `reason` of a verdict
        and a place in it.
        """
        for verdict in verdicts:
            self._put(verdict)
            statuses = verdict.statuses
            explained = (statuses != RowStatus.ok) & (statuses != RowStatus.unchecked)
            for i in np.flatnonzero(explained):
                place = verdict.rows[i], verdict.targets[i]
                if self.results.reason[place] is None:
                    self.results.reason[place] = reason(verdict, int(i))

    def _set_nonfinite(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The rows' status by f at both ends; which targets have both finite."""
        finite_input = np.isfinite(self.results.f_input[places])
        finite = finite_input & np.isfinite(self.results.f_baseline[places])
        for row, target in np.argwhere(~finite):
            where = "the baseline" if finite_input[row, target] else "x"
            place = places[row], target
            self.results.reason[place] = f"the model's output at {where} is NaN or inf"
        statuses = np.array([RowStatus.nonfinite, RowStatus.ok], object)
        self.results.status[places] = statuses[finite.astype(int)]
        return finite

    def _moved(self, rows: Tensor) -> NDArray[np.bool_]:
        """Which rows differ from their baselines in any element."""
        moved = []
        for part in torch.split(rows, _ROWS_AT_ONCE):
            difference = self.problem.difference(part)
            moved.append(np.any(difference != 0, 1))
        return np.concatenate(moved)

    def _put(self, verdict: Verdicts) -> None:
        """Status and costs of all, numbers of those that have some."""
        at = verdict.rows, verdict.targets
        self.results.status[at] = verdict.statuses
        self.results.evaluations[at] = verdict.evaluations
        known = verdict.statuses != RowStatus.nonfinite
        there = verdict.rows[known], verdict.targets[known]
        self.results.gap[there] = verdict.gap[known]
        self.results.error_estimate[there] = verdict.error[known]
        values = verdict.attributions[known]
        end = 0
        for column in self.results.attributions:
            shape = column.shape[2:]
            start, end = end, end + math.prod(shape)
            own = values[:, start:end]
            column[there] = own.reshape(-1, *shape)
