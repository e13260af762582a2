"""Evaluations of the model: outputs and gradients at (row, node) items, in step batches of one
fixed shape.

Bits depend on nothing but the row: every batch has the same shape whatever rows happen to be beside
it. Only where memory runs out is the shape halved, and `Evaluator.capacity` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from integrand.workers.engine.problem import Floats, Lift, Problem
from integrand.workers.engine.steps import Step, join, step_gradients
from integrand.workers.models.gradients import SideBySide
from integrand.workers.models.outputs import check_output, on_copies
from integrand.workers.models.row_tensors import one_each
from integrand.workers.rewriting.hoisting import Hoisted

Found = TypeVar("Found")


class Evaluator:
    """Runs a problem's model on batches of `capacity` rows, the last one padded; halves them where
    memory runs out.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.capacity = problem.batch_rows
        self.padded = 0

    @torch.no_grad()
    def outputs(self, points: Sequence[Tensor], rows: Tensor, *, check: bool = True) -> Tensor:
        """Outputs at some rows of `points` (one row where all share it): [rows, ...]."""
        run = partial(self._outputs_at, points, check)
        found = self._batched(rows, run)
        return torch.cat([out[:count] for out, count in found])

    def _outputs_at(self, points: Sequence[Tensor], check: bool, rows: Tensor) -> Tensor:
        problem = self.problem
        at = [one_each(p, rows) for p in points]
        out = on_copies(problem.forward, *at, *problem.arguments(rows))
        for target in range(problem.targets_per_row if check else 0):
            out = check_output(out, len(rows), problem.table(rows, target))
        return out

    def gradients(self, rows: Tensor, alphas: Tensor, wanted: Sequence[int]) -> list[Step]:
        """Steps of each wanted target at `alphas` on the rows' paths, one entry per item."""
        items = torch.arange(len(rows), device=rows.device)
        run = partial(self._steps_at, rows, alphas, wanted)
        found = self._batched(items, run)
        self.padded += len(found) * self.capacity - len(rows)
        parts = []
        for steps, count in found:
            parts.append([step.part(slice(count)) for step in steps])
        return [join(of_target) for of_target in zip(*parts, strict=True)]

    def _steps_at(
        self, rows: Tensor, alphas: Tensor, wanted: Sequence[int], items: Tensor
    ) -> list[Step]:
        some, at = rows[items], alphas[items]
        return step_gradients(self.problem, some, at, wanted)

    def pull(self, rows: Tensor, gradients: Floats, nodes: int) -> Floats:
        """Combinations of gradients `[rows, k, elements]` with respect to features: the transposed
        prefix, if there is one.

        Batches have one size for all rows that were judged after `nodes` new ones: about what a
        step batch brings.
        """
        lift = self.problem.lift
        if lift is None:
            return gradients
        count, each, _ = gradients.shape
        flat = torch.from_numpy(gradients.reshape(count * each, -1))
        flat = flat.to(self.problem.device, self.problem.inputs[0].dtype)
        items = torch.arange(len(flat), device=flat.device)
        owners = rows.repeat_interleave(each)
        usual = each * max(1, self.capacity // nodes)
        size = min(self.capacity, -(-usual // 16) * 16)
        run = partial(self._pulled, lift.hoisted, flat, owners)
        found = self._batched(items, run, size)
        pulled = torch.cat([part[:n] for part, n in found])
        return pulled.double().cpu().numpy().reshape(count, each, -1)

    def _pulled(self, hoisted: Hoisted, flat: Tensor, owners: Tensor, items: Tensor) -> Tensor:
        cotangents = SideBySide.like(self.problem.inputs).split(flat[items])
        arguments = self.problem.arguments(owners[items])
        return SideBySide.join(hoisted.pull(cotangents, arguments))

    @torch.no_grad()
    def hidden(self, hoisted: Hoisted, points: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The prefix at every row of `points`, or at the one row that all share."""
        problem = self.problem
        shared = all(p.shape[0] == 1 for p in points) and not problem.forward_args
        count = 1 if shared else problem.rows
        rows = torch.arange(count, device=problem.device)
        run = partial(self._hidden_at, hoisted, points)
        found = []
        for hidden, real in self._batched(rows, run):
            found.append([h[:real] for h in hidden])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _hidden_at(
        self, hoisted: Hoisted, points: Sequence[Tensor], rows: Tensor
    ) -> tuple[Tensor, ...]:
        at = [one_each(p, rows) for p in points]
        arguments = self.problem.arguments(rows)
        return hoisted.prefix(*at, *arguments)

    def absorb(self, other: Evaluator) -> None:
        """Count what another evaluator has padded for this one's rows, and take over to what it had
        to halve its batches.
        """
        self.capacity = min(self.capacity, other.capacity)
        self.padded += other.padded

    def _batched(
        self, rows: Tensor, run: Callable[[Tensor], Found], size: int | None = None
    ) -> list[tuple[Found, int]]:
        """`run` on pieces of `size` rows, or of a full step batch; smaller ones from the moment
        memory runs out.
        """
        while True:
            try:
                pieces = batches(rows, min(size or self.capacity, self.capacity))
                return [(self._ticked(run, piece), count) for piece, count in pieces]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.capacity == 1:
                    raise
            self.capacity //= 2
            torch.cuda.empty_cache()

    def _ticked(self, run: Callable[[Tensor], Found], piece: Tensor) -> Found:
        found = run(piece)
        self.problem.tick()
        return found


def lifted(evaluator: Evaluator, hoisted: Hoisted) -> Problem:
    """The evaluator's problem behind the affine prefix: h(x' + α(x − x')) = h(x') + α(h(x) −
    h(x')).
    """
    problem = evaluator.problem
    hidden = replace(
        problem.tensors,
        inputs=evaluator.hidden(hoisted, problem.inputs),
        baselines=evaluator.hidden(hoisted, problem.baselines),
    )
    return replace(problem, forward=hoisted.tail, tensors=hidden, lift=Lift(problem, hoisted))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may still work: CUDA's and the CPU allocator's own words for it."""
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def batches(rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """`rows` in pieces of exactly `size`, the last one padded with its own last row; with the count
    that is real.
    """
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        count = len(piece)
        if count < size:
            padding = piece[-1:].expand(size - count)
            piece = torch.cat([piece, padding])
        yield piece, count
