"""Expected gradients by samples of baseline and α: the mean of (x − x′) · ∂F(x′ + α(x − x′)).
Erion, Janizek, Sturmfels, Lundberg & Lee 2021, §2.

What stands for the distribution of x' are the K baselines of a row, so that all forms, the product
rule among them, are of the same number.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.methods import ExpectedGradients
from integrand.workers.engine.evaluator import Evaluator, gradients_at
from integrand.workers.engine.steps import Items
from integrand.workers.methods.sampling import SampledMethod, Stage
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.philox import integers, uniforms

BASELINE, ALPHA = 1, 2
"""Streams of random numbers."""


class SampledExpectation(SampledMethod):
    """An extender says which baseline and α each sample has."""

    part: ExpectedGradients

    def terms(
        self,
        evaluator: Evaluator,
        rows: Tensor,
        targets: tuple[int, ...],
        stage: Stage,
        start: int,
        stop: int,
    ) -> Tensor:
        problem = evaluator.problem
        keys = problem.tensors.keys
        assert keys is not None, "a method that draws is given keys"
        draws, alphas = self.places(keys[rows], problem.draws, stage, range(start, stop))
        paths = (rows[:, None] * problem.draws + draws).flatten()
        gradients = gradients_at(evaluator, Items(paths, alphas.flatten()), targets)
        terms = gradients.double() * problem.difference(paths)
        return terms.reshape(len(targets), len(rows), stop - start, -1)

    @abstractmethod
    def places(
        self, keys: Tensor, draws: int, stage: Stage, samples: range
    ) -> tuple[Tensor, Tensor]:
        """The baseline and α of some samples of a stage: int64 and float64 `[rows, samples]`."""


class IndependentExpectation(SampledExpectation):
    """Both are drawn anew for each sample, as published."""

    def places(
        self, keys: Tensor, draws: int, stage: Stage, samples: range
    ) -> tuple[Tensor, Tensor]:
        seed = self.part.seed
        chosen = integers(keys, seed=seed, stream=BASELINE, draws=samples, count=1, below=draws)
        alphas = uniforms(keys, seed=seed, stream=ALPHA, draws=samples, count=1)
        return chosen[:, :, 0], alphas[:, :, 0]


class StratifiedExpectation(SampledExpectation):
    """Every baseline as often as the others, with one α in each of as many equal strata.

    Twice the strata leave less than half of the error (a third of it for smooth models), so a
    stage starts anew with what the last one's error asks for.
    """

    paired: ClassVar[bool] = True

    def check(self, forward: Forward, rows: RowTensors) -> None:
        """SpecError for a number of evaluations that does not go round."""
        draws, most = rows.draws, self.most_evaluations
        if self.tolerance is None and most % draws:
            raise SpecError(
                "accuracy.samples",
                expected=f"a multiple of the {draws} baselines of a row",
                seen=str(most),
                next_step=f"take {draws * max(1, most // draws)}, or sampling: iid",
            )
        if self.tolerance is not None and most < 2 * draws:
            raise SpecError(
                "accuracy.max_evaluations",
                expected=f"at least 2 for each of the {draws} baselines of a row",
                seen=str(most),
                next_step="raise it, take fewer draws, or sampling: iid",
            )

    def first_stage(self, draws: int) -> Stage:
        return Stage(0, self.most_evaluations if self.tolerance is None else 2 * draws)

    def next_stage(self, stage: Stage, draws: int, missing: float, spent: int) -> Stage | None:
        strata = stage.stop // draws
        wanted = strata * 2 ** max(
            1, math.ceil(math.log2(self.needed(stage, missing) / stage.stop))
        )
        while wanted > strata:
            if spent + wanted * draws <= self.most_evaluations:
                return Stage(0, wanted * draws)
            wanted //= 2
        return None

    def needed(self, stage: Stage, missing: float) -> float:
        """The error of one sample in each of R strata falls with R^1.5."""
        return float(stage.stop * missing ** (2 / 3))

    def places(
        self, keys: Tensor, draws: int, stage: Stage, samples: range
    ) -> tuple[Tensor, Tensor]:
        strata = stage.stop // draws
        number = torch.arange(samples.start, samples.stop, device=keys.device)
        # stages are twice as long as those before, so none has the numbers of another
        own = range(stage.stop + samples.start, stage.stop + samples.stop)
        within = uniforms(keys, seed=self.part.seed, stream=ALPHA, draws=own, count=1)[:, :, 0]
        alphas = (number % strata + within) / strata
        return (number // strata).expand(len(keys), -1), alphas
