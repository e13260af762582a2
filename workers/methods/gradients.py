"""One gradient at the row itself: saliency, and input × gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.schemas.specs.methods import InputXGradient, MethodPart, Saliency
from integrand.schemas.specs.part import Part
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator, gradients_at
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.steps import Items
from integrand.workers.engine.verdicts import Verdicts, coded
from integrand.workers.methods.base import Method, Settle
from integrand.workers.methods.endings import Ends, ends_of
from integrand.workers.models.gradients import SideBySide

STATUSES = (RowStatus.nonfinite, RowStatus.unchecked)


@dataclass(frozen=True)
class GradientMethod(Method[Part]):
    """The gradient at each row, made into attributions by `combine`."""

    part: MethodPart

    @property
    def by_path(self) -> bool:
        return False

    @property
    def complete(self) -> bool:
        return False

    @property
    def most_evaluations(self) -> int:
        return 1

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        ends = ends_of(evaluator, rows, settle)
        problem = evaluator.problem
        paths = rows * problem.draws
        wanted = range(problem.targets_per_row)
        at_row = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        found = gradients_at(evaluator, Items(paths, at_row), wanted)
        inputs = SideBySide.join([x.double() for x in problem.input(paths)])
        for target in wanted:
            yield self._ended(ends, target, self.combine(found[target].double(), inputs))

    def _ended(self, ends: Ends, target: int, values: Tensor) -> Verdicts:
        total = values.sum(1)
        change = ends.change[:, target]
        none = torch.zeros_like(ends.rows)
        finite = torch.isfinite(total + change)
        return Verdicts(
            rows=ends.rows,
            targets=none + target,
            status=coded(STATUSES, finite.long()),
            attributions=values,
            gap=total - change,
            error=torch.full_like(total, torch.nan),
            evaluations=none + 1,
            needed=none,
        )

    @abstractmethod
    def combine(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Attributions `[rows, elements]` float64, of gradients and inputs of that shape."""


class SaliencyMethod(GradientMethod):
    """|∂F/∂x|, or its sign with it. Simonyan, Vedaldi & Zisserman 2014, §3."""

    part: Saliency

    @property
    def signed(self) -> bool:
        # a slope: which way more of the feature would push, not which way it did
        return False

    def combine(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        return gradients.abs() if self.part.absolute else gradients


class InputXGradientMethod(GradientMethod):
    """x · ∂F/∂x. Shrikumar, Greenside, Shcherbina & Kundaje 2016, §3."""

    part: InputXGradient

    def combine(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        return gradients * inputs
