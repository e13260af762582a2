"""The kinds of baseline, by their parts of the spec: a new kind is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.baselines import (
    AverageBaseline,
    BaselinePart,
    BlurBaseline,
    ColumnBaseline,
    ConstantBaseline,
    GaussianBaseline,
    MaxDistanceBaseline,
    MeanBaseline,
    MedianBaseline,
    PadBaseline,
    RowBaseline,
    ShuffleBaseline,
    TokenBaseline,
    TrainingBaseline,
    UniformBaseline,
    ZeroBaseline,
)
from integrand.workers.baselines.average import Average
from integrand.workers.baselines.base import BaselineKind
from integrand.workers.baselines.blur import Blur
from integrand.workers.baselines.column import Column
from integrand.workers.baselines.constant import Constant
from integrand.workers.baselines.gaussian import Gaussian
from integrand.workers.baselines.max_distance import MaxDistance
from integrand.workers.baselines.mean import Mean
from integrand.workers.baselines.median import Median
from integrand.workers.baselines.pad import Pad
from integrand.workers.baselines.row import Row
from integrand.workers.baselines.shuffle import Shuffle
from integrand.workers.baselines.token import Token
from integrand.workers.baselines.training import Training
from integrand.workers.baselines.uniform import Uniform
from integrand.workers.baselines.zero import Zero

_PLAIN: Mapping[type[BaselinePart], BaselineKind[Any]] = MappingProxyType(
    {
        ZeroBaseline: Zero(),
        ConstantBaseline: Constant(),
        ColumnBaseline: Column(),
        MeanBaseline: Mean(),
        MedianBaseline: Median(),
        RowBaseline: Row(),
        MaxDistanceBaseline: MaxDistance(),
        BlurBaseline: Blur(),
        UniformBaseline: Uniform(),
        GaussianBaseline: Gaussian(),
        ShuffleBaseline: Shuffle(),
        PadBaseline: Pad(),
        TokenBaseline: Token(),
        TrainingBaseline: Training(),
    }
)
"""Those that may be members of an average, too."""

KINDS: Mapping[type[BaselinePart], BaselineKind[Any]] = MappingProxyType(
    {**_PLAIN, AverageBaseline: Average(_PLAIN)}
)


def kind_of_baseline(baseline: BaselinePart) -> BaselineKind[Any]:
    """What makes the tensors of a spec's baseline."""
    return KINDS[type(baseline)]
