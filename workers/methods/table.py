"""The methods, by their parts of the spec: a new method is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.accuracy import Adaptive, Exact, FixedSteps
from integrand.schemas.specs.methods import (
    CaptumMethod,
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    MethodPart,
    Saliency,
    SmoothGrad,
)
from integrand.schemas.specs.part import Part
from integrand.workers.methods.adaptive import AdaptiveMethod
from integrand.workers.methods.base import Method
from integrand.workers.methods.captum.method import CaptumAttribution
from integrand.workers.methods.exact import ExactMethod
from integrand.workers.methods.expected import IndependentExpectation, StratifiedExpectation
from integrand.workers.methods.fixed import FixedMethod
from integrand.workers.methods.gradients import InputXGradientMethod, SaliencyMethod
from integrand.workers.methods.smoothgrad import SmoothGradMethod

METHODS: Mapping[type[Part], type[Method[Any]]] = MappingProxyType(
    {Adaptive: AdaptiveMethod, FixedSteps: FixedMethod, Exact: ExactMethod}
)
"""Integrated gradients, by how exact they shall be."""
SAMPLINGS = MappingProxyType({"iid": IndependentExpectation, "stratified": StratifiedExpectation})
OTHERS: Mapping[type[MethodPart], Any] = MappingProxyType(
    {
        SmoothGrad: SmoothGradMethod,
        Saliency: SaliencyMethod,
        InputXGradient: InputXGradientMethod,
        CaptumMethod: CaptumAttribution,
    }
)
INTEGRATED = IntegratedGradients()


def method_of(accuracy: Part, part: MethodPart = INTEGRATED) -> Method[Any]:
    """The method that a spec asks for: integrated gradients by how exact they shall be, others by
    their own parts.
    """
    if isinstance(part, ExpectedGradients) and part.sampling != "product":
        return SAMPLINGS[part.sampling](accuracy, part)
    if isinstance(part, IntegratedGradients | ExpectedGradients):
        return METHODS[type(accuracy)](accuracy)
    found: Method[Any] = OTHERS[type(part)](accuracy, part)
    return found
