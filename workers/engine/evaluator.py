"""Evaluations of the model: outputs and gradients at (row, node) items, in step batches of one
fixed shape.

Bits depend on nothing but the row: every batch has the same shape whatever rows happen to be beside
it. Only where memory runs out is the shape halved, and `Evaluator.capacity` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.models.gradients import SideBySide, gradients_of, independent_of_inputs
from integrand.workers.models.outputs import Forward, check_output, on_copies, select
from integrand.workers.models.row_tensors import RowTensors, one_each
from integrand.workers.rewriting.hoisting import Hoisted

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call is about.

    tensors    validated; its target is `[rows, targets, depth]`, None for scalar outputs
    lift       where inputs and baselines are hidden tensors of a hoisted prefix: the problem in
               features
    step       what step batches run in place of `forward`: compiled, or under autocast to `half`
    rounding   relative L1 error of attributions under autocast, as measured, `[rows, targets]`
    """

    forward: Forward
    tensors: RowTensors
    batch_rows: int
    tick: Callable[[], None] = lambda: None
    lift: Lift | None = None
    step: Forward | None = None
    half: torch.dtype | None = None
    rounding: Floats | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.tensors.inputs

    @property
    def baselines(self) -> tuple[Tensor, ...]:
        return self.tensors.baselines

    @property
    def forward_args(self) -> tuple[Tensor, ...]:
        return self.tensors.forward_args

    @property
    def targets(self) -> Tensor | None:
        return self.tensors.target

    @property
    def rows(self) -> int:
        return self.tensors.rows

    @property
    def targets_per_row(self) -> int:
        return 1 if self.targets is None else self.targets.shape[1]

    @property
    def elements(self) -> int:
        return self.tensors.elements

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    @property
    def dtype(self) -> torch.dtype:
        """Of gradients: the widest of the inputs."""
        return reduce(torch.promote_types, [x.dtype for x in self.inputs])

    @property
    def epsilon(self) -> float:
        """Rounding of one gradient, relative: that of the narrowest input, or of autocast."""
        dtypes = [x.dtype for x in self.inputs] if self.half is None else [self.half]
        return max(float(torch.finfo(dtype).eps) for dtype in dtypes)

    def arguments(self, rows: Tensor) -> list[Tensor]:
        return [a[rows] for a in self.forward_args]

    def baseline(self, rows: Tensor) -> list[Tensor]:
        return [one_each(b, rows) for b in self.baselines]

    def table(self, rows: Tensor, target: int) -> Tensor | None:
        """Output indices of one target of some rows, `[rows, depth]`."""
        return None if self.targets is None else one_each(self.targets, rows)[:, target]

    def difference(self, rows: Tensor) -> Floats:
        """x − x' of some rows, all inputs side by side: [rows, elements] float64."""
        ends = zip(self.inputs, self.baseline(rows), strict=True)
        parts = [x[rows].double() - b.double() for x, b in ends]
        return np.ascontiguousarray(SideBySide.join(parts).cpu().numpy())

    @property
    def features(self) -> Problem:
        """The problem whose inputs are attributed."""
        return self.lift.problem if self.lift else self


