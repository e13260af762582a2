"""The kinds of baseline, by their parts of the spec: a new kind is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.baselines import (
    BaselinePart,
    BlurBaseline,
    ColumnBaseline,
    ConstantBaseline,
    GaussianBaseline,
    MaxDistanceBaseline,
    MeanBaseline,
    PadBaseline,
    ShuffleBaseline,
    UniformBaseline,
    ZeroBaseline,
)
from integrand.workers.baselines.base import BaselineKind
from integrand.workers.baselines.blur import Blur
from integrand.workers.baselines.column import Column
from integrand.workers.baselines.constant import Constant
from integrand.workers.baselines.gaussian import Gaussian
from integrand.workers.baselines.max_distance import MaxDistance
from integrand.workers.baselines.mean import Mean
from integrand.workers.baselines.pad import Pad
from integrand.workers.baselines.shuffle import Shuffle
from integrand.workers.baselines.uniform import Uniform
from integrand.workers.baselines.zero import Zero

KINDS: Mapping[type[BaselinePart], BaselineKind[Any]] = MappingProxyType(
    {
        ZeroBaseline: Zero(),
        ConstantBaseline: Constant(),
        ColumnBaseline: Column(),
        MeanBaseline: Mean(),
        MaxDistanceBaseline: MaxDistance(),
        BlurBaseline: Blur(),
        UniformBaseline: Uniform(),
        GaussianBaseline: Gaussian(),
        ShuffleBaseline: Shuffle(),
        PadBaseline: Pad(),
    }
)


def kind_of_baseline(baseline: BaselinePart) -> BaselineKind[Any]:
    """What makes the tensors of a spec's baseline."""
    return KINDS[type(baseline)]
