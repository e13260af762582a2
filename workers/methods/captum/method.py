"""A class of Captum as a method: in step batches where it treats each row alone, row by row where
it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from integrand.schemas.errors import IntegrandError, SpecError
from integrand.schemas.specs.methods import CaptumMethod
from integrand.schemas.specs.part import Part
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator, is_out_of_memory
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.verdicts import Verdicts, coded
from integrand.workers.methods.base import SUM_BYTES, Method, Needs, Settle
from integrand.workers.methods.captum.arguments import Arguments, bound
from integrand.workers.methods.captum.classes import Asked, AttributionClass, find_class
from integrand.workers.methods.captum.running import Found, run_class, seeded
from integrand.workers.methods.endings import Ends, ends_of, path_ends
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors, padded
from integrand.workers.rewriting.flops import fixed_work

STATUSES = (RowStatus.nonfinite, RowStatus.unchecked)
TRIED_PASSES = 64
"""Passes after which a trial that nothing was wrong with is ended."""


class _Enough(BaseException):
    """Ends a trial. No Exception: a class that catches those must not catch this."""


@dataclass(frozen=True)
class CaptumAttribution(Method[Part]):
    """What a class says of each row, with f at both ends and the gap.

    Raises SpecError for a class or an argument that there is not.
    """

    part: CaptumMethod

    def __post_init__(self) -> None:
        self.given  # noqa: B018 - found out now, not in a worker

    @cached_property
    def class_(self) -> AttributionClass:
        return find_class(self.part.name)

    @cached_property
    def given(self) -> Arguments:
        return bound(self.class_, self.part.arguments)

    # --- what it says of itself ------------------------------------------------------------------

    @property
    def needs_gradients(self) -> bool:
        return self.class_.takes_gradients

    @property
    def needs_plain_model(self) -> bool:
        return True

    @property
    def by_path(self) -> bool:
        return self.class_.takes_baselines and not self.class_.traits.distribution

    @property
    def random(self) -> bool:
        return self.class_.traits.random

    @property
    def complete(self) -> bool:
        """A set of features that a mask names has one number, which each of its elements gets."""
        whole = self.given.features is None
        return self.class_.traits.complete and self._multiplies and whole

    @property
    def signed(self) -> bool:
        return self.class_.traits.signed and self._multiplies

    @property
    def _multiplies(self) -> bool:
        """Whether a class multiplies by x − x', where it may do without."""
        return bool(self.given.values.get("multiply_by_inputs", True))

    @property
    def most_evaluations(self) -> int:
        return self.class_.traits.evaluations(self._asked(features=1, draws=1))

    def evaluations_of(self, rows: RowTensors) -> int:
        features = self.given.features or rows.elements
        return self.class_.traits.evaluations(self._asked(features, rows.draws))

    def rows_of_pass(self, batch_rows: int, draws: int) -> int:
        if not self._alone:
            return batch_rows
        return self.class_.traits.copies(self._asked(features=1, draws=draws))

    @property
    def needs(self) -> Needs:
        work = fixed_work(self.most_evaluations)
        return Needs(first_evaluations=1, kept_bytes=SUM_BYTES, work=work)

    def _asked(self, features: int, draws: int) -> Asked:
        return Asked(self.given.values, features, draws)

    @property
    def _alone(self) -> bool:
        """Whether a row is explained in a call of its own: with draws or with baselines that are
        its own.
        """
        return self.random or self.class_.traits.distribution

    # --- before any worker starts ----------------------------------------------------------------

    def check(self, forward: Forward, rows: RowTensors) -> None:
        """Tries the class on a row or two, for some passes. `rows` have a target `[rows, depth]`,
        or `[rows, targets, depth]`.
        """
        self._check_baselines(rows)
        first = rows.take(slice(0, 1 if self._alone else 2))
        problem = Problem(forward, _with_targets(first), len(first.inputs[0]))
        every = torch.arange(first.rows, device=first.device)
        try:
            self._run(problem, _firsts(every, first.draws, self.by_path), 0, tick=_counted())
        except _Enough:
            return
        except IntegrandError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._refused(error) from error

    def _check_baselines(self, rows: RowTensors) -> None:
        if self.class_.name == "DeepLiftShap" and rows.draws == 1:
            raise SpecError(
                self.class_.where,
                expected="several baselines of each row, whose distribution it takes",
                seen="one",
                next_step="give a baseline with `draws`; for a single one take captum:DeepLift",
            )
        own = [a for a in rows.forward_args if len(a) != rows.rows]
        if own and self.class_.traits.distribution:
            raise SpecError(
                self.class_.where,
                expected="baselines that are numbers, to be taken together",
                seen="ids that differ from baseline to baseline",
                next_step="take a class with one baseline at a time, such as captum:DeepLift",
            )

    def _refused(self, error: Exception) -> SpecError:
        said = " ".join(str(error).split())[:400]
        return SpecError(
            self.class_.where,
            expected="a class that takes this model, these inputs and arguments",
            seen=f"{type(error).__name__}: {said}",
            next_step="see what Captum documents of the class, or take another one",
        )

    # --- rows ------------------------------------------------------------------------------------

    def explain(
        self, evaluator: Evaluator, prepared: Prepared, rows: Tensor, settle: Settle
    ) -> Iterator[Verdicts]:
        ends = self._ends(evaluator, rows, settle)
        for target in range(evaluator.problem.targets_per_row):
            finite = torch.isfinite(ends.change[:, target])
            yield from self._explain(evaluator, ends.take(finite), target)

    def _ends(self, evaluator: Evaluator, rows: Tensor, settle: Settle) -> Ends:
        """Without rows at their baseline, of a class that has nothing to say of these."""
        if not self.by_path:
            return ends_of(evaluator, rows, settle)
        ends, moving = path_ends(evaluator, rows, settle)
        nothing_else = self._multiplies and not self.random
        return ends.take(moving) if nothing_else else ends

    def _explain(self, evaluator: Evaluator, ends: Ends, target: int) -> Iterator[Verdicts]:
        problem, done = evaluator.problem, 0
        while done < len(ends.rows):

            def next_call(start: int = done) -> tuple[Ends, int, Found]:
                size = self._size(evaluator, len(ends.rows) - start)
                part = ends.take(slice(start, start + size))
                paths = _firsts(padded(part.rows, size), problem.draws, self.by_path)
                return part, size, self._run(problem, paths, target, tick=problem.tick)

            part, size, found = evaluator.within_memory(next_call)
            done += len(part.rows)
            each = -(-found.evaluations // size)
            evaluator.padded += each * (size - len(part.rows))
            yield _verdicts(part, target, found.attributions, each)

    def _size(self, evaluator: Evaluator, count: int) -> int:
        """Rows of the next call for so many: the model gets a step batch of them and of their
        copies.
        """
        if self._alone:
            return 1
        problem = evaluator.problem
        copies = self.class_.traits.copies(self._asked(problem.elements, problem.draws))
        best = max(1, evaluator.capacity // copies)
        for size in problem.smaller:
            fits = size <= evaluator.capacity and size % copies == 0
            if fits and count <= size // copies < best:
                best = size // copies
        return best

    def _run(
        self, problem: Problem, paths: Tensor, target: int, *, tick: Callable[[], None]
    ) -> Found:
        """Of these paths, or of the row that they are the first of."""
        rows = self._rows(problem, paths, target)
        draw = int(paths[0]) % problem.draws
        with seeded(self.part.seed, rows, draw) if self.random else nullcontext():
            return run_class(self.class_, self.given, problem.forward, rows, tick)

    def _rows(self, problem: Problem, paths: Tensor, target: int) -> RowTensors:
        """What the class is given; a distribution is that of the first row, which is then the only
        one.
        """
        starts = paths
        if self.class_.traits.distribution:
            starts = paths[:1] + torch.arange(problem.draws, device=paths.device)
        keys = problem.tensors.keys
        return RowTensors(
            inputs=tuple(problem.input(paths)),
            baselines=tuple(problem.baseline(starts)),
            forward_args=tuple(problem.arguments(paths)),
            target=problem.table(paths, target),
            keys=None if keys is None else keys[problem.tensors.owner(paths)],
        )


def _firsts(rows: Tensor, draws: int, by_path: bool) -> Tensor:
    """The first path of each row; of rows that are paths, these."""
    return rows if by_path else rows * draws


def _with_targets(rows: RowTensors) -> RowTensors:
    """The target as `[rows, targets, depth]`."""
    if rows.target is None or rows.target.ndim == 3:
        return rows
    return replace(rows, target=rows.target[:, None])


def _counted() -> Callable[[], None]:
    """Counts passes, and ends a trial that takes many."""
    left = iter(range(TRIED_PASSES))

    def tick() -> None:
        if next(left, None) is None:
            raise _Enough

    return tick


def _verdicts(ends: Ends, target: int, attributions: Tensor, evaluations: int) -> Verdicts:
    """Of the first rows of a call; others are copies of the last."""
    values = attributions.double()
    # of all of them, so that bits do not depend on how many there are
    total = values.sum(1)[: len(ends.rows)]
    gap = total - ends.change[:, target]
    none = torch.zeros_like(ends.rows)
    return Verdicts(
        rows=ends.rows,
        targets=none + target,
        status=coded(STATUSES, torch.isfinite(gap).long()),
        attributions=values[: len(ends.rows)],
        gap=gap,
        error=torch.full_like(gap, torch.nan),
        evaluations=none + evaluations,
        needed=none,
    )
