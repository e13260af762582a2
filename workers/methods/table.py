"""The methods, by their parts of the spec: a new method is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.accuracy import Adaptive, Exact, FixedSteps
from integrand.schemas.specs.methods import IntegratedGradients, MethodPart
from integrand.schemas.specs.part import Part
from integrand.workers.methods.adaptive import AdaptiveMethod
from integrand.workers.methods.base import Method
from integrand.workers.methods.exact import ExactMethod
from integrand.workers.methods.fixed import FixedMethod

METHODS: Mapping[type[Part], type[Method[Any]]] = MappingProxyType(
    {Adaptive: AdaptiveMethod, FixedSteps: FixedMethod, Exact: ExactMethod}
)

INTEGRATED = IntegratedGradients()


def method_of(accuracy: Part, method: MethodPart = INTEGRATED) -> Method[Any]:
    """The method that a spec asks for: integrated gradients by how exact they shall be, others by
    their own parts.
    """
    if isinstance(method, IntegratedGradients):
        return METHODS[type(accuracy)](accuracy)
    raise NotImplementedError(type(method).__name__)
