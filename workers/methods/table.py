"""The methods, by their parts of the spec: a new method is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.accuracy import Adaptive, Exact, FixedSteps
from integrand.schemas.specs.part import Part
from integrand.workers.methods.adaptive import AdaptiveMethod
from integrand.workers.methods.base import Method
from integrand.workers.methods.exact import ExactMethod
from integrand.workers.methods.fixed import FixedMethod

METHODS: Mapping[type[Part], type[Method[Any]]] = MappingProxyType(
    {Adaptive: AdaptiveMethod, FixedSteps: FixedMethod, Exact: ExactMethod}
)


def method_of(accuracy: Part) -> Method[Any]:
    """The method that a spec's accuracy asks for."""
    return METHODS[type(accuracy)](accuracy)
