"""The input that stands for absence, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from integrand.schemas.specs.part import Numbers, Part, Read


class BaselinePart(Part):
    """Base of every kind of baseline.

    What a kind reads makes one tensor of its input's shape: a list column, or one column of numbers
    for each feature.
    """

    @property
    def covers_ids(self) -> bool:
        """Whether a baseline of the job says what stands for the absence of an id, too."""
        return False

    @property
    def reads_raw(self) -> bool:
        """Whether what is read is scaled like the data before use."""
        return False

    @property
    def draws_per_row(self) -> int:
        """Baselines of each row, over which its attributions are averaged."""
        return 1

    @property
    def by_key(self) -> bool:
        """Whether each row draws its own, by its id."""
        return False

    @property
    def uris(self) -> tuple[str, ...]:
        """Where the dataset is that it names; none if that is the job's source."""
        return ()

    def moved(self, absolute: Callable[[str], str]) -> Self:
        """The same part with every URI as workers will see it."""
        return self


class ZeroBaseline(BaselinePart):
    """All zeros, in the units that the model receives; of ids, zero vectors in place of their
    embeddings.
    """

    kind: Literal["zero"] = "zero"

    @property
    def covers_ids(self) -> bool:
        return True


class ConstantBaseline(BaselinePart):
    """One value for all features, or one per feature (a flat list, or one per leading channel); of
    ids the id `value` in every place, such as a mask token.
    """

    kind: Literal["constant"] = "constant"
    value: Numbers = Field(
        description="One number, one per feature (flattened), or one per channel."
    )
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )

    @property
    def id(self) -> int | None:
        """The value as an id; None where it is none."""
        value = self.value
        if self.units == "raw" or isinstance(value, tuple) or value < 0 or not value.is_integer():
            return None
        return int(value)


class PadBaseline(BaselinePart):
    """The id of the input's `pad` in every place: a text of nothing. Of ids alone."""

    kind: Literal["pad"] = "pad"


class TokenBaseline(BaselinePart):
    """One token of the tokenizer in every place, such as `[MASK]`. Of texts alone."""

    kind: Literal["token"] = "token"
    token: str = Field(description="The token as the tokenizer's vocabulary has it.")
    id: int | None = Field(
        None, ge=0, description="Its id, which is looked up when the job is planned."
    )


class ColumnBaseline(BaselinePart):
    """A baseline of its own for each row, held by columns of the source; of ids in a list as many
    as the row has.
    """

    kind: Literal["column"] = "column"
    column: str | None = Field(
        None, description="List or tensor column, for an input made of one column."
    )
    columns: tuple[str, ...] = Field(
        (), description="One column per feature, for an input made of columns."
    )
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )

    @model_validator(mode="after")
    def _one_form(self) -> ColumnBaseline:
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`")
        return self

    @property
    def reads(self) -> tuple[Read, ...]:
        if self.column is not None:
            return (Read(self.column, "list"),)
        return tuple(Read(name, "number") for name in self.columns)

    @property
    def reads_raw(self) -> bool:
        return self.units == "raw"


class MeanBaseline(BaselinePart):
    """The mean of each feature over every clean row of the dataset, counted once before the run."""

    kind: Literal["mean"] = "mean"


class MedianBaseline(BaselinePart):
    """The median of each feature over every clean row of the dataset, found once before the run
    and exact: of an even number of rows halfway between the middle two.
    """

    kind: Literal["median"] = "median"


class NamedDataset(BaselinePart):
    """Base of the kinds that take rows of a dataset: of the source, unless they name another one
    whose columns have the names that the inputs read.
    """

    uri: str | tuple[str, ...] | None = Field(
        None, description="Another dataset: a file, folder or glob. Default: the source."
    )

    @property
    def covers_ids(self) -> bool:
        return True

    @property
    def uris(self) -> tuple[str, ...]:
        if self.uri is None:
            return ()
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    def moved(self, absolute: Callable[[str], str]) -> Self:
        if self.uri is None:
            return self
        return self.model_copy(update={"uri": tuple(absolute(uri) for uri in self.uris)})


class RowBaseline(NamedDataset):
    """One row of a dataset, the same for all rows; found once before the run. A list of its ids is
    cut to the length of a row's own, or filled up with the input's `pad`.
    """

    kind: Literal["row"] = "row"
    where: str | None = Field(
        None, description="A DuckDB expression that is true of that row alone, such as `id = 7`."
    )
    row: str | int | None = Field(
        None, description="Or its id: of the `source.row_id` column, else `<relative path>#<row>`."
    )

    @model_validator(mode="after")
    def _one_name(self) -> RowBaseline:
        if (self.where is None) == (self.row is None):
            raise ValueError("give either `where` or `row`")
        return self


class MaxDistanceBaseline(BaselinePart):
    """For each element the end of the input's `range` that is farther from it: the valid input at
    the largest L1 distance.
    """

    kind: Literal["max_distance"] = "max_distance"


