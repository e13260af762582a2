"""Methods of other kinds than ours behind the one seam: one that is a gradient, one that samples,
one that needs no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.specs.methods import MethodPart
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.endpoints import endpoint_values
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.steps import Items, first_step
from integrand.workers.engine.verdicts import Ending, Verdicts, coded
from integrand.workers.methods import table
from integrand.workers.methods.attribution import attribute
from integrand.workers.methods.base import Method, Settle
from integrand.workers.methods.paths import PathMethod
from integrand.workers.models.outputs import Forward, select
from integrand.workers.models.row_tensors import RowTensors

F64 = torch.float64
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
WEIGHTS = torch.tensor([1.0, -2.0, 3.0], dtype=F64)


class AtInput(MethodPart):
    """The gradient at x, times x − x'."""


@dataclass(frozen=True)
class AtInputMethod(PathMethod[Any]):
    part: AtInput

    @property
    def most_evaluations(self) -> int:
        return 1

    def integrate(
        self, evaluator: Evaluator, rows: Tensor, f_input: Tensor, f_baseline: Tensor
    ) -> Iterator[Verdicts]:
        problem = evaluator.problem
        found = at_input(problem, rows) * problem.difference(rows)
        yield verdicts(rows, found, f_input - f_baseline, evaluations=1)


class Noisy(MethodPart):
    """Gradients at x and noise; draws come from a seed and a row's own values."""

    draws: int = 4


@dataclass(frozen=True)
class NoisyMethod(Method[Any]):
    part: Noisy

    @property
    def most_evaluations(self) -> int:
        return self.part.draws

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        f_input, f_baseline = endpoint_values(evaluator, rows)
        moving = settle(rows, f_input, f_baseline)
        there, draws = rows[moving], []
        for draw in range(self.part.draws):
            noisy = replace(evaluator.problem, tensors=self._noisy(evaluator, draw))
            draws.append(at_input(noisy, there))
        found = torch.stack(draws) * evaluator.problem.difference(there)
        error = found.std(0).sum(1) / len(draws) ** 0.5
        change = (f_input - f_baseline)[moving]
        mean = found.mean(0)
        yield verdicts(there, mean, change, error=error, evaluations=len(draws))

    def _noisy(self, evaluator: Evaluator, draw: int) -> RowTensors:
        rows = evaluator.problem.tensors
        seeds = [hash((draw, *row)) % 2**31 for row in rows.inputs[0].tolist()]
        noise = [torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return replace(rows, inputs=(rows.inputs[0] + torch.stack(noise),))


class LeftOut(MethodPart):
    """f(x) less f at x with one element as in x'."""


@dataclass(frozen=True)
class LeftOutMethod(Method[Any]):
    part: LeftOut

    needs_gradients = False

    @property
    def most_evaluations(self) -> int:
        return 100

    def check(self, forward: Forward, rows: RowTensors) -> None:
        if rows.elements > self.most_evaluations:
            raise SpecError("inputs", expected="at most 100 elements", seen=str(rows.elements))

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        problem = evaluator.problem
        f_input, f_baseline = endpoint_values(evaluator, rows)
        settle(rows, f_input, f_baseline)
        found = torch.zeros(len(rows), problem.elements, dtype=F64)
        for element in range(problem.elements):
            without = problem.inputs[0].clone()
            without[:, element] = problem.baselines[0][:, element]
            out = evaluator.outputs(lambda some, all_=without: [all_[some]], rows)
            found[:, element] = f_input[:, 0] - select(out, problem.table(rows, 0))
        yield verdicts(rows, found, f_input - f_baseline, evaluations=problem.elements)

    def reason(self, ending: Ending) -> str | None:
        return f"the gap is {ending.gap:.2g}"


def at_input(problem: Problem, rows: Tensor) -> Tensor:
    items = Items(rows, torch.ones(len(rows), dtype=F64))
    return first_step(problem, items).gradients


def verdicts(
    rows: Tensor,
    found: Tensor,
    change: Tensor,
    *,
    evaluations: int,
    error: Tensor | None = None,
) -> Verdicts:
    zeros = torch.zeros_like(rows)
    gap = found.sum(1) - change[:, 0]
    statuses = (RowStatus.unchecked, RowStatus.at_precision_floor)
    return Verdicts(
        rows=rows,
        targets=zeros,
        status=coded(statuses, (gap.abs() > 1e-9).long()),
        attributions=found,
        gap=gap,
        error=torch.full_like(gap, torch.nan) if error is None else error,
        evaluations=zeros + evaluations,
        needed=zeros,
    )


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {AtInput: AtInputMethod, Noisy: NoisyMethod, LeftOut: LeftOutMethod}
    monkeypatch.setattr(table, "OTHERS", {**table.OTHERS, **ours})


def linear(x: Tensor) -> Tensor:
    return x @ WEIGHTS


@pytest.mark.parametrize(("part", "spent"), [(AtInput(), 1), (Noisy(), 4), (LeftOut(), 3)])
def test_a_method_of_another_kind_is_one_class_and_one_line(part: MethodPart, spent: int) -> None:
    found = attribute(linear, X, method=part, batch_rows=4)
    torch.testing.assert_close(found.attributions, X * WEIGHTS)
    assert set(found.evaluations.tolist()) == {spent}


def test_rows_that_say_it_all_are_settled_for_every_method() -> None:
    x = X.clone()
    x[1], x[2, 0] = 0, torch.nan
    found = attribute(linear, x, method=AtInput(), batch_rows=4)
    assert found.status[1:3] == (RowStatus.ok, RowStatus.bad_input)
    assert found.status[0] == RowStatus.unchecked


def test_a_methods_own_error_and_reason_are_what_a_row_is_told() -> None:
    def curved(x: Tensor) -> Tensor:
        return x.pow(3).sum(1)

    sampled = attribute(curved, X, method=Noisy(draws=9), batch_rows=4)
    assert (sampled.error_estimate > 0).all()
    alone = attribute(curved, X[3:4], method=Noisy(draws=9), batch_rows=4)
    assert torch.equal(alone.attributions[0], sampled.attributions[3])
    left_out = attribute(lambda x: x.prod(1), X, method=LeftOut(), batch_rows=4)
    assert str(left_out.reason[0]).startswith("the gap is")


def test_without_gradients_none_are_asked_for() -> None:
    def steps(x: Tensor) -> Tensor:
        return x.detach().round() @ WEIGHTS

    found = attribute(steps, X, method=LeftOut(), batch_rows=4)
    torch.testing.assert_close(found.attributions, X.round() * WEIGHTS)
    with pytest.raises(SpecError, match="no gradient path"):
        attribute(steps, X, method=AtInput(), batch_rows=4)


def test_a_method_refuses_what_it_is_not_for() -> None:
    with pytest.raises(SpecError, match="at most 100 elements"):
        attribute(lambda x: x.sum(1), torch.ones(2, 101), method=LeftOut())


@pytest.mark.parametrize("accuracy", [Adaptive(), FixedSteps(steps=9), Exact()], ids=str)
def test_every_method_says_what_it_costs(accuracy: Accuracy) -> None:
    method = table.method_of(accuracy)
    assert method.most_evaluations >= 1
    assert method.needs.kept_bytes >= 8
    assert method.needs.work.nodes >= 1
    assert (method.tolerance is None) == isinstance(accuracy, FixedSteps)
