"""Which classes of Captum explain rows, and what is known of each.

A class that is not listed is taken to draw random numbers and to promise nothing: it runs row by
row, from a seed of the row's own.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass, signature
from types import MappingProxyType
from typing import Any

from integrand.schemas.errors import SpecError

PROVIDED = (
    "forward_func",
    "model",
    "inputs",
    "baselines",
    "target",
    "additional_forward_args",
    "return_convergence_delta",
)
"""Arguments that a job gives itself."""


@dataclass(frozen=True)
class Asked:
    """What the cost of a row depends on.

    arguments  of the class and of its `attribute`, by name
    features   attributed elements of a row, or sets of them where a mask names some
    draws      baselines of a row
    """

    arguments: Mapping[str, Any]
    features: int
    draws: int

    @property
    def samples(self) -> int:
        return int(self.arguments["n_samples"])


Count = Callable[[Asked], int]


def _perturbed(asked: Asked) -> int:
    """Copies of a row in one pass of a class that changes some features at a time."""
    return int(asked.arguments["perturbations_per_eval"])


def _steps(asked: Asked) -> int:
    return int(asked.arguments["n_steps"])


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a class does with a row.

    random        whether it draws
    complete      whether attributions are promised to add up to f(x) − f(x'), on average where it
                  draws. (LRP's add up to f(x) instead.)
    distribution  whether it takes all baselines of a row together
    signed        whether the sign says which way a feature pushed: that of a slope does not
    copies        how often a row is in one pass
    evaluations   rows that the model is run on for one
    packages      what must be installed
    """

    random: bool = False
    complete: bool = False
    distribution: bool = False
    signed: bool = True
    copies: Count = lambda asked: 1
    evaluations: Count = lambda asked: 1
    packages: tuple[str, ...] = ("captum",)


_FITTED = ("captum", "sklearn")
TRAITS = MappingProxyType(
    {
        "DeepLift": Traits(complete=True, copies=lambda asked: 2, evaluations=lambda asked: 2),
        "DeepLiftShap": Traits(
            complete=True,
            distribution=True,
            copies=lambda asked: 2 * asked.draws,
            evaluations=lambda asked: 2 * asked.draws,
        ),
        "Deconvolution": Traits(signed=False),
        "FeatureAblation": Traits(copies=_perturbed, evaluations=lambda asked: asked.features + 1),
        "GradientShap": Traits(
            random=True,
            complete=True,
            distribution=True,
            copies=lambda asked: asked.samples,
            evaluations=lambda asked: asked.samples,
        ),
        "GuidedBackprop": Traits(signed=False),
        "GuidedGradCam": Traits(signed=False, evaluations=lambda asked: 2),
        "InputXGradient": Traits(),
        "IntegratedGradients": Traits(complete=True, copies=_steps, evaluations=_steps),
        "KernelShap": Traits(
            random=True,
            complete=True,
            copies=_perturbed,
            evaluations=lambda asked: asked.samples,
            packages=_FITTED,
        ),
        "LRP": Traits(evaluations=lambda asked: 2),
        "Lime": Traits(
            random=True,
            copies=_perturbed,
            evaluations=lambda asked: asked.samples,
            packages=_FITTED,
        ),
        "Occlusion": Traits(copies=_perturbed, evaluations=lambda asked: asked.features + 1),
        "Saliency": Traits(signed=False),
        "ShapleyValueSampling": Traits(
            random=True,
            complete=True,
            copies=_perturbed,
            evaluations=lambda asked: asked.samples * asked.features + 1,
        ),
        "ShapleyValues": Traits(
            complete=True,
            copies=_perturbed,
            evaluations=lambda asked: asked.features * math.factorial(min(20, asked.features)) + 1,
        ),
    }
)
UNKNOWN = Traits(random=True, signed=False)
REFUSED = MappingProxyType(
    {
        "DataLoaderAttribution": "it explains a data set, not rows",
        "FeaturePermutation": (
            "it exchanges features between rows, so that what a row gets depends on which rows are"
            " beside it"
        ),
        "LimeBase": "it takes functions, which a spec cannot hold: take Lime",
        "NoiseTunnel": (
            "it takes another class: `method: {kind: smoothgrad, sigma: …}` averages gradients"
            " over noise"
        ),
    }
)


@dataclass(frozen=True, eq=False)
class AttributionClass:
    """A class of Captum that explains rows."""

    name: str
    made: type[Any]
    traits: Traits

    @property
    def where(self) -> str:
        """Its place in a spec."""
        return f"method captum:{self.name}"

    @property
    def takes_baselines(self) -> bool:
        return "baselines" in signature(self.made.attribute).parameters

    @property
    def takes_gradients(self) -> bool:
        """Whether it differentiates; if not, it evaluates f alone."""
        return not issubclass(self.made, import_module("captum.attr").PerturbationAttribution)

    @property
    def takes_module(self) -> bool:
        """Whether it looks at the layers of the model, and hooks into them."""
        return "model" in signature(self.made).parameters


def find_class(name: str) -> AttributionClass:
    """The class of this name. Raises SpecError where Captum is missing, has none of this name, or
    its attributions are not of the inputs of rows.
    """
    traits = TRAITS.get(name, UNKNOWN)
    _check_installed(name, traits.packages)
    known = _classes()
    if name in known:
        return AttributionClass(name, known[name], traits)
    refusal = _refusal(name)
    near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
    raise SpecError(
        f"method captum:{name}",
        expected=f"a class of Captum that explains rows: {', '.join(sorted(known))}",
        seen=f"`{name}`" if refusal is None else f"`{name}`: {refusal}",
        next_step=f"did you mean `captum:{near[0]}`?" if near else "name one of them",
    )


def _check_installed(name: str, packages: tuple[str, ...]) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise SpecError(
            f"method captum:{name}",
            expected=f"the package {missing[0]}, which comes with the extra `captum`",
            seen="it is not installed here",
            next_step="pip install 'integrand[captum]', here and on the workers",
        )


def _classes() -> dict[str, type[Any]]:
    """Those that explain rows, by name."""
    found = {}
    for name, made in vars(import_module("captum.attr")).items():
        if _attributes(made) and _refusal(name) is None:
            found[name] = made
    return found


def _attributes(made: object) -> bool:
    """Whether it is a class that attributes to inputs, and none that others are derived from."""
    base = import_module("captum.attr").Attribution
    if not isclass(made) or not issubclass(made, base) or not hasattr(made, "attribute"):
        return False
    return "inputs" in signature(made.attribute).parameters


def _refusal(name: str) -> str | None:
    """Why a class of Captum is not for rows; None where it is, or is no class of Captum."""
    if name in REFUSED:
        return REFUSED[name]
    attr = import_module("captum.attr")
    made = getattr(attr, name, None)
    inside = (attr.LayerAttribution, attr.NeuronAttribution, attr.InternalInfluence)
    if isclass(made) and issubclass(made, inside):
        return "its attributions are of a layer, not of the inputs"
    return None
