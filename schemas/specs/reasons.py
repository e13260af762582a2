"""Which features are given as the reasons of a row, and under which codes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Count, Part, repeated


class Reasons(Part):
    """The features that pushed a row's output most one way, as codes, and whether they are certain
    given the row's error estimate.
    """

    k: Count = Field(4, description="Most reasons of a row.")
    toward: Literal["lower", "higher"] = Field(
        description="Which way reasons pushed the output: `lower` for a score that should be high."
    )
    when: str | None = Field(
        None,
        description=(
            "Which rows get reasons: a DuckDB boolean expression over the output columns, such as"
            " `f_input < 0.35`; null: all rows with attributions."
        ),
    )
    codes: str | None = Field(
        None,
        description=(
            "CSV file with the columns `feature_or_group,code,text`. Contributions of one code are"
            " added first; a group of `output.groups` stands for its features. Null: every feature"
            " is a code of its own, without a text."
        ),
    )
    exclude: tuple[str, ...] = Field(
        (), description="Features or groups that are never given as a reason; they need no code."
    )
    prohibited: tuple[str, ...] = Field(
        (),
        description=(
            "Features that must not be among the reasons: where one is, `reasons_status` is"
            " `prohibited`, and a run with more such rows than `limits.max_prohibited` ends with"
            " exit code 3."
        ),
    )

    @model_validator(mode="after")
    def _disjoint(self) -> Reasons:
        for name in ("exclude", "prohibited"):
            twice = repeated(getattr(self, name))
            if twice:
                raise ValueError(f"`{name}` names a feature twice: {', '.join(twice)}")
        both = sorted(set(self.exclude) & set(self.prohibited))
        if both:
            raise ValueError(
                f"excluded and prohibited at once: {', '.join(both)}; what is excluded is never"
                " found among the reasons"
            )
        return self
