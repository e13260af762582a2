"""Where results go, and what is kept of them: all features, sums of groups, the largest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from integrand.schemas.specs.part import Count, Part, Read, branches_of, repeated
from integrand.schemas.specs.reasons import Reasons


class FeatureGroup(Part):
    """Named features as one: a one-hot set, columns of one theme."""

    features: tuple[str, ...] = Field(
        min_length=1, description="Feature columns, of one input or of several."
    )

    @model_validator(mode="after")
    def _distinct(self) -> FeatureGroup:
        twice = repeated(self.features)
        if twice:
            raise ValueError(f"features named twice: {', '.join(twice)}")
        return self


class PatchGroups(Part):
    """Squares of a tensor input as one feature each, all their channels together."""

    patches: Count = Field(
        description=(
            "Side of a square, along every axis but the leading one of three or more; those at the"
            " far edges may be smaller."
        )
    )


class ChannelGroups(Part):
    """The channels of each place of a tensor input as one feature."""

    channels: Literal["sum"] = Field(description="sum: over the leading axis.")


class MapGroups(Part):
    """Groups that each row brings a map of: superpixels, words."""

    column: str = Field(
        description=(
            "Group numbers, from 0: of a tensor input in the shape of its axes without the leading"
            " one of three or more; of ids one for each id."
        )
    )
    count: Count | None = Field(
        None,
        description=(
            "Groups of every row; may be left out for ids, whose rows then have as many as their"
            " largest number says."
        ),
    )

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.column, "list"),)


class WordGroups(Part):
    """The pieces of each word of a text as one feature; a special token is a word of its own."""

    words: Literal[True] = Field(description="true: by the words that the tokenizer cuts.")


_GROUPS = (
    Annotated[FeatureGroup, Tag("features")]
    | Annotated[PatchGroups, Tag("patches")]
    | Annotated[ChannelGroups, Tag("channels")]
    | Annotated[MapGroups, Tag("column")]
    | Annotated[WordGroups, Tag("words")]
)
"""Each form of groups under the field that only it has."""
_FIELDS = tuple(branches_of(_GROUPS))
InputGroups = PatchGroups | ChannelGroups | MapGroups | WordGroups
"""Groups of the elements of one input."""


def _form_of(value: Any) -> str | None:
    fields = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((form for form in _FIELDS if form in fields), None)


def _spelled_out(value: Any) -> Any:
    """A list as the features of a group."""
    return {"features": value} if isinstance(value, list | tuple) else value


Groups = Annotated[
    _GROUPS,
    Discriminator(
        _form_of,
        custom_error_type="group_form",
        custom_error_message=(
            "a group needs `features: [...]`; an input `patches: n`, `channels: sum`,"
            " `column: ...` or `words: true`"
        ),
    ),
    BeforeValidator(_spelled_out),
]


class FullStore(Part):
    """Every number."""

    kind: Literal["full"] = "full"


class ChannelSumStore(Part):
    """The sum over the channels of each place of every tensor input that has channels: what
    `groups` does with `channels: sum`.
    """

    kind: Literal["channel_sum"] = "channel_sum"


class PooledStore(Part):
    """The sum over each square of every tensor input: what `groups` does with `patches`."""

    kind: Literal["pooled"] = "pooled"
    patch: Count = Field(description="Side of a square.")


class TopKStore(Part):
    """The k numbers of largest size of each input, and their places; of equal ones the first."""

    kind: Literal["top_k"] = "top_k"
    k: Count = Field(description="Numbers of each input; all where it has fewer.")


_STORES = Annotated[
    FullStore | ChannelSumStore | PooledStore | TopKStore, Field(discriminator="kind")
]


def _by_kind(value: Any) -> Any:
    """`channel_sum` as a part."""
    return {"kind": value} if isinstance(value, str) else value


Store = Annotated[_STORES, BeforeValidator(_by_kind)]


class Output(Part):
    """Where the run folder goes, and what of the attributions is stored there."""

    uri: str = Field(
        description=(
            "Root under which the run folder `<run_id>/` is made: local, s3://, gs:// or abfs://."
        )
    )
    reasons: Reasons | None = Field(
        None, description="Reason codes of each row, beside its attributions; null: none."
    )
    groups: dict[str, Groups] = Field(
        {},
        description=(
            "Features that are reported as one, as their sum: by a group's name a list of feature"
            " columns, or by an input's name how its elements are grouped. A feature in no group"
            " stays itself. Errors are then relative to the sums."
        ),
    )
    with_features: bool = Field(
        False,
        description=(
            "Groups beside their features, as `group.<name>`; else in their place, as"
            " `attr.<name>`."
        ),
    )
    mean_gradients: bool = Field(
        False,
        description=(
            "Columns `mean_gradient.<feature>`: ∫ ∂f/∂x_i dα on the path, which x_i − x'_i is"
            " multiplied by."
        ),
    )
    spread: bool = Field(
        False,
        description=(
            "Columns `spread.<feature>` where rows have several baselines: the standard deviation"
            " of an attribution over them."
        ),
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

    @property
    def feature_groups(self) -> dict[str, FeatureGroup]:
        """Groups of named features, by their own names."""
        return {name: g for name, g in self.groups.items() if isinstance(g, FeatureGroup)}

    @property
    def input_groups(self) -> dict[str, InputGroups]:
        """Groups of the elements of an input, by its name."""
        return {name: g for name, g in self.groups.items() if not isinstance(g, FeatureGroup)}

    @property
    def grouped(self) -> bool:
        """Whether sums of elements are reported."""
        return bool(self.groups) or isinstance(self.store, ChannelSumStore | PooledStore)

    @property
    def reads(self) -> tuple[Read, ...]:
        return tuple(read for group in self.groups.values() for read in group.reads)

    @model_validator(mode="after")
    def _grouped_once(self) -> Output:
        features = [name for g in self.feature_groups.values() for name in g.features]
        twice = repeated(features)
        if twice:
            raise ValueError(f"features in several groups: {', '.join(twice)}")
        if isinstance(self.store, ChannelSumStore | PooledStore) and self.with_features:
            raise ValueError(f"store {self.store.kind} keeps no features: leave out with_features")
        if self.with_features and not self.groups:
            raise ValueError("with_features asks for groups: name them in `groups`")
        if self.reasons and self.grouped and not self.with_features:
            raise ValueError("reasons are read off features: set with_features: true")
        return self
