"""By which method rows are attributed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSamples, FixedSteps
from integrand.schemas.specs.part import Part, kind_of

QUADRATURES = (Adaptive, FixedSteps, Exact)
SAMPLINGS = (Adaptive, FixedSamples)
Value = bool | int | float | str | None
_Row = tuple[Value, ...]
_Plane = tuple[Value | _Row, ...]
_Image = tuple[Value | _Plane, ...]
Argument = Value | tuple[Value | _Image, ...]
"""A value, or a tensor of up to four dimensions in lists."""


class MethodPart(Part):
    """Base of every method."""

    @property
    def takes(self) -> tuple[type[Part], ...]:
        """The kinds of accuracy that say how exact it shall be; none where nothing is
        approximated.
        """
        return ()

    @property
    def looks_inside(self) -> bool:
        """Whether it looks at the layers of the model, which must then run as they are."""
        return False

    @property
    def title(self) -> str:
        """As people call it."""
        return str(kind_of(type(self)))


class IntegratedGradients(MethodPart):
    """Gradients integrated on the straight path from the baseline; over several baselines of a row
    their mean. Sundararajan, Taly & Yan 2017.
    """

    kind: Literal["integrated_gradients"] = "integrated_gradients"

    @property
    def takes(self) -> tuple[type[Part], ...]:
        return QUADRATURES


class ExpectedGradients(MethodPart):
    """The mean over a row's baselines of integrated gradients, by samples of baseline and α.
    Erion, Janizek, Sturmfels, Lundberg & Lee 2021, §2.

    Of kind `adaptive`, the accuracy takes samples until their standard error is within the
    tolerance; of kind `samples`, so many of them.
    """

    kind: Literal["expected_gradients"] = "expected_gradients"
    sampling: Literal["product", "stratified", "iid"] = Field(
        "stratified",
        description=(
            "iid: baseline and α are drawn anew for each sample, as published; stratified: every"
            " baseline as often as the others, α in equal strata; product: every baseline with the"
            " nodes of its own certified integral, as integrated_gradients does."
        ),
    )
    seed: int = Field(0, ge=0, description="Of the draws, which depend on it and the row alone.")

    @property
    def takes(self) -> tuple[type[Part], ...]:
        return QUADRATURES if self.sampling == "product" else SAMPLINGS


class SmoothGrad(MethodPart):
    """The mean gradient at noisy copies of the row. Smilkov, Thorat, Kim, Viégas & Wattenberg
    2017.

    Of kind `adaptive`, the accuracy takes copies until their standard error is within the
    tolerance; of kind `samples`, so many of them.
    """

    kind: Literal["smoothgrad"] = "smoothgrad"
    sigma: float = Field(gt=0, description="Standard deviation of the noise, in model units.")
    times_input: bool = Field(
        False, description="Each gradient times its noisy copy: (x + ε)·∂F(x + ε)."
    )
    seed: int = Field(0, ge=0, description="Of the noise, which depends on it and the row alone.")

    @property
    def takes(self) -> tuple[type[Part], ...]:
        return SAMPLINGS


class Saliency(MethodPart):
    """The gradient at the row. Simonyan, Vedaldi & Zisserman 2014."""

    kind: Literal["saliency"] = "saliency"
    absolute: bool = Field(True, description="Its absolute value, as published.")


class InputXGradient(MethodPart):
    """The row times the gradient there. Shrikumar, Greenside, Shcherbina & Kundaje 2016."""

    kind: Literal["input_x_gradient"] = "input_x_gradient"


class CaptumMethod(MethodPart):
    """An attribution class of Captum, by its name."""

    kind: Literal["captum"] = "captum"
    name: str = Field(description="The class, such as DeepLift.")
    arguments: dict[str, Argument] = Field(
        {}, description="Arguments of the class and of its `attribute`, by name."
    )
    seed: int = Field(
        0, ge=0, description="Of classes that draw: a row's draws depend on it and the row alone."
    )

    @property
    def looks_inside(self) -> bool:
        return True

    @property
    def title(self) -> str:
        return f"captum:{self.name}"


_METHODS = Annotated[
    IntegratedGradients | ExpectedGradients | SmoothGrad | Saliency | InputXGradient | CaptumMethod,
    Field(discriminator="kind"),
]


def _spelled_out(value: Any) -> Any:
    """`saliency` and `captum:DeepLift` as parts."""
    if not isinstance(value, str):
        return value
    kind, colon, name = value.partition(":")
    return {"kind": kind, "name": name} if colon else {"kind": kind}


Method = Annotated[_METHODS, BeforeValidator(_spelled_out, json_schema_input_type=str | _METHODS)]


def refusal(method: MethodPart, accuracy: Accuracy, *, asked: bool) -> str | None:
    """Why a method cannot be as exact as is asked for, if it cannot."""
    kind = kind_of(type(method))
    if not method.takes:
        return f"{kind} approximates nothing: leave out `accuracy`" if asked else None
    if isinstance(accuracy, method.takes):
        return None
    kinds = " or ".join(str(kind_of(one)) for one in method.takes)
    sampling = f" with sampling {method.sampling}" if isinstance(method, ExpectedGradients) else ""
    return f"{kind}{sampling} takes an accuracy of kind {kinds}, not {accuracy.kind}"
