"""Which output is explained, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import _MOST, Part, Read

Place = tuple[int, ...]
"""One output of a row, an index for each dimension of the model's output after its rows."""


class TargetPart(Part):
    """What every kind of target is made of. A kind whose outputs are the same for every row says
    which in `places`; one that explains several of each row says how many in `per_row`; one whose
    rows name theirs reads one column, of indices.
    """

    transform: Literal["none", "softmax", "log_softmax", "sigmoid"] = Field(
        "none", description="Applied to the model's output before the target is taken."
    )

    def places(self, outputs: int | None) -> tuple[Place, ...] | None:
        """The outputs that are explained in every row, of a model with so many; None where the row
        or the model chooses them.
        """
        return None

    def per_row(self, outputs: int | None) -> int:
        """How many outputs of each row are explained, of a model with so many."""
        same = self.places(outputs)
        return 1 if same is None else len(same)


class ScalarTarget(TargetPart):
    """The model's one output per row: `[rows]` or `[rows, 1]`."""

    kind: Literal["scalar"] = "scalar"
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="Applied to the output first."
    )

    def places(self, outputs: int | None) -> tuple[Place, ...]:
        return ((),)


class IndexTarget(TargetPart):
    """One output for all rows; a list indexes an output of more than two dimensions."""

    kind: Literal["index"] = "index"
    index: (
        Annotated[int, Field(ge=0, le=_MOST)] | tuple[Annotated[int, Field(ge=0, le=_MOST)], ...]
    ) = Field(description="Output index, from 0; a list for tensor outputs.")

    @model_validator(mode="after")
    def _names_an_output(self) -> IndexTarget:
        if self.index == ():
            raise ValueError("`index` names no output: give at least one, or use `scalar`")
        return self

    def places(self, outputs: int | None) -> tuple[Place, ...]:
        place = self.index if isinstance(self.index, tuple) else (self.index,)
        return (place,)


class ColumnTarget(TargetPart):
    """An output index per row, from an integer column."""

    kind: Literal["column"] = "column"
    column: str = Field(description="Integer column that holds each row's output index.")

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.column, "integer"),)


class ArgmaxTarget(TargetPart):
    """Each row's largest output."""

    kind: Literal["argmax"] = "argmax"


class TopKTarget(TargetPart):
    """Each row's k largest outputs, the largest first: k output rows for each row."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(ge=1, le=_MOST, description="How many outputs of each row are explained.")

    def per_row(self, outputs: int | None) -> int:
        return self.k


class AllTargets(TargetPart):
    """Every output: one output row per (row, target)."""

    kind: Literal["all"] = "all"

    def places(self, outputs: int | None) -> tuple[Place, ...]:
        count = self.per_row(outputs)
        return tuple((index,) for index in range(count))

    def per_row(self, outputs: int | None) -> int:
        return outputs or 1


Target = Annotated[
    ScalarTarget | IndexTarget | ColumnTarget | ArgmaxTarget | TopKTarget | AllTargets,
    Field(discriminator="kind"),
]
