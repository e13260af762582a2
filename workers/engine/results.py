"""Results of one call while they come in, on the device, and what they are returned as."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import Role, RowStatus
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.row_results import NUMBERS, RowResults
from integrand.workers.engine.verdicts import CODES, STATUSES, Ending, Verdicts, decoded
from integrand.workers.models.reporting import Reporting

Tensors = Tensor | tuple[Tensor, ...]
_SAYS_IT_ALL = (RowStatus.ok, RowStatus.unchecked)


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
    baseline_spread  root mean square over draws of ‖a_k − ā‖₁, divided by ‖ā‖₁, `[rows]` float64;
                    None where rows have one baseline
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
    baseline_spread: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Explained:
    """Results `[rows, targets]` of a call, and what its step batches were: see `Attribution`.

    attributions  for each input `[rows, targets, ...]` in its dtype, on its device
    numbers       by name, `[rows, targets]` on the host
    codes         of the statuses, on the host
    optional      columns that some runs have, by name, `[rows, targets]` on the host
    roles         of `attributions`, where these are not one for each input: see `Reporting`
    """

    attributions: tuple[Tensor, ...]
    numbers: dict[str, NDArray[Any]]
    codes: NDArray[np.int64]
    reason: NDArray[np.object_]
    padded: int
    batch_rows: int
    optional: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    roles: tuple[Role, ...] = ()

    @property
    def certified(self) -> tuple[int, ...]:
        """Which blocks hold the numbers that errors are relative to."""
        return self._of("group") or self.attributed

    @property
    def attributed(self) -> tuple[int, ...]:
        """Which blocks hold attributions, of features or of groups in their place."""
        return self._of("attr") if self.roles else tuple(range(len(self.attributions)))

    def _of(self, role: Role) -> tuple[int, ...]:
        return tuple(i for i, one in enumerate(self.roles) if one == role)

    @cached_property
    def results(self) -> RowResults:
        """All of it on the host."""
        values = tuple(own.cpu().numpy() for own in self.attributions)
        status = decoded(self.codes)
        return RowResults(
            attributions=values,
            status=status,
            reason=self.reason,
            optional=self.optional,
            **self.numbers,
        )

    def holds(self, status: RowStatus) -> bool:
        """Whether any row has it."""
        return bool((self.codes == CODES[status]).any())


def as_attribution(found: Explained, inputs: Tensors, *, several: bool) -> Attribution:
    """Results as they are returned for `inputs`: one entry per row, or `[rows, targets]` where
    several targets were asked for.
    """
    values = found.attributions
    spread = found.optional.get("baseline_spread")
    apart = None if spread is None else torch.from_numpy(spread)
    numbers = {name: torch.from_numpy(column) for name, column in found.numbers.items()}
    if not several:
        values = tuple(own[:, 0] for own in values)
        numbers = {name: column[:, 0] for name, column in numbers.items()}
        apart = None if apart is None else apart[:, 0]
    return Attribution(
        attributions=values if isinstance(inputs, tuple) else values[0],
        status=_statuses(found.codes),
        reason=tuple(found.reason.reshape(-1).tolist()),
        padded=found.padded,
        batch_rows=found.batch_rows,
        baseline_spread=apart,
        **numbers,
    )


def _statuses(codes: NDArray[np.int64]) -> tuple[RowStatus, ...]:
    first = codes.flat[0]
    if (codes == first).all():
        return (STATUSES[first],) * codes.size
    return tuple(decoded(codes).reshape(-1).tolist())


def numpy_dtype(tensor: Tensor) -> np.dtype[np.floating[Any]]:
    """Of the array that a tensor is on the host."""
    nothing = torch.empty(0, dtype=tensor.dtype)
    return nothing.numpy().dtype


Reason = Callable[[Ending], str | None]
"""Why a row is not ok."""


class Report:
    """Results per (row, target) while they come in, on the problem's device; a row that never gets
    to its targets fails or settles for all.

    together  paths of the problem that are one row here: one, or all draws
    """

    def __init__(self, problem: Problem, together: int = 1) -> None:
        self.problem, self.together = problem, together
        shape = (problem.rows // together, problem.targets_per_row)
        unknown = torch.full(shape, torch.nan, dtype=torch.float64, device=problem.device)
        self.f_input, self.f_baseline, self.gap, self.error = (unknown.clone() for _ in range(4))
        self.evaluations = torch.zeros(shape, dtype=torch.int32, device=problem.device)
        self.needed = torch.zeros(shape, dtype=torch.int64, device=problem.device)
        self.status = torch.full_like(self.needed, CODES[RowStatus.bad_input])
        self.reporting = problem.reporting or _plain(problem)
        dtypes = [x.dtype for x in problem.inputs]
        if problem.reporting is not None:
            dtypes = [problem.dtype] * len(self.reporting.shapes)
        self.attributions = tuple(
            torch.full((*shape, *one), torch.nan, dtype=dtype, device=problem.device)
            for one, dtype in zip(self.reporting.shapes, dtypes, strict=True)
        )
        self.refused: dict[int, str] = {}

    def set_bad_inputs(self) -> Tensor:
        """Mark rows whose input or baseline is not finite; return the numbers of the others."""
        tensors = self.problem.tensors
        paths = torch.arange(self.problem.rows, device=self.problem.device)
        clean = torch.ones(len(self.status), dtype=torch.bool, device=paths.device)
        ends = (
            ("input", self.problem.inputs, tensors.of_row),
            ("baseline", self.problem.baselines, tensors.of_draw),
        )
        for kind, each, of_paths in ends:
            for i, tensor in enumerate(each):
                largest = tensor.reshape(len(tensor), -1).abs().amax(1)
                finite = self._rows(of_paths(torch.isfinite(largest), paths)).all(1)
                for row in (~finite & clean).nonzero().flatten().tolist():
                    self.refused[row] = f"{kind} {i} holds NaN or inf"
                clean &= finite
        return clean.nonzero().flatten()

    def _rows(self, of_paths: Tensor) -> Tensor:
        """What is known of paths, `[rows, together]`."""
        return of_paths.reshape(-1, self.together)

    def settle(self, rows: Tensor, f_input: Tensor, f_baseline: Tensor) -> Tensor:
        """Take f at both ends, and settle rows with x = x' (all zeros) and with a non-finite f;
        return which of `rows` remain to integrate, `[rows]` bool.
        """
        self.f_input[rows] = f_input
        self.f_baseline[rows] = f_baseline
        finite = torch.isfinite(f_input) & torch.isfinite(f_baseline)
        self.status[rows] = torch.where(finite, CODES[RowStatus.ok], CODES[RowStatus.nonfinite])
        moved = self._moved(rows)
        nothing = finite & ~moved[:, None]
        settled = nothing.any(1)
        self._put_zeros(rows[settled], nothing[settled])
        return finite.any(1) & moved

    def _put_zeros(self, rows: Tensor, nothing: Tensor) -> None:
        """Where nothing is to be attributed, `[rows, targets]`: zeros without a gap or an error."""
        values = torch.where(nothing, 0.0, torch.nan).double()
        self.gap[rows] = values
        self.error[rows] = values
        for role, column in zip(self.reporting.roles, self.attributions, strict=True):
            if role == "mean_gradient":  # none is evaluated
                continue
            ones = [1] * (column.ndim - values.ndim)
            zeros = values.to(column.dtype).reshape(*values.shape, *ones)
            column[rows] = zeros.expand(*values.shape, *column.shape[2:])

    def take(self, verdicts: Iterator[Verdicts]) -> None:
        """Put each verdict in its place."""
        for verdict in verdicts:
            self._put(verdict)

    def finished(self, reason: Reason, *, padded: int, batch_rows: int) -> Explained:
        """All results, with the reason of each that is not ok."""
        numbers = {
            "f_input": self.f_input,
            "f_baseline": self.f_baseline,
            "gap": self.gap,
            "error_estimate": self.error,
            "evaluations": self.evaluations,
        }
        assert set(numbers) == set(NUMBERS)
        on_host = {name: column.cpu().numpy() for name, column in numbers.items()}
        codes = self.status.cpu().numpy()
        return Explained(
            attributions=self.attributions,
            numbers=on_host,
            codes=codes,
            reason=self._reasons(codes, on_host, reason),
            padded=padded,
            batch_rows=batch_rows,
            roles=self.reporting.roles,
        )

    def _reasons(
        self, codes: NDArray[np.int64], numbers: dict[str, NDArray[Any]], reason: Reason
    ) -> NDArray[np.object_]:
        found = np.empty(codes.shape, object)
        open_ = ~np.isin(codes, [CODES[status] for status in _SAYS_IT_ALL])
        if not open_.any():
            return found
        needed = self.needed.cpu().numpy()
        for row, target in np.argwhere(open_).tolist():
            place = row, target
            if row in self.refused:
                found[place] = self.refused[row]
            elif not np.isfinite(numbers["f_input"][place]):
                found[place] = "the model's output at x is NaN or inf"
            elif not np.isfinite(numbers["f_baseline"][place]):
                found[place] = "the model's output at the baseline is NaN or inf"
            else:
                ending = Ending(
                    status=STATUSES[codes[place]],
                    gap=float(numbers["gap"][place]),
                    error=float(numbers["error_estimate"][place]),
                    evaluations=int(numbers["evaluations"][place]),
                    needed=int(needed[place]),
                )
                found[place] = reason(ending)
        return found

    def _moved(self, rows: Tensor) -> Tensor:
        """Which rows differ from a baseline of theirs in any element."""
        each = torch.arange(self.together, device=rows.device)
        paths = (rows[:, None] * self.together + each).flatten()
        moved = torch.zeros_like(paths, dtype=torch.bool)
        ends = zip(self.problem.input(paths), self.problem.baseline(paths), strict=True)
        for x, baseline in ends:
            moved |= (x != baseline).reshape(len(paths), -1).any(1)
        return self._rows(moved).any(1)

    def _put(self, verdict: Verdicts) -> None:
        """Status and costs of all, numbers of those that have some."""
        at = verdict.rows, verdict.targets
        self.status[at] = verdict.status
        self.evaluations[at] = verdict.evaluations.to(torch.int32)
        self.needed[at] = verdict.needed
        known = verdict.status != CODES[RowStatus.nonfinite]
        self.gap[at] = torch.where(known, verdict.gap, torch.nan)
        self.error[at] = torch.where(known, verdict.error, torch.nan)
        found = self._by_role(verdict)
        ends = dict.fromkeys(found, 0)
        for role, column in zip(self.reporting.roles, self.attributions, strict=True):
            if role not in found:
                continue
            shape = column.shape[2:]
            start, ends[role] = ends[role], ends[role] + math.prod(shape)
            own = found[role][:, start : ends[role]].to(column.dtype)
            kept = torch.where(known[:, None], own, torch.nan)
            column[at] = kept.reshape(-1, *shape)

    def _by_role(self, verdict: Verdicts) -> dict[Role, Tensor]:
        """What the blocks of each role hold, `[tracks, numbers of all of them]`."""
        reporting = self.reporting
        found: dict[Role, Tensor] = {"attr": verdict.attributions}
        if reporting.members is not None:
            owners = self._owners(verdict.rows)
            sums = reporting.summed(verdict.attributions.double(), owners)
            found[reporting.summed_role] = sums
        if reporting.mean_gradients and verdict.gradients is not None:
            found["mean_gradient"] = verdict.gradients
        return found

    def _owners(self, rows: Tensor) -> Tensor:
        """The rows of the data that rows of this report are of."""
        return rows if self.together > 1 else self.problem.tensors.owner(rows)


def _plain(problem: Problem) -> Reporting:
    """Attributions of all inputs."""
    shapes = tuple(tuple(x.shape[1:]) for x in problem.inputs)
    roles: list[Role] = ["attr" for _ in shapes]
    return Reporting(roles=tuple(roles), shapes=shapes)
