"""Where the rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from integrand.schemas.specs.part import Part

FormatName = Literal["parquet", "csv", "json_lines"]


class Source(Part):
    """Where the rows are: files, folders or globs of Parquet, CSV or JSON lines."""

    uri: str | tuple[str, ...] = Field(
        description="A file, folder or glob, or a list of them; local or s3://."
    )
    row_id: str | None = Field(
        None,
        description=(
            "Column that names each row once, nulls and NaN refused; without it `<relative"
            " path>#<row>`."
        ),
    )
    format: Literal["auto", FormatName] = Field(
        "auto",
        description="File format; auto goes by the extension (.parquet .pq .csv .jsonl .ndjson).",
    )

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri
