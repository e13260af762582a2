"""Results of one call while they come in, and what they are returned as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Accuracy, Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Floats, Problem
from integrand.workers.engine.loop import Verdicts

Tensors = Tensor | tuple[Tensor, ...]


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


def beside(parts: Sequence[Attribution]) -> Attribution:
    """The targets of several calls about the same rows, side by side; each part is `[rows, targets,
    ...]`.
    """
    tensors = {
        name: torch.cat([getattr(p, name) for p in parts], 1)
        for name in ("f_input", "f_baseline", "gap", "error_estimate", "evaluations")
    }
    count = len(parts[0].f_input)
    statuses, reasons = (
        [np.array(values, object).reshape(count, -1) for values in column]
        for column in ([p.status for p in parts], [p.reason for p in parts])
    )
    many = isinstance(parts[0].attributions, tuple)
    values = [
        torch.cat(v, 1)
        for v in zip(*[p.attributions if many else (p.attributions,) for p in parts], strict=True)
    ]
    return Attribution(
        tuple(values) if many else values[0],
        **tensors,
        status=tuple(np.hstack(statuses).flatten()),
        reason=tuple(np.hstack(reasons).flatten()),
        padded=sum(p.padded for p in parts),
        batch_rows=min(p.batch_rows for p in parts),
    )


class Report:
    """Results per (row, target) while they come in; a row that never gets to its targets fails or
    settles for all.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        shape = (problem.rows, problem.targets_per_row)
        self.values = np.full(
            (*shape, problem.elements), np.nan, torch.empty(0, dtype=problem.dtype).numpy().dtype
        )
        self.f_input, self.f_baseline = np.full(shape, np.nan), np.full(shape, np.nan)
        self.gap, self.error = np.full(shape, np.nan), np.full(shape, np.nan)
        self.evaluations = np.zeros(shape, np.int32)
        self.status = np.empty(shape, object)
        self.status.fill(RowStatus.bad_input)  # np.full would make it a plain string
        self.reason = np.full(shape, None, object)

    def set_bad_inputs(self) -> Tensor:
        """Mark rows whose input or baseline is not finite; return the numbers of the others."""
        clean = torch.ones(self.problem.rows, dtype=torch.bool)
        for kind, tensors in (("input", self.problem.inputs), ("baseline", self.problem.baselines)):
            for i, tensor in enumerate(tensors):
                finite = (
                    torch.isfinite(tensor)
                    .reshape(len(tensor), -1)
                    .all(1)
                    .cpu()
                    .expand(self.problem.rows)
                )
                self.reason[(~finite & clean).numpy()] = f"{kind} {i} holds NaN or inf"
                clean &= finite
        return clean.nonzero().flatten().to(self.problem.device)

    def set_endpoints(self, rows: Tensor, f_input: Floats, f_baseline: Floats) -> None:
        places = rows.cpu().numpy()
        self.f_input[places], self.f_baseline[places] = f_input, f_baseline

    def set_unmoved(self, rows: Tensor) -> np.ndarray:
        """Settle rows with x = x' (all zeros) and with a non-finite f; return which of `rows`
        remain to integrate.
        """
        places = rows.cpu().numpy()
        moved = np.concatenate(
            [np.any(self.problem.difference(part) != 0, 1) for part in rows.split(1024)]
        )
        finite = np.isfinite(self.f_input[places]) & np.isfinite(self.f_baseline[places])
        for row, target in np.argwhere(~finite):
            where = "x" if not np.isfinite(self.f_input[places[row], target]) else "the baseline"
            self.reason[places[row], target] = f"the model's output at {where} is NaN or inf"
        self.status[places] = np.array([RowStatus.nonfinite, RowStatus.ok], object)[
            finite.astype(int)
        ]
        still = finite & ~moved[:, None]
        for array in (self.values, self.gap, self.error):
            array[places] = np.where(
                still.reshape(*still.shape, *[1] * (array.ndim - 2)), 0, np.nan
            )
        return np.asarray(finite.any(1) & moved)

    def take(self, verdicts: Iterator[Verdicts], accuracy: Accuracy) -> None:
        for v in verdicts:
            at = v.rows, v.targets
            self.status[at], self.evaluations[at] = v.statuses, v.evaluations
            known = v.statuses != RowStatus.nonfinite
            for i in np.flatnonzero(
                (v.statuses != RowStatus.ok) & (v.statuses != RowStatus.unchecked)
            ):
                place = v.rows[i], v.targets[i]
                if self.reason[place] is None:
                    self.reason[place] = _reason(v, int(i), accuracy)
            there = v.rows[known], v.targets[known]
            self.values[there] = v.attributions[known]
            self.gap[there], self.error[there] = v.gap[known], v.error[known]

    def result(self, like: Tensors, *, several: bool, padded: int, batch_rows: int) -> Attribution:
        """One entry per row, or `[rows, targets]` where several targets were asked for."""
        shape = self.f_input.shape if several else self.f_input.shape[:1]
        start, parts = 0, []
        for x in self.problem.inputs:
            size = x[0].numel()
            part = np.ascontiguousarray(self.values[:, :, start : start + size])
            parts.append(torch.from_numpy(part).reshape(*shape, *x.shape[1:]).to(x.device, x.dtype))
            start += size
        diagnostics = [
            torch.from_numpy(a).reshape(shape)
            for a in (self.f_input, self.f_baseline, self.gap, self.error, self.evaluations)
        ]
        return Attribution(
            tuple(parts) if isinstance(like, tuple) else parts[0],
            *diagnostics,
            tuple(self.status.flatten()),
            tuple(self.reason.flatten()),
            padded,
            batch_rows,
        )


def _reason(verdicts: Verdicts, place: int, accuracy: Accuracy) -> str | None:
    status, error, needed = verdicts.statuses[place], verdicts.error[place], verdicts.needed[place]
    if status is RowStatus.nonfinite:
        return "the model's gradient on the path is NaN or inf"
    if status is RowStatus.not_converged and isinstance(accuracy, Adaptive):
        reach = f"; the tolerance would take about {float(needed):.1g}" if needed else ""
        return (
            f"error estimate {error:.2g} is above the tolerance {accuracy.tolerance:g} "
            f"after {verdicts.evaluations[place]} evaluations{reach}"
        )
    if status is RowStatus.at_precision_floor:
        return f"error estimate {error:.2g} is what rounding allows"
    return None
