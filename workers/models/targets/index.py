"""One output for all rows, of any number of dimensions."""

from __future__ import annotations

from torch import Tensor

from integrand.schemas.specs.targets import IndexTarget
from integrand.workers.models.targets.base import SameTargets


class Index(SameTargets[IndexTarget]):
    """One place; whether it exists is judged where outputs are selected."""

    def check(self, target: IndexTarget, out: Tensor) -> None:
        pass
