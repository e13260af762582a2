"""SmoothGrad: the mean gradient at noisy copies of a row. Smilkov, Thorat, Kim, Viégas &
Wattenberg 2017, §3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from integrand.schemas.specs.methods import SmoothGrad
from integrand.workers.engine.evaluator import Evaluator, gradients_at
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.steps import Items
from integrand.workers.methods.sampling import SampledMethod, Stage
from integrand.workers.models.gradients import SideBySide
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.philox import normals


class SmoothGradMethod(SampledMethod):
    """∂F(x + ε), or (x + ε) · ∂F(x + ε), over ε ~ N(0, sigma²) of each element."""

    part: SmoothGrad

    @property
    def complete(self) -> bool:
        return False

    @property
    def signed(self) -> bool:
        return self.part.times_input  # else slopes

    def terms(
        self,
        evaluator: Evaluator,
        rows: Tensor,
        targets: tuple[int, ...],
        stage: Stage,
        start: int,
        stop: int,
    ) -> Tensor:
        noisy = Evaluator(self._noisy(evaluator.problem, rows, range(start, stop)))
        every = torch.arange(noisy.problem.rows, device=rows.device)
        at_copies = torch.zeros(len(every), dtype=torch.float64, device=rows.device)
        terms = gradients_at(noisy, Items(every, at_copies), targets).double()
        evaluator.absorb(noisy)
        if self.part.times_input:
            copies = SideBySide.join([b.double() for b in noisy.problem.baseline(every)])
            terms = terms * copies
        return terms.reshape(len(targets), len(rows), stop - start, -1)

    def _noisy(self, problem: Problem, rows: Tensor, samples: range) -> Problem:
        """The rows with noisy copies of them as baselines."""
        keys = problem.tensors.keys
        assert keys is not None, "a method that draws is given keys"
        paths = rows * problem.draws
        inputs = problem.input(paths)
        copies = []
        for number, x in enumerate(inputs):
            noise = normals(
                keys[rows],
                seed=self.part.seed,
                stream=number,
                draws=samples,
                count=x[0].numel(),
            )
            scaled = self.part.sigma * noise.reshape(len(x), len(samples), *x.shape[1:])
            copies.append((x[:, None].double() + scaled).to(x.dtype).flatten(0, 1))
        targets = problem.targets
        table = None if targets is None else targets.expand(problem.tensors.rows, -1, -1)[rows]
        tensors = RowTensors(
            tuple(inputs),
            tuple(copies),
            tuple(problem.arguments(paths)),
            table,
            draws=len(samples),
        )
        return replace(problem, tensors=tensors)
