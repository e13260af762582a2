"""The model's one output per row."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.specs.targets import ScalarTarget
from integrand.workers.models.targets.base import SameTargets


class Scalar(SameTargets[ScalarTarget]):
    """No index; whether there is one output alone is judged where outputs are selected."""

    def check(self, target: ScalarTarget, out: Tensor) -> None:
        pass
