"""Means over samples: drawn by the keys of rows until their standard error is within the tolerance.

Samples are added up one after the other, so that no bit of a row depends on who is beside it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive, FixedSamples
from integrand.schemas.specs.methods import MethodPart
from integrand.schemas.specs.part import Part
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.parts import NARROW_PART, ByDevice, in_parts
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import on_device, to_device
from integrand.workers.engine.verdicts import Ending, Verdicts, coded
from integrand.workers.methods.base import Method, Needs, Settle
from integrand.workers.methods.endings import Ends, ends_of
from integrand.workers.rewriting.flops import fixed_work

STATUSES = (RowStatus.nonfinite, RowStatus.unchecked, RowStatus.ok, RowStatus.not_converged)
ROUND = 32
"""Samples whose gradients are there at once."""
CAUTION = 1.65
"""Standard errors that are taken for the error: 90 of 100 normal errors are below that, and 999 of
1,000 below twice as many.
"""
HOPELESS = 4
"""A row stops early that would need so many times the evaluations it may take."""
AT_ONCE = ByDevice(cpu=32 << 20, gpu=1 << 30)
"""Bytes that the samples of one round may take."""


@dataclass(frozen=True)
class Stage:
    """Samples [start, stop), after which rows are judged. A stage that starts at 0 stands for
    itself; others go on with the sums of the stage before.
    """

    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Sums:
    """Of samples, `[targets, rows, elements]` float64.

    total    of the terms
    squares  of the terms, or of the differences of pairs
    """

    total: Tensor
    squares: Tensor

    def take(self, targets: list[int], rows: Tensor) -> Sums:
        return Sums(self.total[targets][:, rows], self.squares[targets][:, rows])


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows with some targets, and the stage that they are about to enter."""

    ends: Ends
    targets: tuple[int, ...]
    stage: Stage
    sums: Sums | None
    spent: int


