"""Evaluations of the model: outputs and gradients at items, in step batches of few fixed shapes.

Bits depend on nothing but the row: a batch has the full size whatever rows happen to be beside it,
or, where there is less to do, a smaller one of which it is known that rows keep their bits in it.
Only where memory runs out is the size halved, and `Evaluator.capacity` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from integrand.workers.engine.batching import EVEN
from integrand.workers.engine.problem import Lift, Problem
from integrand.workers.engine.steps import Items, Step, forward_pass
from integrand.workers.models.gradients import SideBySide
from integrand.workers.models.outputs import check_output, on_copies
from integrand.workers.models.row_tensors import one_each, padded
from integrand.workers.rewriting.hoisting import Hoisted

Found = TypeVar("Found")
Points = Callable[[Tensor], Sequence[Tensor]]
"""Takes numbers of rows, gives one point for each: a tensor `[rows, ...]` for every input."""
SPARED = 0.75
"""A step batch filled to this share is not taken apart into smaller ones."""


@dataclass(frozen=True)
class Batch:
    """Items [start, stop) as one step batch of `size`, the last of them over and over."""

    start: int
    stop: int
    size: int

    @property
    def padding(self) -> int:
        return self.size - (self.stop - self.start)


class Evaluator:
    """Runs a problem's model on batches of `capacity` rows and smaller ones; halves them where
    memory runs out.

    padded  evaluations that only filled step batches up
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.capacity = problem.batch_rows
        self.padded = 0

    @property
    def shrunk(self) -> int:
        """How many times less is taken at once than was planned, since memory ran out."""
        return max(1, self.problem.batch_rows // self.capacity)

    @torch.no_grad()
    def outputs(self, points: Points, rows: Tensor, *, check: bool = True) -> Tensor:
        """Outputs at the points of some rows, `[rows, ...]`."""

        def run(batch: Batch) -> Tensor:
            there = padded(rows[batch.start : batch.stop], batch.size)
            out = self._outputs_at(points, there, check=check)
            return out[: batch.stop - batch.start]

        found = self._batched(len(rows), run)
        return self.within_memory(partial(torch.cat, found))

    def _outputs_at(self, points: Points, rows: Tensor, *, check: bool) -> Tensor:
        problem = self.problem
        out = on_copies(problem.forward, *points(rows), *problem.arguments(rows))
        for target in range(problem.targets_per_row if check else 0):
            out = check_output(out, len(rows), problem.table(rows, target))
        return out

    def gradients(
        self, items: Items, wanted: Sequence[int], receive: Callable[[int, int, Step], None]
    ) -> None:
        """Steps of each wanted target at all items, handed over as they are found: the target, the
        first item, and what was found from there on.
        """

        def run(batch: Batch) -> None:
            count = batch.stop - batch.start
            part = items.part(batch.start, batch.stop).padded(batch.size)
            passed = forward_pass(self.problem, part)
            for target in wanted:
                step = passed.step(target, last=target == wanted[-1])
                own = Step(step.gradients[:count], step.values[:count])
                receive(target, batch.start, own)
            self.padded += batch.padding

        self._batched(len(items), run)

    def pull(self, rows: Tensor, gradients: Tensor) -> Tensor:
        """Combinations of gradients `[rows, k, elements]` with respect to features, float64: the
        transposed prefix, if there is one. Bits depend on how many rows there are.
        """
        lift = self.problem.lift
        if lift is None:
            return gradients
        count, each, _ = gradients.shape
        size = -(-count * each // EVEN) * EVEN
        flat = padded(gradients.flatten(0, 1).to(self.problem.inputs[0].dtype), size)
        owners = padded(rows.repeat_interleave(each), size)
        cotangents = SideBySide.like(self.problem.inputs).split(flat)
        pulled = lift.hoisted.pull(cotangents, self.problem.arguments(owners))
        joined = SideBySide.join(pulled)[: count * each]
        return joined.double().reshape(count, each, -1)

    @torch.no_grad()
    def hidden(self, hoisted: Hoisted, points: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The prefix at every one of `points`; where all inputs have a single one, at that."""
        problem = self.problem
        count = problem.rows if problem.forward_args else max(len(p) for p in points)
        every = torch.arange(count, device=problem.device)

        def run(batch: Batch) -> list[Tensor]:
            there = padded(every[batch.start : batch.stop], batch.size)
            at = [one_each(p, there) for p in points]
            found = hoisted.prefix(*at, *problem.arguments(there))
            return [h[: batch.stop - batch.start] for h in found]

        found = self._batched(count, run)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def absorb(self, other: Evaluator) -> None:
        """Count what another evaluator has padded for this one's rows, and take over to what it had
        to halve its batches.
        """
        self.capacity = min(self.capacity, other.capacity)
        self.padded += other.padded

    def within_memory(self, run: Callable[[], Found]) -> Found:
        """What `run` finds; where memory runs out it is run again at half the capacity, so it must
        leave nothing behind that is half done.
        """
        while True:
            try:
                return run()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.capacity == 1:
                    raise
            # outside of `except`: the error holds on to the frames, and they to their tensors
            self.capacity //= 2
            torch.cuda.empty_cache()

    def _batched(self, count: int, run: Callable[[Batch], Found]) -> list[Found]:
        """`run` on one step batch after the other; smaller ones from the moment memory runs out."""
        found: list[Found] = []
        done = 0

        def next_batch() -> tuple[Found, int]:
            size = self._size(count - done)
            batch = Batch(done, min(count, done + size), size)
            return run(batch), batch.stop

        while done < count:
            one, done = self.within_memory(next_batch)
            found.append(one)
            self.problem.tick()
        return found

    def _size(self, count: int) -> int:
        """Of the next step batch for so many items."""
        best = self.capacity
        for size in self.problem.smaller:
            if best <= count or size >= self.capacity:
                continue
            if size < count and count >= SPARED * best:
                break
            best = size
        return best


def gradients_at(evaluator: Evaluator, items: Items, targets: Sequence[int]) -> Tensor:
    """Of each target at each item, `[targets, items, elements]` in the problem's dtype."""
    problem = evaluator.problem
    shape = (len(targets), len(items), problem.elements)
    found = torch.empty(shape, dtype=problem.dtype, device=problem.device)

    def receive(target: int, start: int, step: Step) -> None:
        place = targets.index(target)
        found[place, start : start + len(step.values)] = step.gradients

    evaluator.gradients(items, targets, receive)
    return found


def lifted(evaluator: Evaluator, hoisted: Hoisted) -> Problem:
    """The evaluator's problem behind the affine prefix: h(x' + α(x − x')) = h(x') + α(h(x) −
    h(x')).
    """
    problem = evaluator.problem
    if problem.forward_args or not _alike(problem.baselines):
        # every path has a prefix of its own, or starts of several inputs that go together
        problem = replace(problem, tensors=problem.tensors.along_paths())
        evaluator.problem = problem
    hidden = replace(
        problem.tensors,
        inputs=evaluator.hidden(hoisted, problem.inputs),
        baselines=evaluator.hidden(hoisted, problem.baselines),
    )
    return replace(problem, forward=hoisted.tail, tensors=hidden, lift=Lift(problem, hoisted))


def _alike(baselines: Sequence[Tensor]) -> bool:
    """Whether there is one of each input, or of those with more as many."""
    return len({len(b) for b in baselines if len(b) > 1}) <= 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may still work: CUDA's and the CPU allocator's own words for it."""
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)
