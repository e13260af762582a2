"""Which output is explained, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from integrand.schemas.specs.part import _MOST, Part


class _Transformed(Part):
    transform: Literal["none", "softmax", "log_softmax", "sigmoid"] = Field(
        "none", description="Applied to the model's output before the target is taken."
    )


class ScalarTarget(_Transformed):
    """The model's one output per row: `[rows]` or `[rows, 1]`."""

    kind: Literal["scalar"] = "scalar"
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="Applied to the output first."
    )


class IndexTarget(_Transformed):
    """One output for all rows; a list indexes an output of more than two dimensions."""

    kind: Literal["index"] = "index"
    index: (
        Annotated[int, Field(ge=0, le=_MOST)] | tuple[Annotated[int, Field(ge=0, le=_MOST)], ...]
    ) = Field(description="Output index, from 0; a list for tensor outputs.")


class ColumnTarget(_Transformed):
    """An output index per row, from an integer column."""

    kind: Literal["column"] = "column"
    column: str = Field(description="Integer column that holds each row's output index.")


class ArgmaxTarget(_Transformed):
    """Each row's largest output."""

    kind: Literal["argmax"] = "argmax"


class TopKTarget(_Transformed):
    """Each row's k largest outputs, the largest first: k output rows for each row."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(ge=1, le=_MOST, description="How many outputs of each row are explained.")


class AllTargets(_Transformed):
    """Every output: one output row per (row, target)."""

    kind: Literal["all"] = "all"


Target = Annotated[
    ScalarTarget | IndexTarget | ColumnTarget | ArgmaxTarget | TopKTarget | AllTargets,
    Field(discriminator="kind"),
]
