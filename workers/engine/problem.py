"""What one call is about: a model, the tensors of its rows, and how its step batches run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from integrand.workers.engine.reduced import Reduced
from integrand.workers.models.gradients import SideBySide
from integrand.workers.models.outputs import Forward
from integrand.workers.models.reporting import Reporting
from integrand.workers.models.row_tensors import RowTensors, one_each
from integrand.workers.rewriting.hoisting import Hoisted


@dataclass(frozen=True, eq=False)
class Rounding:
    """What reduced precision does to rows, [rows, targets] float64; NaN where it was not measured.

    share   relative L1 error that it is taken to cause in attributions
    single  relative L1 error of one gradient
    values  error of f
    """

    share: Tensor
    single: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call is about. Its rows are paths: a row with several baselines is there once for
    each, draw by draw.

    tensors    validated; its target is `[rows, targets, depth]`, None for scalar outputs
    lift       where inputs and baselines are hidden tensors of a hoisted prefix: the problem in
               features
    step       what step batches run in place of `forward`: compiled, or in reduced precision
    reduced    that precision, if gradients are taken in one
    rounding   what it does to rows, as measured
    smaller    sizes below `batch_rows`, descending, in which rows keep the bits that they have in a
               full step batch
    """

    forward: Forward
    tensors: RowTensors
    batch_rows: int
    tick: Callable[[], None] = lambda: None
    lift: Lift | None = None
    step: Forward | None = None
    reduced: Reduced | None = None
    rounding: Rounding | None = None
    smaller: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.tensors.inputs

    @property
    def baselines(self) -> tuple[Tensor, ...]:
        return self.tensors.baselines

    @property
    def forward_args(self) -> tuple[Tensor, ...]:
        return self.tensors.forward_args

    @property
    def targets(self) -> Tensor | None:
        return self.tensors.target

    @property
    def draws(self) -> int:
        return self.tensors.draws

    @property
    def rows(self) -> int:
        return self.tensors.paths

    @property
    def targets_per_row(self) -> int:
        return 1 if self.targets is None else self.targets.shape[1]

    @property
    def elements(self) -> int:
        return self.tensors.elements

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    @property
    def dtype(self) -> torch.dtype:
        """Of gradients: the widest of the inputs."""
        dtypes = [x.dtype for x in self.inputs]
        return reduce(torch.promote_types, dtypes)

    @property
    def epsilon(self) -> float:
        """Rounding of one gradient, relative: that of the narrowest input, or of reduced
        precision.
        """
        if self.reduced is not None:
            return self.reduced.epsilon
        return max(float(torch.finfo(x.dtype).eps) for x in self.inputs)

    def passes(self) -> AbstractContextManager[None]:
        """What forward and backward passes of step batches run in."""
        return nullcontext() if self.reduced is None else self.reduced.passes()

    def arguments(self, rows: Tensor) -> list[Tensor]:
        return [self.tensors.of_row(a, rows) for a in self.forward_args]

    def input(self, rows: Tensor) -> list[Tensor]:
        return [self.tensors.of_row(x, rows) for x in self.inputs]

    def baseline(self, rows: Tensor) -> list[Tensor]:
        return [self.tensors.of_draw(b, rows) for b in self.baselines]

    def table(self, rows: Tensor, target: int) -> Tensor | None:
        """Output indices of one target of some rows, `[rows, depth]`."""
        if self.targets is None:
            return None
        return one_each(self.targets, self.tensors.owner(rows))[:, target]

    def difference(self, rows: Tensor) -> Tensor:
        """x − x' of some rows, all inputs side by side: [rows, elements] float64."""
        ends = zip(self.input(rows), self.baseline(rows), strict=True)
        parts = [x.double() - b.double() for x, b in ends]
        return SideBySide.join(parts)

    @property
    def reporting(self) -> Reporting | None:
        """What is reported of rows; None where that is their attributions alone."""
        return self.features.tensors.reporting

    def reported(self, rows: Tensor, attributions: Tensor) -> Tensor:
        """The numbers that errors are relative to: attributions of features `[n, elements]`, or
        their sums where these are reported. An error of features bounds that of their sums.
        """
        reporting = self.reporting
        if reporting is None or reporting.members is None:
            return attributions
        return reporting.summed(attributions, self.features.tensors.owner(rows))

    @property
    def features(self) -> Problem:
        """The problem whose inputs are attributed."""
        return self.lift.problem if self.lift else self


@dataclass(frozen=True, eq=False)
class Lift:
    """How hidden gradients become feature gradients: the problem in features, and its model's
    affine prefix.
    """

    problem: Problem
    hoisted: Hoisted