@dataclass(frozen=True, eq=False)
class Lift:
    """How hidden gradients become feature gradients: the problem in features, and its model's
    affine prefix.
    """

    problem: Problem
    hoisted: Hoisted


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
        found = self._batched(rows, partial(self._outputs_at, points, check))
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
        found = self._batched(items, partial(self._steps_at, rows, alphas, wanted))
        self.padded += len(found) * self.capacity - len(rows)
        parts = [[step.part(slice(count)) for step in steps] for steps, count in found]
        return [_joined(of_target) for of_target in zip(*parts, strict=True)]

    def _steps_at(
        self, rows: Tensor, alphas: Tensor, wanted: Sequence[int], items: Tensor
    ) -> list[Step]:
        return step_gradients(self.problem, rows[items], alphas[items], wanted)

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
        found = self._batched(items, partial(self._pulled, lift.hoisted, flat, owners), size)
        pulled = torch.cat([part[:n] for part, n in found])
        return pulled.double().cpu().numpy().reshape(count, each, -1)

    def _pulled(self, hoisted: Hoisted, flat: Tensor, owners: Tensor, items: Tensor) -> Tensor:
        cotangents = SideBySide.like(self.problem.inputs).split(flat[items])
        return SideBySide.join(hoisted.pull(cotangents, self.problem.arguments(owners[items])))

    @torch.no_grad()
    def hidden(self, hoisted: Hoisted, points: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The prefix at every row of `points`, or at the one row that all share."""
        problem = self.problem
        shared = all(p.shape[0] == 1 for p in points) and not problem.forward_args
        rows = torch.arange(1 if shared else problem.rows, device=problem.device)
        batches = self._batched(rows, partial(self._hidden_at, hoisted, points))
        found = [[h[:count] for h in hidden] for hidden, count in batches]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _hidden_at(
        self, hoisted: Hoisted, points: Sequence[Tensor], rows: Tensor
    ) -> tuple[Tensor, ...]:
        at = [one_each(p, rows) for p in points]
        return hoisted.prefix(*at, *self.problem.arguments(rows))

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
        missing = size - len(piece)
        yield (torch.cat([piece, piece[-1:].expand(missing)]) if missing else piece), len(piece)


def endpoint_values(evaluator: Evaluator, rows: Tensor) -> tuple[Floats, Floats]:
    """f(x) and f(x') of some rows, [rows, targets] float64; every distinct baseline is evaluated
    once.
    """
    problem = evaluator.problem
    f_input = _selected(problem, evaluator.outputs(problem.inputs, rows), rows)
    first, which = _distinct(problem, rows)
    out = evaluator.outputs(problem.baselines, rows[first])
    return f_input, _selected(problem, out[which], rows)


def _distinct(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `rows` of the distinct (baseline, forward_args), and which of them each
    row has.
    """
    own = [
        t
        for t in (*problem.baselines, *problem.forward_args)
        if t.shape[0] > 1 or t.shape[0] == problem.rows
    ]
    if not own:
        return rows.new_zeros(1), torch.zeros_like(rows)
    seen: dict[bytes, int] = {}
    table = np.concatenate(
        [t[rows].reshape(len(rows), -1).cpu().contiguous().view(torch.uint8).numpy() for t in own],
        1,
    )
    which = [seen.setdefault(row.tobytes(), len(seen)) for row in table]
    first = np.unique(which, return_index=True)[1]
    return torch.from_numpy(first).to(rows.device), torch.tensor(which, device=rows.device)


def _selected(problem: Problem, out: Tensor, rows: Tensor) -> Floats:
    found = [select(out, problem.table(rows, target)) for target in range(problem.targets_per_row)]
    return torch.stack(found, 1).double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class Step:
    """One target of one step batch: ∂f/∂x, all inputs side by side [rows, elements], and f
    [rows].
    """

    gradients: Tensor
    values: Tensor

    def part(self, items: slice | Tensor) -> Step:
        """Some of the items, by their places."""
        if isinstance(items, Tensor):
            items = items.to(self.gradients.device)
        return Step(self.gradients[items], self.values[items])


def _joined(steps: Sequence[Step]) -> Step:
    """Steps of one target, one after the other."""
    if len(steps) == 1:
        return steps[0]
    gradients = torch.cat([step.gradients for step in steps])
    return Step(gradients, torch.cat([step.values for step in steps]))


def step_gradients(
    problem: Problem, rows: Tensor, alphas: Tensor, wanted: Sequence[int] = (0,)
) -> list[Step]:
    """f and ∂f/∂x at x' + α(x − x') for one step batch: one forward pass, one backward pass per
    wanted target.

    A backward pass starts from the summed outputs: rows are independent, so each gets its own
    gradient. An input that the output does not depend on gets zeros. Raises SpecError if the output
    depends on none.
    """
    with torch.enable_grad():
        points = [
            _between(b, x[rows], alphas).requires_grad_()
            for x, b in zip(problem.inputs, problem.baseline(rows), strict=True)
        ]
        # Copies, since a model whose first operation is in place must not write to leaves.
        step = problem.forward if problem.step is None else problem.step
        out = step(*[p.clone() for p in points], *problem.arguments(rows))
        if not out.requires_grad:
            raise independent_of_inputs()
        return [
            _backward(problem, out, points, rows, target, last=target == wanted[-1])
            for target in wanted
        ]


def _backward(
    problem: Problem,
    out: Tensor,
    points: Sequence[Tensor],
    rows: Tensor,
    target: int,
    *,
    last: bool,
) -> Step:
    values = select(out, problem.table(rows, target))
    found = gradients_of(values.sum(), points, keep_graph=not last, required=True)
    return Step(SideBySide.join(found), values.detach())


def _between(baseline: Tensor, x: Tensor, alphas: Tensor) -> Tensor:
    alpha = alphas.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return (baseline + alpha * (x - baseline)).detach()
