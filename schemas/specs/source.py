"""Where the rows are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Part

FormatName = Literal["parquet", "csv", "json_lines", "images"]


class Source(Part):
    """Where the rows are: files, folders or globs of Parquet, CSV or JSON lines."""

    uri: str | tuple[str, ...] = Field(
        description="A file, folder or glob, or a list of them; local or s3://."
    )
    row_id: str | None = Field(
        None,
        description=(
            "Column that names each row once, nulls and NaN refused; without it `<relative"
            " path>#<row>`, of pictures their path."
        ),
    )
    labels: str | None = Field(
        None,
        description=(
            "Of pictures: a CSV file with the columns path and label; without it the first folder"
            " of a picture's path is its label."
        ),
    )
    format: Literal["auto", FormatName] = Field(
        "auto",
        description=(
            "File format; auto goes by the extension (.parquet .pq .csv .jsonl .ndjson). images: a"
            " row for each picture, with the columns path, image, label and class."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _named_by_path(cls, given: Any) -> Any:
        """Pictures are named by their paths."""
        if isinstance(given, dict) and given.get("format") == "images":
            return {"row_id": "path"} | given
        return given

    @model_validator(mode="after")
    def _of_pictures(self) -> Source:
        if self.labels is not None and self.format != "images":
            raise ValueError("`labels` are for pictures: set `format: images`")
        return self

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri
