"""The sum or the mean of a region of outputs, one number of each row."""

from __future__ import annotations

from torch import Tensor, nn

from integrand.schemas.specs.targets import RegionTarget
from integrand.workers.models.targets.base import SameTargets
from integrand.workers.models.targets.view import Region as View


class Region(SameTargets[RegionTarget]):
    """Behind the view a scalar; the view judges whether the model has such a region."""

    def view(self, target: RegionTarget) -> nn.Module:
        return View(target).eval()

    def check(self, target: RegionTarget, out: Tensor) -> None:
        pass
