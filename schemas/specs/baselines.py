"""The input that stands for absence, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Numbers, Part


class ZeroBaseline(Part):
    """All zeros, in the units that the model receives."""

    kind: Literal["zero"] = "zero"


class ConstantBaseline(Part):
    """One value for all features, or one per feature (a flat list, or one per leading channel)."""

    kind: Literal["constant"] = "constant"
    value: Numbers = Field(
        description="One number, one per feature (flattened), or one per channel."
    )
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )


class ColumnBaseline(Part):
    """A baseline of its own for each row, held by columns of the source."""

    kind: Literal["column"] = "column"
    column: str | None = Field(
        None, description="List or tensor column, for an input made of one column."
    )
    columns: tuple[str, ...] = Field(
        (), description="One column per feature, for an input made of columns."
    )
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )

    @model_validator(mode="after")
    def _one_form(self) -> ColumnBaseline:
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`")
        return self


class MeanBaseline(Part):
    """The mean of each feature over every clean row of the dataset, counted once before the run."""

    kind: Literal["mean"] = "mean"


Baseline = Annotated[
    ZeroBaseline | ConstantBaseline | ColumnBaseline | MeanBaseline, Field(discriminator="kind")
]
