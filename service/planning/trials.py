"""Step batches of real rows, as a worker will run them: whether they compile and repeat their bits,
and what they cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.quantiles import Quantiles
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.service.planning.sample import one_target
from integrand.workers.engine.evaluator import Evaluator, lifted
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Lift, Problem
from integrand.workers.engine.steps import Items, Step, first_step
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.fixed import FixedMethod
from integrand.workers.models.row_tensors import RowTensors

ROUNDS = 3
JUDGED_AT = FixedSteps(steps=15)
"""The rule by which reduced precision is compared with float32."""


@dataclass(frozen=True, eq=False)
class StepTrial:
    """One step batch to try; `gradients` False evaluates f alone, for methods that need no more."""

    problem: Problem
    gradients: bool

    def run(self, *, turned: bool = False) -> Tensor:
        """Gradients or outputs `[rows, numbers]`, rows spread over their paths; `turned`: the last
        one first.
        """
        order = self._rows.flip(0) if turned else self._rows
        if not self.gradients:
            return _outputs(self.problem, order)
        return self._step(order).gradients

    @property
    def _rows(self) -> Tensor:
        return torch.arange(self.problem.batch_rows, device=self.problem.device)

    def _step(self, rows: Tensor) -> Step:
        alphas = torch.linspace(
            0, 1, self.problem.batch_rows, dtype=torch.float64, device=rows.device
        )
        return first_step(self.problem, Items(rows, alphas[rows]))

    # --- the same rows in smaller batches --------------------------------------------------------

    def everything(self, part: slice = slice(None)) -> list[Tensor]:
        """All that the engine asks of the model, about some of the rows as one batch: gradients and
        f there, f at the end of paths and what the hoisted prefix makes of it, `[rows, ...]` each.
        """
        return self._everything(self._rows[part])

    def _everything(self, rows: Tensor) -> list[Tensor]:
        problem = self.problem
        found = [_outputs(problem, rows)]
        if self.gradients:
            step = self._step(rows)
            found += [step.gradients, step.values]
        if problem.lift is not None:
            whole = problem.lift.problem
            found += [_outputs(whole, rows), *_hidden(problem.lift, rows)]
        return found

    def keeps_bits(self, size: int, expected: Sequence[Tensor]) -> bool:
        """Whether every row gets what is expected in batches of `size` too, the last one padded as
        the engine pads.
        """
        count = self.problem.batch_rows
        for start in range(0, count, size):
            index = torch.arange(start, start + size, device=self.problem.device)
            index = index.clamp(max=count - 1)
            for found, full in zip(self._everything(index), expected, strict=True):
                if not torch.equal(found.nan_to_num(), full[index].nan_to_num()):
                    return False
        return True


def _outputs(problem: Problem, rows: Tensor) -> Tensor:
    """f at the ends of some rows' paths as one batch, `[rows, numbers]`."""
    evaluator = Evaluator(replace(problem, batch_rows=len(rows)))
    return evaluator.outputs(problem.input, rows).reshape(len(rows), -1)


def _hidden(lift: Lift, rows: Tensor) -> tuple[Tensor, ...]:
    """The hoisted prefix at the ends of some rows' paths as one batch."""
    some = lift.problem.tensors.take(rows)
    evaluator = Evaluator(replace(lift.problem, tensors=some, batch_rows=len(rows)))
    return evaluator.hidden(lift.hoisted, some.inputs)


def step_trial(
    prepared: Prepared, sample: RowTensors, batch_rows: int, *, gradients: bool = True
) -> StepTrial:
    """The sample's rows over and over, as many as a step batch takes, behind the hoisted prefix
    where there is one.
    """
    tensors = one_target(sample.repeat(batch_rows))
    problem = Problem(prepared.forward, tensors, batch_rows)
    problem = replace(problem, step=prepared.step, reduced=prepared.reduced)
    if prepared.hoisted is not None:
        problem = lifted(Evaluator(problem), prepared.hoisted)
    return StepTrial(problem, gradients)


def seconds_per_batch(trial: StepTrial) -> float:
    """Median seconds of one step batch, after a first one. Nothing that decides a value may use
    it.
    """
    _await(trial.run())
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        _await(trial.run())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _await(found: Tensor) -> None:
    """A GPU answers before it has computed anything."""
    if found.device.type == "cuda":
        torch.cuda.synchronize(found.device)


def repeats_bits(trial: StepTrial) -> bool:
    """Whether what a row gets is the same once more, and at the other end of the batch."""
    found = trial.run().nan_to_num()
    again = trial.run()
    turned = trial.run(turned=True).flip(0)
    return all(torch.equal(found, other.nan_to_num()) for other in (again, turned))


def check_compiled(trial: StepTrial) -> None:
    """Compile by running once. Raises SpecError where that fails."""
    try:
        trial.run()
    except Exception as error:  # the model has run before, and a compiler may raise anything
        raise SpecError(
            "compute.compile",
            expected="a model that torch.compile takes, and a compiler for what it writes",
            seen=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            next_step="set compute.compile: false",
        ) from error


def rounding_seen(prepared: Prepared, sample: RowTensors, batch_rows: int) -> Quantiles:
    """Relative L1 distance of the sample rows' attributions in reduced precision from those in
    float32, at the same nodes.
    """
    rounded = _attributions(prepared, sample, batch_rows)
    in_float32 = replace(prepared, step=None, reduced=None)
    plain = _attributions(in_float32, sample, batch_rows)
    size = plain.abs().sum(1)
    moved = (rounded - plain).abs().sum(1)
    distances = (moved / size)[size > 0].nan_to_num(torch.inf)
    if not len(distances):
        return Quantiles()
    asked = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    p50, p90, p99 = distances.quantile(asked, interpolation="higher").tolist()
    return Quantiles(p50=p50, p90=p90, p99=p99, max=float(distances.max()))


def _attributions(prepared: Prepared, sample: RowTensors, batch_rows: int) -> Tensor:
    method = FixedMethod(JUDGED_AT)
    found = explain(prepared, one_target(sample), method, batch_rows=batch_rows).results
    flat = [torch.from_numpy(a).reshape(sample.rows, -1) for a in found.attributions]
    doubles = [a.double() for a in flat]
    return torch.cat(doubles, 1)
