"""Tracks under way: which row, target and piece of its path each is about, and what is known of
f there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Problem

Integers = NDArray[np.int64]
Some = slice | Integers
"""Which tracks of several."""
EVERY = slice(None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tracks:
    """One target of one row each: numbers [tracks], of rows and targets on the host too, where
    tracks are sorted; all else on the problem's device.

    row, target     what each is about
    rows, targets   the same on the device
    start, width    its piece of the path
    f_start, f_end  f at both ends of the piece
    change          f(x) − f(x') of the row
    magnitude       |f(x)| + |f(x')|
    integrand       size of what may cancel in the integral, as far as seen
    rounding        relative error of the attributions by reduced precision, as measured; else 0
    of_gradients    relative error of one gradient by it
    of_values       error of f by it
    spent           evaluations of the row so far
    reserved        evaluations that its waiting pieces need at least
    depth           pieces around its piece; 0 for the whole path
    """

    row: Integers
    target: Integers
    rows: Tensor
    targets: Tensor
    start: Tensor
    width: Tensor
    f_start: Tensor
    f_end: Tensor
    change: Tensor
    magnitude: Tensor
    integrand: Tensor
    rounding: Tensor
    of_gradients: Tensor
    of_values: Tensor
    spent: Tensor
    reserved: Tensor
    depth: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def take(self, which: Some) -> Tracks:
        if which is EVERY:
            return self
        there = on_device(which, self.device)

        def own(column: Tensor | Integers) -> Tensor | Integers:
            return column[there] if isinstance(column, Tensor) else column[which]

        columns = {f.name: own(getattr(self, f.name)) for f in fields(self)}
        return Tracks(**columns)  # type: ignore[arg-type]  # by name and kind

    def difference(self, problem: Problem) -> Tensor:
        """The piece's part of x − x', or of h(x) − h(x') behind a hoisted prefix: [tracks,
        elements] float64.
        """
        return problem.difference(self.rows) * self.width[:, None]


def on_device(which: Some, device: torch.device) -> slice | Tensor:
    """The same choice, for tensors on a device."""
    if isinstance(which, slice):
        return which
    return to_device(which, device)


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Small arrays from the host, which does not wait for the device."""
    contiguous = np.ascontiguousarray(numbers)
    return torch.from_numpy(contiguous).to(device, non_blocking=True)


def whole_paths(problem: Problem, rows: Tensor, f_input: Tensor, f_baseline: Tensor) -> Tracks:
    """A track for every target of some rows, all rows of one target after the other; f_* [rows,
    targets].
    """
    targets = problem.targets_per_row
    numbers = rows.cpu().numpy()
    f_end, f_start = f_input.T.reshape(-1), f_baseline.T.reshape(-1)
    none = torch.zeros_like(f_end)
    counts = torch.zeros_like(f_end, dtype=torch.int64)
    target = np.repeat(np.arange(targets), len(numbers))

    share = single = values = none
    if problem.rounding is not None:
        seen = problem.rounding
        share, single, values = (
            column[rows].T.reshape(-1) for column in (seen.share, seen.single, seen.values)
        )
    return Tracks(
        row=np.tile(numbers, targets),
        target=target,
        rows=rows.repeat(targets),
        targets=to_device(target, problem.device),
        start=none,
        width=torch.ones_like(none),
        f_start=f_start,
        f_end=f_end,
        change=f_end - f_start,
        magnitude=f_end.abs() + f_start.abs(),
        integrand=none,
        rounding=share,
        of_gradients=single,
        of_values=values,
        spent=counts,
        reserved=counts,
        depth=counts,
    )


def attributions(
    evaluator: Evaluator, tracks: Tracks, combined: Tensor, difference: Tensor
) -> tuple[Tensor, Tensor]:
    """Combinations of gradients `[tracks, k, elements]` as attributions `[tracks, k, features]`:
    times x − x'. `combined` is not needed afterwards. And the piece's part of the first of them
    before that, `[tracks, features]`; `[tracks, 0]` where nobody asks for mean gradients.

    `difference` [tracks, elements] is that of the problem, which behind a hoisted prefix is not yet
    one of features.
    """
    problem = evaluator.problem
    if problem.lift is not None:
        combined = evaluator.pull(tracks.rows, combined)
        difference = tracks.difference(problem.lift.problem)
    first = combined[:, 0, :0]
    if problem.reporting is not None and problem.reporting.mean_gradients:
        first = combined[:, 0] * tracks.width[:, None]
    return combined.mul_(difference[:, None]), first


def masked(gradients: Tensor, difference: Tensor) -> Tensor:
    """Gradients `[tracks, k, elements]` with zeros for those that are not finite where x = x',
    whose attributions are 0 whatever they are.
    """
    on_host = gradients.device.type == "cpu"
    if on_host and bool(torch.isfinite(gradients.sum())):  # looking at it costs nothing there
        return gradients
    spoilt = (difference == 0)[:, None] & ~gradients.isfinite()
    return gradients.masked_fill(spoilt, 0.0)