class BlurBaseline(BaselinePart):
    """The row itself under a Gaussian blur over its last two axes, mirrored at the borders."""

    kind: Literal["blur"] = "blur"
    sigma: float = Field(gt=0, description="Standard deviation of the blur, in pixels.")


class DrawnBaseline(BaselinePart):
    """Base of the kinds that draw, by seed, row id and draw: the same whatever the shards."""

    draws: int = Field(
        16, ge=1, description="Baselines of each row, over which its attributions are averaged."
    )
    seed: int = Field(
        0, ge=0, description="Of the draws, which depend on it and the row's id alone."
    )

    @property
    def draws_per_row(self) -> int:
        return self.draws


class UniformBaseline(DrawnBaseline):
    """Noise that is uniform over the input's `range`, independent for each element."""

    kind: Literal["uniform"] = "uniform"
    shared: bool = Field(False, description="One set of draws for all rows.")

    @property
    def by_key(self) -> bool:
        return not self.shared


class ShuffleBaseline(DrawnBaseline):
    """The row itself in another order: the ids of a list, or the letters of a one-hot sequence. One
    too short to be shuffled equals itself, and earns nothing.
    """

    kind: Literal["shuffle"] = "shuffle"
    preserve: Literal["nothing", "dinucleotide"] = Field(
        "nothing",
        description=(
            "nothing: every order alike; dinucleotide: every order alike of those that keep the"
            " first and the last letter, and how often each one follows each other."
        ),
    )
    channels: Literal["first", "last"] = Field(
        "first",
        description="Which axis of a one-hot sequence tells its letters.",
    )

    @property
    def covers_ids(self) -> bool:
        return True

    @property
    def by_key(self) -> bool:
        return True


class GaussianBaseline(DrawnBaseline):
    """The row itself under Gaussian noise."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(gt=0, description="Standard deviation of the noise.")
    units: Literal["model", "raw"] = Field(
        "model", description="Of sigma; raw: divided by what divides the data."
    )
    clip: bool = Field(True, description="Clipped to the input's `range`, which it needs then.")

    @property
    def by_key(self) -> bool:
        return True


class TrainingBaseline(DrawnBaseline, NamedDataset):
    """Rows drawn from a dataset without replacement, the same for all rows and inputs; drawn once
    before the run. Rows with a bad input are never drawn. Lists of ids are cut to the length of a
    row's own, or filled up with the input's `pad`.
    """

    kind: Literal["training"] = "training"
    where: str | None = Field(
        None, description="A DuckDB expression: only rows for which it is true are drawn."
    )


_Member = Annotated[
    ZeroBaseline
    | ConstantBaseline
    | PadBaseline
    | TokenBaseline
    | MeanBaseline
    | MedianBaseline
    | RowBaseline
    | MaxDistanceBaseline
    | BlurBaseline
    | UniformBaseline
    | GaussianBaseline
    | ShuffleBaseline
    | TrainingBaseline,
    Field(discriminator="kind"),
]


_ID_MEMBERS = (
    ConstantBaseline,
    PadBaseline,
    TokenBaseline,
    RowBaseline,
    ShuffleBaseline,
    TrainingBaseline,
)


class AverageBaseline(BaselinePart):
    """Several kinds at once: attributions are averaged over all their draws, each of which counts
    the same.
    """

    kind: Literal["average"] = "average"
    of: tuple[_Member, ...] = Field(min_length=1, description="The kinds.")

    @property
    def covers_ids(self) -> bool:
        return self.of_ids and all(member.covers_ids for member in self.of)

    @property
    def of_ids(self) -> bool:
        """Whether every member stands for ids by ids, which a zero vector is not."""
        return all(isinstance(member, _ID_MEMBERS) for member in self.of)

    @property
    def draws_per_row(self) -> int:
        return sum(member.draws_per_row for member in self.of)

    @property
    def by_key(self) -> bool:
        return any(member.by_key for member in self.of)

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(uri for member in self.of for uri in member.uris)

    def moved(self, absolute: Callable[[str], str]) -> Self:
        return self.model_copy(update={"of": tuple(m.moved(absolute) for m in self.of)})


Baseline = Annotated[
    ZeroBaseline
    | ConstantBaseline
    | ColumnBaseline
    | MeanBaseline
    | MedianBaseline
    | RowBaseline
    | MaxDistanceBaseline
    | BlurBaseline
    | UniformBaseline
    | GaussianBaseline
    | TrainingBaseline
    | ShuffleBaseline
    | AverageBaseline,
    Field(discriminator="kind"),
]

IdsBaseline = Annotated[
    ZeroBaseline
    | ConstantBaseline
    | PadBaseline
    | TokenBaseline
    | ColumnBaseline
    | RowBaseline
    | ShuffleBaseline
    | TrainingBaseline
    | AverageBaseline,
    Field(discriminator="kind"),
]
"""Those of inputs of ids."""
