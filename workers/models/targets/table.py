"""The kinds of target, by their parts of the spec: a new kind is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.targets import (
    AllTargets,
    ArgmaxTarget,
    ColumnTarget,
    IndexTarget,
    RegionTarget,
    ScalarTarget,
    TargetPart,
    TopKTarget,
)
from integrand.workers.models.outputs import Forward, Transformed
from integrand.workers.models.targets.all import All
from integrand.workers.models.targets.argmax import Argmax
from integrand.workers.models.targets.base import TargetKind
from integrand.workers.models.targets.column import Column
from integrand.workers.models.targets.index import Index
from integrand.workers.models.targets.region import Region
from integrand.workers.models.targets.scalar import Scalar
from integrand.workers.models.targets.top_k import TopK

KINDS: Mapping[type[TargetPart], TargetKind[Any]] = MappingProxyType(
    {
        ScalarTarget: Scalar(),
        IndexTarget: Index(),
        ColumnTarget: Column(),
        RegionTarget: Region(),
        ArgmaxTarget: Argmax(),
        TopKTarget: TopK(),
        AllTargets: All(),
    }
)


def kind_of_target(target: TargetPart) -> TargetKind[Any]:
    """What chooses the outputs that a spec's target asks for."""
    return KINDS[type(target)]


def with_view(forward: Forward, target: TargetPart) -> Forward:
    """The model with what its target makes of its output, as the model from then on."""
    view = kind_of_target(target).view(target)
    if view is None:
        return forward
    weights = target.weights("float32")
    return Transformed(forward, view, passed_on=0 if weights is None else 1)
