"""One output for all rows, of any number of dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from integrand.schemas.specs.targets import IndexTarget
from integrand.workers.models.targets.base import SameTargets, refused
from integrand.workers.models.targets.view import over_axis


class Index(SameTargets[IndexTarget]):
    """One place; whether it exists is judged where outputs are selected."""

    def view(self, target: IndexTarget) -> nn.Module | None:
        return over_axis(target)

    def check(self, target: IndexTarget, out: Tensor) -> None:
        pass

    def refusals(self, column: Tensor, sizes: tuple[int, ...]) -> Mapping[int, str]:
        return refused(column, sizes)
