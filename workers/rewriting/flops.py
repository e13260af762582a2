"""Whether a hoisted prefix pays: FLOPs of one row, plain and in two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from integrand.workers.models.gradients import differentiate
from integrand.workers.models.outputs import Forward
from integrand.workers.models.recurrence import differentiable
from integrand.workers.rewriting.hoisting import Hoisted

WIDEST = 4
"""Hidden elements for each input element, where a sum is all that is kept of a row."""
WORTH = 0.85
"""A hoisted row may cost at most this share of the plain one's FLOPs."""


@dataclass(frozen=True)
class Work:
    """What a row is taken to cost: its nodes, and vectors pulled back through the prefix."""

    nodes: int
    pulls: int


JUDGED_WORK = Work(nodes=7, pulls=8)
"""An adaptive row that is certified at 7 nodes: two integrals, four coefficients, and what judging
them costs.
"""


def fixed_work(nodes: int) -> Work:
    """A row of a plain rule: one sum."""
    return Work(nodes, pulls=1)


def worthwhile(
    module: nn.Module,
    hoisted: Hoisted,
    inputs: Sequence[Tensor],
    forward_args: Sequence[Tensor] = (),
    work: Work = JUDGED_WORK,
) -> bool:
    """Whether a row gets cheaper: a function of FLOPs and shapes alone, with hidden no larger than
    the inputs, or for a plain rule not much larger.

    Plain: a forward and a backward pass per node. Hoisted: those of the tail per node, the prefix
    at x and at x', and the pulls. At 7 judged nodes this asks for a prefix of at least half the
    model's FLOPs, at 50 plain ones for a seventh.
    """
    with torch.no_grad():
        hidden = hoisted.prefix(*inputs, *forward_args)
    widest = WIDEST if work.pulls == 1 else 1
    if sum(h.numel() for h in hidden) > widest * sum(x.numel() for x in inputs):
        return False
    plain = _flops(module, inputs, forward_args)
    tail = _flops(hoisted.tail, hidden, forward_args)
    prefix = (plain - tail) / 2
    return plain > 0 and work.nodes * tail + (2 + work.pulls) * prefix <= WORTH * work.nodes * plain


def _flops(forward: Forward, points: Sequence[Tensor], forward_args: Sequence[Tensor]) -> int:
    """FLOPs of one gradient, counted and not timed; none for a forward that only hands its argument
    on.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tree of modules for plans alone

    leaves = [p.detach().clone().requires_grad_() for p in points]
    with torch.enable_grad(), differentiable(leaves), FlopCounterMode(display=False) as counter:
        # its hooks fail on gradients to a module's own argument
        out = forward(*[p * 1 for p in leaves], *[a.clone() for a in forward_args])
        differentiate(out.sum(), leaves)
    return int(counter.get_total_flops())
