"""Uniform noise over the valid range."""

from __future__ import annotations

from math import prod

from torch import Tensor

from integrand.schemas.specs.baselines import UniformBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.drawing import keys_for
from integrand.workers.baselines.ranges import needed_bounds
from integrand.workers.philox import uniforms


class Uniform(BaselineKind[UniformBaseline]):
    """low + u·(high − low), u of each row's own or of all rows."""

    def check(self, part: UniformBaseline, place: Place) -> None:
        """SpecError for an input without a range."""
        needed_bounds(place, part.kind)

    def tensor(self, part: UniformBaseline, rows: PlaceRows) -> Tensor:
        bounds = needed_bounds(rows, part.kind)
        drawn = uniforms(
            keys_for(part, rows),
            seed=part.seed,
            stream=rows.stream,
            draws=range(part.draws),
            count=prod(rows.shape.shape),
        )
        shares = drawn.to(rows.dtype).reshape(-1, *rows.shape.shape)
        low, width = rows.placed(bounds.low), rows.placed(bounds.high - bounds.low)
        return shares.mul_(width).add_(low).clamp_(max=rows.placed(bounds.high))
