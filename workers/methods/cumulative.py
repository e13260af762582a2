"""What has been attributed on the way: the attributions of every part of the path from x' to x, and
f there, which they must add up to.

A plot of both says where on the path a model moves, and whether it is saturated at x: Sturmfels,
Lundberg & Lee 2020, "Visualizing the Impact of Feature Attribution Baselines".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.results import Tensors
from integrand.workers.methods.arguments import Baselines, row_tensors
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.outputs import Forward, TargetLike
from integrand.workers.models.row_tensors import RowTensors

STATIONS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, eq=False, kw_only=True)
class Cumulative:
    """Attributions up to places γ(α) = x' + α(x − x') on the paths of rows.

    alphas          [places]
    attributions    like the inputs, `[places, rows, ...]`: ∫ from x' to γ(α), units of f
    f               f(γ(α)), `[places, rows]` float64
    f_baseline      f(x'), or the mean over several baselines, `[rows]` float64
    error_estimate  of each, relative like that of `attribute`, `[places, rows]` float64
    status          of each, `[places, rows]`
    """

    alphas: Tensor
    attributions: tuple[Tensor, ...]
    f: Tensor
    f_baseline: Tensor
    error_estimate: Tensor
    status: NDArray[Any]

    @property
    def sums(self) -> Tensor:
        """Σ attributions up to each place, which f(γ(α)) − f(x') is to meet: `[places, rows]`."""
        by_input = [own.double().flatten(2).sum(2) for own in self.attributions]
        return torch.stack(by_input).sum(0)


def attribute_along(
    forward: Forward,
    inputs: Tensors,
    *,
    alphas: Sequence[float] = STATIONS,
    baselines: Baselines = None,
    target: TargetLike = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
) -> Cumulative:
    """Integrated Gradients of every first part of the path, each to its own certificate.

    The integral from x' to γ(α) is that of the path which ends there. Arguments are those of
    `attribute`, with one target for each row; raises like it, and SpecError for places outside
    [0, 1].
    """
    places = torch.tensor(list(alphas), dtype=torch.float64)
    if not len(places) or not bool(((places >= 0) & (places <= 1)).all()):
        raise SpecError("alphas", expected="places from 0 to 1", seen=str(list(alphas)))
    if isinstance(target, list):
        raise SpecError("target", expected="one target for each row", seen="a list of them")
    rows = row_tensors(inputs, baselines, forward_args, target)
    found = []
    for alpha in places.tolist():
        ends = tuple(_between(rows, i, alpha) for i in range(len(rows.inputs)))
        found.append(
            attribute(
                forward,
                ends,
                baselines=rows.baselines,
                target=target,
                forward_args=rows.forward_args,
                accuracy=accuracy,
            )
        )
    columns = zip(*(one.attributions for one in found), strict=True)
    statuses: list[tuple[RowStatus, ...]] = [one.status for one in found]
    return Cumulative(
        alphas=places,
        attributions=tuple(torch.stack(same) for same in columns),
        f=torch.stack([one.f_input for one in found]),
        f_baseline=found[0].f_baseline,
        error_estimate=torch.stack([one.error_estimate for one in found]),
        status=np.array(statuses, object),
    )


def _between(rows: RowTensors, number: int, alpha: float) -> Tensor:
    """x' + α(x − x'), which is x itself at 1."""
    x, start = rows.inputs[number], rows.baselines[number]
    return torch.lerp(start.expand_as(x), x, alpha)
