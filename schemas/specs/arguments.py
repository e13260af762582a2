"""What is passed to the model after its inputs and not attributed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from integrand.schemas.specs.part import Count, InputName, Part, Read


class ForwardArg(Part):
    """What is passed to the model after the inputs and not attributed: masks, lengths,
    categories.
    """

    name: InputName = Field(description="Name used in messages.")
    columns: tuple[str, ...] = Field(
        (), description="Numeric columns, stacked to `[rows, columns]`."
    )
    column: str | None = Field(
        None, description="One scalar (`[rows]`) or list column (`[rows, *shape]`)."
    )
    mask_of: str | None = Field(
        None,
        description=(
            "An input of ids: 1 where its row has an id and 0 in padding, in the shape of the ids."
        ),
    )
    types_of: str | None = Field(
        None,
        description="An input of texts: the type ids that its tokenizer gives, 0 in padding.",
    )
    along: str | None = Field(
        None,
        description=(
            "An input of ids whose lists vary in length: those of `column` are as long as the row's"
            " ids and filled up like them. May be left out where there is one such input."
        ),
    )
    fill: float = Field(0.0, description="What fills such lists up.")
    shape: tuple[Count, ...] = Field((), description="Shape of one row of a list column.")
    dtype: Literal["float32", "float64", "int64", "bool"] = Field(
        "float32", description="Tensor dtype."
    )

    @model_validator(mode="after")
    def _one_form(self) -> ForwardArg:
        forms = (self.column, self.columns or None, self.mask_of, self.types_of)
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give one of `column`, `columns`, `mask_of` and `types_of`")
        if self.made_of is not None and self.shape:
            raise ValueError("a mask has the shape of its ids: leave out `shape`")
        if self.along is not None and (self.column is None or self.shape):
            raise ValueError("`along` is for a `column` of lists without a `shape`")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults_of_later(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No field of later versions that is not given: digests of older specs stay."""
        written: dict[str, Any] = fields(self)
        later = {"types_of": None, "along": None, "fill": 0.0}
        return {k: v for k, v in written.items() if k not in later or v != later[k]}

    @property
    def made_of(self) -> str | None:
        """The input whose ids it is made of; None of one that columns hold."""
        return self.mask_of or self.types_of

    @property
    def reads(self) -> tuple[Read, ...]:
        """Nothing for what is made of ids."""
        holds: Literal["number", "integer", "list"] = "number"
        if self.shape or self.along:
            holds = "list"
        elif self.dtype == "int64":
            holds = "integer"
        names = self.columns if self.column is None else (self.column,)
        return tuple(Read(name, holds, self.shape) for name in names)
