"""How exact a row shall be, and how that is checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Part, Rule


class FixedSteps(Part):
    """One rule with a fixed number of steps for every row; rows are `unchecked` (no tolerance to
    hold them to).
    """

    kind: Literal["fixed"] = "fixed"
    rule: Rule = Field("gauss_legendre", description="Quadrature rule on [0, 1].")
    steps: int = Field(
        50, ge=1, le=10_000, description="m of the rule: m evaluations, m + 1 with both ends."
    )

    @model_validator(mode="after")
    def _both_ends(self) -> FixedSteps:
        if self.rule == "gauss_legendre" and self.steps > 1000:
            raise ValueError(
                "gauss_legendre takes at most 1000 steps; smooth models need fewer than 50"
            )
        return self


class Adaptive(Part):
    """Nodes per row until error estimate and gap are within the tolerance, or the evaluations are
    spent.
    """

    kind: Literal["adaptive"] = "adaptive"
    tolerance: float = Field(
        1e-2, gt=0, lt=1, description="Relative L1 error of a row's attributions to reach."
    )
    max_evaluations: int = Field(
        512, ge=7, le=8192, description="Most gradient evaluations per row."
    )
    on_unreachable: Literal["stop", "spend"] = Field(
        "stop",
        description=(
            "A row whose error falls too slowly to reach the tolerance: stop early, or spend all"
            " evaluations."
        ),
    )
    until: Literal["tolerance", "reasons"] = Field(
        "tolerance",
        description=(
            "`reasons`: a row within the tolerance goes on until its reasons (`output.reasons`) are"
            " certain, or its evaluations are spent."
        ),
    )


class Exact(Part):
    """The integral itself, without steps: for ReLU networks with at most two hidden layers,
    explained before any softmax.
    """

    kind: Literal["exact"] = "exact"


class FixedSamples(Part):
    """So many samples of every row, for methods that draw them; rows are `unchecked`, and their
    error estimate is told all the same.
    """

    kind: Literal["samples"] = "samples"
    samples: int = Field(200, ge=1, le=1_000_000, description="Gradient evaluations per row.")


Accuracy = Annotated[FixedSteps | Adaptive | Exact | FixedSamples, Field(discriminator="kind")]
