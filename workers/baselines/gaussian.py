"""The row under Gaussian noise."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.specs.baselines import GaussianBaseline
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.drawing import keys_for
from integrand.workers.baselines.ranges import needed_bounds
from integrand.workers.philox import normals


class Gaussian(BaselineKind[GaussianBaseline]):
    """x + σ·ε, clipped to the range unless the part says otherwise."""

    def check(self, part: GaussianBaseline, place: Place) -> None:
        """SpecError for an input without a range to clip to."""
        if part.clip:
            needed_bounds(place, "clipped gaussian")

    def tensor(self, part: GaussianBaseline, rows: PlaceRows) -> Tensor:
        shape = rows.shape.shape
        noise = normals(
            keys_for(part, rows),
            seed=part.seed,
            stream=rows.stream,
            draws=range(part.draws),
            count=prod(shape),
        )
        around = noise.reshape(rows.rows, part.draws, *shape).mul_(_sigma(part, rows))
        moved = around.add_(rows.values[:, None]).to(rows.dtype).flatten(0, 1)
        if not part.clip:
            return moved
        bounds = needed_bounds(rows, part.kind)
        return moved.clamp_(rows.placed(bounds.low), rows.placed(bounds.high))


def _sigma(part: GaussianBaseline, rows: PlaceRows) -> Tensor | float:
    """In model units; `[1, *shape]` float64 where it is given in raw ones."""
    if part.units == "model":
        return part.sigma
    raw = np.full((1, *rows.shape.shape), part.sigma)
    widths = np.abs(rows.to_model_units(raw) - rows.to_model_units(np.zeros_like(raw)))
    return torch.from_numpy(widths).to(rows.values.device)
