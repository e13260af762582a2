"""Which output is explained, by kind."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from integrand.schemas.specs.arguments import (
    ForwardArg,
)
from integrand.schemas.specs.part import _MOST, Count, Part, Read

Place = tuple[int, ...]
"""One output of a row, an index for each dimension of the model's output after its rows."""
Whole = Annotated[int, Field(ge=0, le=_MOST)]


class TargetPart(Part):
    """What every kind of target is made of. A kind whose outputs are the same for every row says
    which in `places`; one that explains several of each row says how many in `per_row`; one whose
    rows name theirs reads the columns of their indices.
    """

    transform: Literal["none", "softmax", "log_softmax", "sigmoid"] = Field(
        "none", description="Applied to the model's output before the target is taken."
    )

    @property
    def transform_of_output(self) -> str:
        """The transform of the whole output, over its last axis; `none` where what `targets.table`
        puts behind the model has it already.
        """
        return self.transform

    @property
    def depth(self) -> int:
        """Indices of a place that rows or the model choose."""
        return 1

    def weights(self, dtype: Literal["float32", "float64"]) -> ForwardArg | None:
        """What each row says of its outputs in numbers, passed behind the forward arguments."""
        return None

    @property
    def needs_one_shape(self) -> bool:
        """Whether the outputs of all rows must be of one shape."""
        return False

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


class TensorTarget(TargetPart):
    """A target of outputs with any number of axes after their rows."""

    axis: Whole | None = Field(
        None,
        description=(
            "The axis of the output, from 0 after its rows, that a softmax runs over. Left out, the"
            " last; `region` has to say it."
        ),
    )

    @model_validator(mode="after")
    def _axis_of_a_softmax(self) -> Self:
        if self.axis is not None and not self.over_axis:
            raise ValueError("`axis` is that of transform softmax or log_softmax")
        return self

    @property
    def over_axis(self) -> bool:
        """Whether the transform mixes the outputs of an axis."""
        return self.transform in ("softmax", "log_softmax")

    @property
    def transform_of_output(self) -> str:
        return self.transform if self.axis is None else "none"


class IndexTarget(TensorTarget):
    """One output for all rows; a list indexes an output of more than two dimensions."""

    kind: Literal["index"] = "index"
    index: Whole | tuple[Whole, ...] = Field(
        description="Output index, from 0; a list for tensor outputs."
    )

    @model_validator(mode="after")
    def _names_an_output(self) -> IndexTarget:
        if self.index == ():
            raise ValueError("`index` names no output: give at least one, or use `scalar`")
        return self

    def places(self, outputs: int | None) -> tuple[Place, ...]:
        place = self.index if isinstance(self.index, tuple) else (self.index,)
        return (place,)


class ColumnTarget(TensorTarget):
    """An output index per row, from an integer column, or from one for each axis of the output."""

    kind: Literal["column"] = "column"
    column: str | None = Field(
        None, description="Integer column that holds each row's output index."
    )
    columns: tuple[str, ...] = Field(
        (), description="Integer columns that hold each row's place in a tensor output."
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.columns) == (self.column is not None):
            raise ValueError("give `column`, or `columns`, one for each axis of the output")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, one for each axis of the output after its rows."""
        return self.columns if self.column is None else (self.column,)

    @property
    def depth(self) -> int:
        return len(self.names)

    @property
    def reads(self) -> tuple[Read, ...]:
        return tuple(Read(name, "integer") for name in self.names)


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


class RegionTarget(TensorTarget):
    """The sum or the mean of outputs, one number of a row: those of a slice that is the same in
    every row, or those of each row's own mask.
    """

    kind: Literal["region"] = "region"
    index: Whole | tuple[Whole, ...] = Field(
        (), description="Index of the first axes of the output after its rows, such as a class."
    )
    ranges: tuple[tuple[Whole, Whole], ...] = Field(
        (), description="[first, last) of each of the remaining axes."
    )
    mask: str | None = Field(
        None,
        description=(
            "List column in the shape of the remaining axes: weights of outputs from 0, or 0 and 1;"
            " a row without one above 0 is `bad_input`."
        ),
    )
    shape: tuple[Count, ...] = Field((), description="Shape of the mask, where its lists vary.")
    reduce: Literal["sum", "mean"] = Field(
        "sum", description="The (weighted) sum, or the (weighted) mean."
    )

    @model_validator(mode="after")
    def _one_region(self) -> RegionTarget:
        if bool(self.ranges) == (self.mask is not None):
            raise ValueError("give `ranges`, one for each axis behind `index`, or `mask`")
        if self.shape and self.mask is None:
            raise ValueError("`shape` is that of a mask")
        empty = next((one for one in self.ranges if one[0] >= one[1]), None)
        if empty is not None:
            raise ValueError(f"ranges are [first, last) with first below last, not {list(empty)}")
        if self.over_axis and self.axis is None:
            raise ValueError(f"say with `axis` over which axis {self.transform} runs, from 0")
        return self

    @property
    def leading(self) -> Place:
        """The index, one number for each of the first axes."""
        return self.index if isinstance(self.index, tuple) else (self.index,)

    @property
    def transform_of_output(self) -> str:
        return "none"

    @property
    def needs_one_shape(self) -> bool:
        return True

    def weights(self, dtype: Literal["float32", "float64"]) -> ForwardArg | None:
        if self.mask is None:
            return None
        return ForwardArg(name="mask", column=self.mask, shape=self.shape, dtype=dtype)

    def places(self, outputs: int | None) -> tuple[Place, ...]:
        return ((),)


Target = Annotated[
    ScalarTarget
    | IndexTarget
    | ColumnTarget
    | RegionTarget
    | ArgmaxTarget
    | TopKTarget
    | AllTargets,
    Field(discriminator="kind"),
]
