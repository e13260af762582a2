"""What the engine is asked to report of a shard's rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers.data.blocks import blocks_of, summed
from integrand.workers.models.reporting import Reporting


def reporting_of(
    spec: AttributeSpec, shapes: Sequence[InputShape], members: Tensor | None
) -> Reporting | None:
    """None where a job reports the attributions of its inputs alone. `members` is as in `Rows`."""
    output = spec.output
    if members is None and not (output.mean_gradients or output.spread):
        return None
    blocks = blocks_of(spec, shapes)
    sums = sum(prod(shape.shape) for shape in summed(spec, shapes))
    return Reporting(
        roles=tuple(block.role for block in blocks),
        shapes=tuple(block.shape.shape for block in blocks),
        members=members,
        sums=sums if members is not None else 0,
    )
