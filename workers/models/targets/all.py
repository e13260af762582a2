"""Every output of every row."""

from __future__ import annotations

from integrand.schemas.specs.targets import AllTargets
from integrand.workers.models.targets.base import SameTargets


class All(SameTargets[AllTargets]):
    """Every index; the sample is tried at the first."""
