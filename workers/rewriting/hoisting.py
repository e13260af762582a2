"""The affine prefix of a model taken out of the integral: h(x' + α·d) = h(x') + α·(h(x) − h(x'))
for any affine h.

The prefix h then runs once per row instead of once per node, and the attributions are d ⊙ Jᵀ Σ w
∂f/∂h(α) with the one Jacobian J of h. Its nodes are found in a torch.fx trace (`trace.py`,
`affine.py`) that is then cut in two (`split.py`). A trace may misread Python, so its users compare
results with the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from integrand.workers.models.gradients import gradients_of
from integrand.workers.models.hooks import has_hooks
from integrand.workers.models.outputs import Forward
from integrand.workers.rewriting.affine import labels
from integrand.workers.rewriting.split import Split, UnknownSize
from integrand.workers.rewriting.trace import Trace


@dataclass(frozen=True, eq=False)
class Hoisted:
    """A model as tail(prefix(x)).

    prefix    (*inputs, *forward_args) → tuple of hidden tensors [rows, ...], affine in all inputs
              together
    tail      (*hidden, *forward_args) → the model's output
    frontier  names of the hidden tensors in the model's trace
    like      one row of zeros for each input, [1, ...]
    """

    prefix: Callable[..., tuple[Tensor, ...]]
    tail: Forward
    frontier: tuple[str, ...]
    like: tuple[Tensor, ...]

    def transpose(
        self, rows: int, forward_args: Sequence[Tensor] = ()
    ) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        """Jᵀ for that many rows, as a function to be called any number of times: cotangents like
        hidden → like inputs.

        Rows do not mix, so k vectors of one row are k rows, with `forward_args` repeated likewise.
        """
        with torch.enable_grad():
            points = [
                zero.expand(rows, *zero.shape[1:]).clone().requires_grad_() for zero in self.like
            ]
            hidden = self.prefix(*points, *forward_args)

        def pull(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(gradients_of(hidden, points, cotangents, keep_graph=True))

        return pull

    def pull(
        self, cotangents: Sequence[Tensor], forward_args: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Gradients with respect to the inputs, from those with respect to hidden: one `transpose`,
        used once.
        """
        return self.transpose(cotangents[0].shape[0], forward_args)(cotangents)


def hoist(
    module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor] = ()
) -> Hoisted | None:
    """Split an eval `module` at the end of its affine prefix; None where it cannot be traced or
    split.

    `inputs` and `forward_args` hold any number of valid rows; 2 and 3 are run, to tell what depends
    on their number.
    """
    if has_hooks(module):  # a trace leaves them out
        return None
    try:
        trace = Trace(module, inputs, forward_args)
    except Exception:  # noqa: BLE001 - the model's own Python meets proxies here, and may raise anything
        return None
    found = labels(trace)
    split = Split(trace, found) if found else None
    if split is None or not split.possible():
        return None
    like = tuple(torch.zeros_like(x[:1]) for x in inputs)
    try:
        return Hoisted(split.prefix(), split.tail(), tuple(n.name for n in split.frontier), like)
    except UnknownSize:
        return None