@dataclass(frozen=True)
class SampledMethod(Method[Part]):
    """An extender says what a sample's term is, and where samples are not independent, what the
    stages are.

    accuracy  Adaptive: until the error is within the tolerance; FixedSamples: so many
    """

    part: MethodPart

    @property
    def by_path(self) -> bool:
        return False

    @property
    def random(self) -> bool:
        return True

    varies = True

    @property
    def most_evaluations(self) -> int:
        if isinstance(self.accuracy, FixedSamples):
            return self.accuracy.samples
        assert isinstance(self.accuracy, Adaptive)
        return self.accuracy.max_evaluations

    @property
    def needs(self) -> Needs:
        work = fixed_work(self.most_evaluations)
        return Needs(first_evaluations=ROUND, kept_bytes=16, work=work)

    @property
    def tolerance(self) -> float | None:
        return self.accuracy.tolerance if isinstance(self.accuracy, Adaptive) else None

    # --- what an extender says -------------------------------------------------------------------

    paired: ClassVar[bool] = False
    """Whether two samples after each other are of neighbouring strata, whose difference says how
    far a sample is from its stratum's mean.
    """

    def first_stage(self, draws: int) -> Stage:
        """Of rows with so many baselines."""
        most = self.most_evaluations
        return Stage(0, most if self.tolerance is None else min(ROUND, most))

    def next_stage(self, stage: Stage, draws: int, missing: float, spent: int) -> Stage | None:
        """After a stage whose error is `missing` times what is allowed; None where no further one
        can be afforded. Independent samples go on: twice or one and a half times as many in all.
        """
        most = self.most_evaluations
        if stage.stop >= most:
            return None
        factor = 2.0 if missing**2 > 1.5 else 1.5
        stop = math.ceil(factor * stage.stop / ROUND) * ROUND
        return Stage(stage.stop, min(most, stop))

    def needed(self, stage: Stage, missing: float) -> float:
        """Evaluations that a row would take whose error is `missing` times what is allowed: that of
        independent samples falls with their root.
        """
        return stage.stop * missing**2

    @abstractmethod
    def terms(
        self,
        evaluator: Evaluator,
        rows: Tensor,
        targets: tuple[int, ...],
        stage: Stage,
        start: int,
        stop: int,
    ) -> Tensor:
        """Of samples [start, stop) of a stage: `[targets, rows, samples, elements]` float64."""

    # --- the same for all ------------------------------------------------------------------------

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        ends = ends_of(evaluator, rows, settle)
        problem = evaluator.problem
        wanted = tuple(range(problem.targets_per_row))
        first = self.first_stage(problem.draws)
        for some in torch.arange(len(rows), device=rows.device).split(self._at_once(evaluator)):
            waiting = [Sample(ends.take(some), wanted, first, None, 0)]
            while waiting:
                sample = waiting.pop()
                yield from self._go_on(evaluator, sample, waiting)

    def _at_once(self, evaluator: Evaluator) -> int:
        problem = evaluator.problem
        numbers = ROUND * problem.elements * problem.targets_per_row
        return max(1, AT_ONCE.on(problem.device) // (8 * numbers))

    def _go_on(
        self, evaluator: Evaluator, sample: Sample, waiting: list[Sample]
    ) -> Iterator[Verdicts]:
        """Take the samples of one stage; what is done has its verdicts, and the rest waits for the
        next stage.
        """
        sums = self._sums(evaluator, sample)
        spent = sample.spent + sample.stage.stop - sample.stage.start
        judged = self._judge(evaluator, sample, sums)
        following = self._following(sample.stage, judged, evaluator.problem.draws, spent)
        for stages, rows in _alike(following).items():
            index = to_device(np.array(rows), sums.total.device)
            for stage in dict.fromkeys(stages):
                targets = [t for t, own in enumerate(stages) if own == stage]
                if stage is None:
                    yield from self._verdicts(sample, judged, targets, index, spent)
                    continue
                kept = sums.take(targets, index) if stage.start else None
                names = tuple(sample.targets[t] for t in targets)
                waiting.append(Sample(sample.ends.take(index), names, stage, kept, spent))

    def _following(
        self, stage: Stage, judged: Judged, draws: int, spent: int
    ) -> list[tuple[Stage | None, ...]]:
        """For each row the stage that each of its targets goes on with; None where it is done."""
        by_row = judged.missing.T.cpu().tolist()
        found = []
        for missing in by_row:
            stages = [self._next(stage, draws, of_target, spent) for of_target in missing]
            found.append(tuple(stages))
        return found

    def _next(self, stage: Stage, draws: int, missing: float, spent: int) -> Stage | None:
        if self.tolerance is None or missing <= 1 or not np.isfinite(missing):
            return None
        assert isinstance(self.accuracy, Adaptive)
        most = HOPELESS * self.accuracy.max_evaluations
        if self.accuracy.on_unreachable == "stop" and self.needed(stage, missing) > most:
            return None
        return self.next_stage(stage, draws, missing, spent)

    def _sums(self, evaluator: Evaluator, sample: Sample) -> Sums:
        stage, rows = sample.stage, sample.ends.rows
        elements = evaluator.problem.elements
        shape = (len(sample.targets), len(rows), elements)
        none = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        sums = sample.sums or Sums(none, none)
        for start in range(stage.start, stage.stop, ROUND):
            stop = min(start + ROUND, stage.stop)
            terms = self.terms(evaluator, rows, sample.targets, stage, start, stop)
            sums = self._added(sums, terms)
        return sums

    def _added(self, sums: Sums, terms: Tensor) -> Sums:
        """One sample, or pair of them, after the other."""
        total, squares = sums.total, sums.squares
        samples = terms.shape[2]
        for i in range(samples):
            total = total + terms[:, :, i]
            if not self.paired:
                squares = squares + terms[:, :, i].square()
            elif i % 2:
                squares = squares + (terms[:, :, i] - terms[:, :, i - 1]).square()
        return Sums(total, squares)

    def _judge(self, evaluator: Evaluator, sample: Sample, sums: Sums) -> Judged:
        """Of a fixed number of rows at once: bits do not depend on how many there are."""
        device = sums.total.device
        parts: list[Judged] = []
        for part, count in in_parts(sums.total.shape[1], NARROW_PART.on(device)):
            index = on_device(part, device)
            own = Sums(sums.total[:, index], sums.squares[:, index])
            change = sample.ends.change[index][:, list(sample.targets)].T
            size = partial(_size, evaluator.problem, sample.ends.rows[index])
            parts.append(self._judged(own, change, sample.stage.stop, size).first(count))
        return Judged.join(parts)

    def _judged(
        self, sums: Sums, change: Tensor, count: int, size_of: Callable[[Tensor], Tensor]
    ) -> Judged:
        mean = sums.total / count
        size = size_of(mean)
        gap = mean.sum(2) - change
        relative = torch.where(size > 0, 1 / size, torch.inf)
        error = CAUTION * self._deviation(sums, mean, count) * relative
        if self.complete:
            error = torch.maximum(error, gap.abs() * relative)
        nothing = (size == 0) & (sums.squares.sum(2) == 0)
        error = torch.where(nothing, 0.0, error)
        missing = error if self.tolerance is None else error / self.tolerance
        return Judged(mean=mean, gap=gap, error=error, missing=missing)

    def _deviation(self, sums: Sums, mean: Tensor, count: int) -> Tensor:
        """Σ over elements of the standard error of each, `[targets, rows]`.

        Of independent samples σ/√n. Of neighbouring strata the root of the sum of squared
        differences, over n: on average no less than it is (collapsed strata: Cochran, Sampling
        Techniques, 1977, §5A.12).
        """
        if self.paired:
            return (sums.squares.sqrt() / count).sum(2)
        if count < 2:
            return torch.full(mean.shape[:2], torch.inf, dtype=mean.dtype, device=mean.device)
        variance = (sums.squares / count - mean.square()).clamp(min=0) / (count - 1)
        return variance.sqrt().sum(2)

    def _verdicts(
        self, sample: Sample, judged: Judged, targets: list[int], rows: Tensor, spent: int
    ) -> Iterator[Verdicts]:
        own = sample.ends.take(rows)
        none = torch.zeros_like(own.rows)
        for target in targets:
            name = sample.targets[target]
            error, gap = judged.error[target, rows], judged.gap[target, rows]
            missing = judged.missing[target, rows]
            finite = torch.isfinite(gap)
            place = torch.where(missing <= 1, 2, 3)
            if self.tolerance is None:
                place = torch.ones_like(place)
            needed = [self.needed(sample.stage, m) for m in missing.nan_to_num().tolist()]
            many = torch.tensor(needed, device=own.rows.device).clamp(max=1e15).long()
            yield Verdicts(
                rows=own.rows,
                targets=none + name,
                status=coded(STATUSES, torch.where(finite, place, 0)),
                attributions=judged.mean[target, rows],
                gap=gap,
                error=error,
                evaluations=none + spent,
                needed=many,
            )

    def reason(self, ending: Ending) -> str | None:
        if ending.status is not RowStatus.not_converged:
            return super().reason(ending)
        return (
            f"error estimate {ending.error:.2g} is above the tolerance {self.tolerance:g} after"
            f" {ending.evaluations} samples; it would take about {float(ending.needed):.1g}"
        )


def _alike(stages: Sequence[tuple[Stage | None, ...]]) -> dict[tuple[Stage | None, ...], list[int]]:
    """Rows by what follows for their targets."""
    found: dict[tuple[Stage | None, ...], list[int]] = {}
    for row, each in enumerate(stages):
        found.setdefault(each, []).append(row)
    return found


def _size(problem: Problem, rows: Tensor, mean: Tensor) -> Tensor:
    """‖·‖₁ of what is reported of means `[targets, rows, elements]`: `[targets, rows]`."""
    reporting = problem.reporting
    if reporting is None or reporting.members is None:
        return mean.abs().sum(2)
    sums = [reporting.summed(of_target, rows).abs().sum(1) for of_target in mean]
    return torch.stack(sums)


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What is known after a stage: `[targets, rows]` float64, the mean `[…, elements]`.

    missing  the error as a multiple of what is allowed
    """

    mean: Tensor
    gap: Tensor
    error: Tensor
    missing: Tensor

    def first(self, count: int) -> Judged:
        return replace(
            self,
            mean=self.mean[:, :count],
            gap=self.gap[:, :count],
            error=self.error[:, :count],
            missing=self.missing[:, :count],
        )

    @staticmethod
    def join(parts: list[Judged]) -> Judged:
        if len(parts) == 1:
            return parts[0]
        return Judged(
            mean=torch.cat([part.mean for part in parts], 1),
            gap=torch.cat([part.gap for part in parts], 1),
            error=torch.cat([part.error for part in parts], 1),
            missing=torch.cat([part.missing for part in parts], 1),
        )
