"""The input that stands for absence, by kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Numbers, Part, Read


class BaselinePart(Part):
    """Base of every kind of baseline.

    What a kind reads makes one tensor of its input's shape: a list column, or one column of numbers
    for each feature.
    """

    covers_ids: ClassVar[bool] = False
    """Whether a baseline of the job says what stands for the absence of an id, too."""

    @property
    def reads_raw(self) -> bool:
        """Whether what is read is scaled like the data before use."""
        return False

    @property
    def draws_per_row(self) -> int:
        """Baselines of each row, over which its attributions are averaged."""
        return 1


class ZeroBaseline(BaselinePart):
    """All zeros, in the units that the model receives."""

    covers_ids: ClassVar[bool] = True

    kind: Literal["zero"] = "zero"


class ConstantBaseline(BaselinePart):
    """One value for all features, or one per feature (a flat list, or one per leading channel)."""

    kind: Literal["constant"] = "constant"
    value: Numbers = Field(
        description="One number, one per feature (flattened), or one per channel."
    )
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )


class ColumnBaseline(BaselinePart):
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

    @property
    def reads(self) -> tuple[Read, ...]:
        if self.column is not None:
            return (Read(self.column, "list"),)
        return tuple(Read(name, "number") for name in self.columns)

    @property
    def reads_raw(self) -> bool:
        return self.units == "raw"


class MeanBaseline(BaselinePart):
    """The mean of each feature over every clean row of the dataset, counted once before the run."""

    kind: Literal["mean"] = "mean"


Baseline = Annotated[
    ZeroBaseline | ConstantBaseline | ColumnBaseline | MeanBaseline, Field(discriminator="kind")
]
