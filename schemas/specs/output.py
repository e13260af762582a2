"""Where results go, and what is kept of them."""

from __future__ import annotations

from pydantic import Field

from integrand.schemas.specs.part import Part
from integrand.schemas.specs.reasons import Reasons


class Output(Part):
    """Where the run folder goes."""

    uri: str = Field(
        description=(
            "Root under which the run folder `<run_id>/` is made: local, s3://, gs:// or abfs://."
        )
    )
    reasons: Reasons | None = Field(
        None, description="Reason codes of each row, beside its attributions; null: none."
    )
