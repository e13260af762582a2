"""Whether a row gets the same bits every time: run again, at another place of its batch, and beside
other rows.

Models that draw random numbers, keep state between calls or mix the rows of a batch have no
attributions per row. What cannot be read off a program is tried on a few batches of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.models.gradients import gradients_at
from integrand.workers.models.outputs import Forward, on_copies
from integrand.workers.models.row_tensors import RowTensors

ROUNDING = 1000.0
"""Relative change of an output, in units of machine epsilon, that the order of additions may
explain.
"""
FLIPS = 0.1
"""Relative change of a gradient that single ReLU masks flipped by rounding may explain: 2% was seen
in float32.
"""


@dataclass(frozen=True)
class Repeatability:
    """What moved, the largest change relative to the largest value: 0.0 where not a bit did.

    draws      whether the model takes numbers from torch's random stream without seeding it
    again      outputs and gradients of a batch that ran once more
    outputs    outputs of a row at another place, or beside other rows
    gradients  its gradients
    epsilon    of the dtype
    """

    draws: bool
    again: float
    outputs: float
    gradients: float
    epsilon: float

    @property
    def coupled(self) -> bool:
        """Whether rows change each other by more than rounding does."""
        return self.outputs > ROUNDING * self.epsilon or self.gradients > FLIPS

    @property
    def steady(self) -> bool:
        """Whether rows get the same results up to rounding, wherever they are and however often
        they run.
        """
        return not self.draws and self.again <= ROUNDING * self.epsilon and not self.coupled

    @property
    def bitwise(self) -> bool:
        return self.again == self.outputs == self.gradients == 0.0

    def check(self) -> None:
        """Raises SpecError for a model that is random or stateful, or whose rows depend on each
        other.
        """
        if self.draws or self.again:
            seen = "two runs that differ" if self.again else "random numbers drawn in forward"
            raise SpecError(
                "model",
                expected="the same result for the same batch",
                seen=seen,
                next_step=(
                    "switch off dropout, noise and sampling inside forward (model.eval() does not"
                    " reach functional dropout), keep no state between calls, and use deterministic"
                    " kernels"
                ),
            )
        if self.coupled:
            moved = f"its gradient by {self.gradients:.2g}"
            if self.outputs:
                moved = f"its output by {self.outputs:.2g}"
            raise SpecError(
                "model",
                expected="rows that do not depend on the rows beside them in a batch",
                seen=f"a row that changed {moved} of the largest with its neighbours or its place",
                next_step=(
                    "batch norm without running statistics, statistics, sorting or softmax over the"
                    " batch, expert capacity, or rows that are the nodes of one graph do this: use"
                    " running statistics and per-row operations, and make each graph one row"
                ),
            )


def measure_repeatability(
    forward: Forward, batch: RowTensors, size: int, *, gradients: bool = True
) -> Repeatability:
    """Try five batches of `size` rows, made of the rows of `batch`, which should differ from each
    other; its inputs are points on their paths.

    The rows in order; in reverse; copies of the first alone, and of the last alone, so that every
    place has had them, all want the same expert and the batch's extremes are others; and in order
    again, at the end, so that state kept between calls shows. `gradients` False tries outputs
    alone.
    """
    if size < 2:
        raise ValueError(f"{size} rows cannot disturb each other: try at least 2")
    base = batch.repeat(size)
    outcome = _Outcome.of(forward, base, gradients)
    moved = [
        other.distance(outcome.take(index)) for other, index in _elsewhere(forward, base, gradients)
    ]
    again = _Outcome.of(forward, base, gradients).distance(outcome)
    return Repeatability(
        draws=_draws(forward, base),
        again=max(again),
        outputs=max(outputs for outputs, _ in moved),
        gradients=max(found for _, found in moved),
        epsilon=float(torch.finfo(batch.inputs[0].dtype).eps),
    )


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Outputs `[rows, outputs]`, as endpoints are evaluated, and gradients `[rows, elements]`, as
    steps are.
    """

    outputs: Tensor
    gradients: Tensor

    @staticmethod
    def of(forward: Forward, batch: RowTensors, gradients: bool) -> _Outcome:
        with torch.no_grad():
            outputs = on_copies(forward, *batch.arguments).reshape(batch.rows, -1)
        if not gradients:
            return _Outcome(outputs, outputs[:, :0])
        _, found = gradients_at(forward, batch.inputs, batch.forward_args, batch.target)
        return _Outcome(outputs, found)

    def take(self, index: Tensor) -> _Outcome:
        return _Outcome(self.outputs[index], self.gradients[index])

    def distance(self, other: _Outcome) -> tuple[float, float]:
        outputs = _distance(self.outputs, other.outputs)
        gradients = _distance(self.gradients, other.gradients)
        return outputs, gradients


def _elsewhere(
    forward: Forward, base: RowTensors, gradients: bool
) -> Iterator[tuple[_Outcome, Tensor]]:
    """Outcomes of other batches of the same rows, each with the rows of `base` that they should
    equal.
    """
    order = torch.arange(base.rows, device=base.inputs[0].device)
    backwards = order.flip(0)
    all_first = torch.zeros_like(order)
    all_last = torch.full_like(order, base.rows - 1)
    for index in (backwards, all_first, all_last):
        yield _Outcome.of(forward, base.take(index), gradients), index


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest finite value; inf where only one of two is
    finite.
    """
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    if torch.equal(one.nan_to_num(), other.nan_to_num()):
        return 0.0
    a, b = _finite(one), _finite(other)
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()))


def _finite(values: Tensor) -> Tensor:
    """In float64, with zeros for what is not."""
    return values.double().where(values.isfinite(), 0.0)


@torch.no_grad()
def _draws(forward: Forward, batch: RowTensors) -> bool:
    """Whether the random stream after a pass depends on the one before it: drawn from, and not
    seeded by the model.

    Equal bits would not show what is rarely drawn, such as a layer skipped once in a hundred
    batches.
    """
    streams = _streams(batch.device)
    saved = [stream.get_state() for stream in streams]
    try:
        first, second = (_drawn(forward, batch, streams, seed) for seed in (1, 2))
    finally:
        for stream, state in zip(streams, saved, strict=True):
            stream.set_state(state)
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return any(not torch.equal(a, b) for a, b in both)


def _streams(device: torch.device) -> list[torch.Generator]:
    """Torch's random streams that a model on a device may draw from."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]


def _drawn(
    forward: Forward, batch: RowTensors, streams: Sequence[torch.Generator], seed: int
) -> list[Tensor | None]:
    """State of each stream after a pass from `seed`; None where the pass left it alone."""
    before = [stream.manual_seed(seed).get_state() for stream in streams]
    on_copies(forward, *batch.arguments)
    after = [stream.get_state() for stream in streams]
    pairs = zip(before, after, strict=True)
    return [None if torch.equal(state, now) else now for state, now in pairs]
