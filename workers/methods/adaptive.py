"""The adaptive mode: every track spends what its certificate needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.closed_form.recognition import ShallowNetwork
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.reason_margins import ReasonSums
from integrand.workers.engine.rounding import measure_rounding
from integrand.workers.engine.verdicts import Ending, Verdicts
from integrand.workers.methods.base import JUDGED, Method, Needs, Settle
from integrand.workers.methods.exact import find_network, integrate_network
from integrand.workers.methods.paths import PathMethod
from integrand.workers.methods.phases import integrate_adaptively
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import Candidates


@dataclass(frozen=True)
class AdaptiveMethod(PathMethod[Adaptive]):
    """As many evaluations as a row's certificate needs; none where the integral has a closed form.

    On a GPU the closed form is not taken, as it is computed on the CPU. `sums` are what may be the
    reasons of rows that go on until these are certain.
    """

    sums: ReasonSums | None = None

    varies = True

    @property
    def most_evaluations(self) -> int:
        return self.accuracy.max_evaluations

    @property
    def needs(self) -> Needs:
        return JUDGED

    @property
    def tolerance(self) -> float:
        return self.accuracy.tolerance

    def tighter(self, factor: float) -> AdaptiveMethod:
        tolerance = self.accuracy.tolerance / factor
        return replace(self, accuracy=self.accuracy.model_copy(update={"tolerance": tolerance}))

    def check(self, forward: Forward, rows: RowTensors) -> None:
        if self.accuracy.until == "reasons" and self.sums is None:
            raise SpecError(
                "accuracy.until: reasons",
                expected="a job, whose output.reasons say what may be one",
                seen="a call without",
                next_step="take until: tolerance, and a smaller tolerance",
            )

    def closed_form(
        self, forward: Forward, rows: RowTensors, transform: str = "none"
    ) -> ShallowNetwork | None:
        if rows.device.type != "cpu":
            return None
        found = find_network(forward, rows, transform)
        return None if isinstance(found, str) else found

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        if prepared.network is None:
            return super().explain(evaluator, prepared, rows, settle)
        return integrate_network(
            prepared.network, evaluator.problem, rows, settle, self.accuracy.tolerance
        )

    def integrate(
        self, evaluator: Evaluator, rows: Tensor, f_input: Tensor, f_baseline: Tensor
    ) -> Iterator[Verdicts]:
        if evaluator.problem.reduced is not None:
            rounding = measure_rounding(evaluator, rows)
            evaluator.problem = replace(evaluator.problem, rounding=rounding)
        return integrate_adaptively(evaluator, self.accuracy, rows, f_input, f_baseline, self.sums)

    def reason(self, ending: Ending) -> str | None:
        if ending.status is not RowStatus.not_converged:
            return super().reason(ending)
        reach = ""
        if ending.needed:
            reach = f"; the tolerance would take about {float(ending.needed):.1g}"
        return (
            f"error estimate {ending.error:.2g} is above the tolerance"
            f" {self.accuracy.tolerance:g} after {ending.evaluations} evaluations{reach}"
        )


def until_reasons(method: Method[Any], candidates: Candidates | None) -> Method[Any]:
    """The method, told what may be a reason if it goes on until reasons are certain."""
    if not isinstance(method, AdaptiveMethod) or method.accuracy.until != "reasons":
        return method
    return replace(method, sums=None if candidates is None else ReasonSums.of(candidates))
