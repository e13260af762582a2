"""Where results go, and what is kept of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from integrand.schemas.specs.part import Count, Part
from integrand.schemas.specs.reasons import Reasons


class FullStore(Part):
    """Every number."""

    kind: Literal["full"] = "full"


class TopKStore(Part):
    """The k numbers of largest size of each input, and their places; of equal ones the first."""

    kind: Literal["top_k"] = "top_k"
    k: Count = Field(description="Numbers of each input; all where it has fewer.")


_STORES = Annotated[FullStore | TopKStore, Field(discriminator="kind")]


def _by_kind(value: Any) -> Any:
    """`full` as a part."""
    return {"kind": value} if isinstance(value, str) else value


Store = Annotated[_STORES, BeforeValidator(_by_kind)]


class Output(Part):
    """Where the run folder goes, and what is kept of attributions."""

    uri: str = Field(
        description=(
            "Root under which the run folder `<run_id>/` is made: local, s3://, gs:// or abfs://."
        )
    )
    reasons: Reasons | None = Field(
        None, description="Reason codes of each row, beside its attributions; null: none."
    )
    store: Store = Field(
        FullStore(),
        description=(
            "How much is kept of attributions: a part, or its kind alone. Sums, gaps and error"
            " estimates are of all of them."
        ),
    )
    dtype: Literal["float32", "float16"] | None = Field(
        None,
        description=(
            "Type of stored attributions; default: that of the computation. What rounding to it"
            " moves in a row is measured, and part of `error_estimate`."
        ),
    )
