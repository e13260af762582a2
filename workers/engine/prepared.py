"""A model as it is run: savings applied, its affine prefix apart, and its closed form where it has
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import InputShape, Numerics
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.closed_form.recognition import ShallowNetwork, agrees, recognise
from integrand.workers.engine.reduced import REDUCED, Reduced
from integrand.workers.models.loading import DTYPES
from integrand.workers.models.outputs import Forward, transformed
from integrand.workers.rewriting.folding import Pair
from integrand.workers.rewriting.hoisting import Hoisted
from integrand.workers.rewriting.savings import Savings, apply


@dataclass(frozen=True, eq=False)
class Prepared:
    """A callable, and what is known of its inside.

    hoisted   its affine prefix and the rest
    network   its layers, where its integral has a closed form
    step      what step batches run in place of `forward`, or of the rest behind the prefix:
              compiled, or in reduced precision
    reduced   that precision
    """

    forward: Forward
    hoisted: Hoisted | None = None
    network: ShallowNetwork | None = None
    step: Forward | None = None
    reduced: Reduced | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        return self.forward(*arguments)


def assemble(
    forward: Forward,
    transform: str,
    savings: Savings,
    inputs: Sequence[Tensor],
    forward_args: Sequence[Tensor],
    *,
    exact: bool = False,
) -> Prepared:
    """The model with these savings and this output transform; `inputs` and `forward_args` are rows
    of any valid values.

    Raises IntegrityError if the model is not what the savings, or the closed form, were chosen for.
    """
    if exact:
        network = recognise(forward)
        if isinstance(network, str):
            raise IntegrityError(
                "model",
                expected="a network whose integral has a closed form",
                seen=network,
                next_step="plan again",
            )
        return Prepared(forward, network=network)
    rewritten = apply(forward, savings, inputs, forward_args)
    whole = transformed(rewritten.forward, transform)
    hoisted = rewritten.hoisted
    if hoisted is not None:
        tail = transformed(hoisted.tail, transform)
        hoisted = replace(hoisted, tail=tail)
    return Prepared(whole, hoisted)


def prepare_planned(
    forward: Forward, spec: AttributeSpec, shapes: Sequence[InputShape], numerics: Numerics
) -> Prepared:
    """What a worker runs: the plan's choices on rows of zeros, which tell ranks and dtypes."""
    folded = tuple(Pair(*pair) for pair in numerics.folded)
    savings = Savings(numerics.savings, folded, numerics.frontier)
    dtype = DTYPES[numerics.precision]
    device = numerics.device
    inputs = [torch.zeros(2, *shape.shape, dtype=dtype, device=device) for shape in shapes]
    found = assemble(
        forward, spec.target.transform_of_output, savings, inputs, (), exact=numerics.exact
    )
    return stepping(found, numerics.reduced, device, compile=numerics.compile)


def stepping(prepared: Prepared, precision: str | None, device: str, *, compile: bool) -> Prepared:
    """The model with gradients taken in a reduced precision, or compiled, or both. Compilation is
    at the first batch.
    """
    if prepared.network is not None or not (precision or compile):
        return prepared
    step = prepared.hoisted.tail if prepared.hoisted else prepared.forward
    reduced = REDUCED[precision] if precision else None
    if reduced is not None:
        step = reduced.forward(step, device)
    if compile:
        step = _compiled(step)
    return replace(prepared, step=step, reduced=reduced)


def _compiled(forward: Forward) -> Forward:
    """For one shape of step batch, and for several backward passes through one forward pass."""
    from torch._functorch import config  # with much else behind it

    # a buffer given away by the first backward pass would be missing in the second
    config.donated_buffer = False
    return torch.compile(forward, dynamic=False, options={"deterministic": True})


def closed_form(forward: Forward, rows: Tensor) -> ShallowNetwork | str:
    """The network whose integral has a closed form, or why it has none. `rows` are tried."""
    network = recognise(forward)
    if isinstance(network, str) or agrees(network, forward, rows):
        return network
    return "its outputs are not those of its layers"
