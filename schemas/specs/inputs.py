"""The inputs of the model, by form."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from integrand.schemas.specs.baselines import (
    AverageBaseline,
    Baseline,
    BaselinePart,
    ColumnBaseline,
    ConstantBaseline,
    IdsBaseline,
    PadBaseline,
    TokenBaseline,
    ZeroBaseline,
)
from integrand.schemas.specs.images import PixelSteps
from integrand.schemas.specs.part import (
    Count,
    InputName,
    Numbers,
    Part,
    Read,
    branches_of,
    repeated,
)


class InputPart(Part):
    """Base of every kind of input: it reads at least one column, and its field `baseline` is None
    where the job's holds.
    """

    name: InputName = Field(
        description="Name of the model's input; inputs go to the model in this order."
    )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its attributions, as far as they are known without the data."""
        return (self.name,)

    @property
    def modules(self) -> tuple[str, ...]:
        """The model's modules at whose outputs it is attributed; none if at the input itself."""
        return ()


class ValidRange(Part):
    """The values that an input may take: [low, high]."""

    low: Numbers = Field(description="A number, or one per feature or channel.")
    high: Numbers = Field(description="A number, or one per feature or channel.")
    units: Literal["model", "raw"] = Field(
        "model", description="raw: scaled like the data before use."
    )


def _named_ends(value: Any) -> Any:
    """`[low, high]` as a part."""
    if not isinstance(value, tuple | list):
        return value
    if len(value) != 2:
        raise ValueError("a range is [low, high]")
    return {"low": value[0], "high": value[1]}


_Ends = BeforeValidator(
    _named_ends, json_schema_input_type=ValidRange | tuple[Numbers, Numbers] | None
)


class ScaledInput(InputPart):
    """Base of inputs of numbers: what is read becomes (value / divide − mean) / std."""

    divide: float = Field(
        1.0, description="The raw value is divided by this first (255 for bytes)."
    )
    mean: Numbers = Field(
        0.0, description="Then this is subtracted: a number, or one per feature or channel."
    )
    std: Numbers = Field(
        1.0,
        description="Then the result is divided by this: a number, or one per feature or channel.",
    )
    range: Annotated[ValidRange | None, _Ends] = Field(
        None,
        description=(
            "Valid values, [low, high] in model units or `{low, high, units: raw}`: for baselines,"
            " none of which may lie outside."
        ),
    )
    baseline: Baseline | None = Field(
        None, description="Overrides the job's baseline for this input."
    )

    @model_validator(mode="after")
    def _divisors(self) -> ScaledInput:
        stds = self.std if isinstance(self.std, tuple) else (self.std,)
        if self.divide == 0 or 0 in stds:
            raise ValueError("`divide` and `std` must not be 0")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults_of_later(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No `range` that is not given: digests of specs that were written without one stay."""
        written: dict[str, Any] = fields(self)
        return {k: v for k, v in written.items() if k != "range" or v is not None}


class ColumnsInput(ScaledInput):
    """Named feature columns, stacked in this order to `[rows, features]`."""

    columns: tuple[str, ...] = Field(min_length=1, description="Numeric columns, one feature each.")

    @model_validator(mode="after")
    def _distinct(self) -> ColumnsInput:
        twice = repeated(self.columns)
        if twice:
            raise ValueError(f"columns named twice: {', '.join(twice)}")
        return self

    @property
    def reads(self) -> tuple[Read, ...]:
        return tuple(Read(name, "number") for name in self.columns)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.columns


class TensorInput(ScaledInput):
    """One list, fixed-size-list or tensor column of numbers, reshaped to `[rows, *shape]`."""

    column: str = Field(description="List, fixed-size-list or tensor column.")
    shape: tuple[Count, ...] = Field((), description="Shape of one row; default: flat.")

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.column, "list", self.shape),)


class ImageInput(PixelSteps, ScaledInput):
    """Encoded pictures (PNG, JPEG, WebP), decoded in the worker to `[rows, channels, height,
    width]`.
    """

    image: str = Field(
        description=(
            "Column of bytes, of structs with a field `bytes` (as Hugging Face stores them), or of"
            " paths below `root`."
        )
    )
    root: str | None = Field(
        None, description="Folder that paths start from, which none may lead out of."
    )
    preprocess: str | None = Field(
        None,
        description=(
            "`imagenet`, or a file preprocessor_config.json (Hugging Face) or config.json (timm)"
            " that gives the steps; fields beside it win. The plan keeps the steps."
        ),
    )
    divide: float = Field(255.0, description="Pixels, 0 to 255, are divided by this first.")
    range: Annotated[ValidRange | None, _Ends] = Field(
        ValidRange(low=0, high=255, units="raw"),
        description=(
            "Valid values, [low, high] in model units or `{low, high, units: raw}`; by default all"
            " that a pixel may be, 0 to 255."
        ),
    )

    @model_validator(mode="after")
    def _of_one_shape(self) -> ImageInput:
        if self.preprocess is None and self.sides is None:
            raise ValueError(
                "pictures need one shape: give `preprocess`, `crop`, `resize: [height, width]` or"
                " `size`"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a row, once its steps are known."""
        height, width = self.sides or (0, 0)
        return self.channels, height, width

    @property
    def in_words(self) -> tuple[str, ...]:
        """Each step from bytes to what the model receives."""
        scaled = [f"divided by {self.divide:g}", f"minus {_listed(self.mean)}"]
        return (*super().in_words, *scaled, f"divided by {_listed(self.std)}")

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.image, "text"),)


def _listed(numbers: Numbers) -> str:
    every = numbers if isinstance(numbers, tuple) else (numbers,)
    return ", ".join(f"{number:.6g}" for number in every)


class EmbeddedInput(InputPart):
    """Base of inputs of ids, attributed at the output of the module that embeds them: one number
    per id.
    """

    embedding: str | tuple[str, ...] = Field(
        description=(
            "Dotted name of the module that embeds the ids; a list of columns may have one module"
            " for each."
        )
    )
    pad: int | None = Field(
        None,
        ge=0,
        description=(
            "Id that fills lists up to the next multiple of 8, so that rows of about one length go "
            "together; without it, rows of exactly one length do."
        ),
    )
    max_length: int = Field(
        512, ge=1, description="Longest list of varying length; rows beyond it are bad_input."
    )
    baseline: IdsBaseline | None = Field(
        None,
        description=(
            "zero: a zero vector for each id; all others are ids, whose embeddings stand for it."
        ),
    )

    @model_validator(mode="after")
    def _baseline_of_ids(self) -> EmbeddedInput:
        for one in self.baseline_parts:
            if isinstance(one, AverageBaseline):
                raise ValueError("an average for ids is of baselines that are ids themselves")
            if isinstance(one, ConstantBaseline) and one.id is None:
                raise ValueError(
                    "the baseline of ids is an id: one whole number from 0, in model units"
                )
        return self

    @property
    def baseline_parts(self) -> tuple[BaselinePart, ...]:
        """Its own baseline; of an average of ids its members."""
        if self.baseline is None:
            return ()
        if isinstance(self.baseline, AverageBaseline) and self.baseline.of_ids:
            return self.baseline.of
        return (self.baseline,)

    @property
    def baseline_id(self) -> int | None:
        """The one id whose embedding is the baseline; None where there is none."""
        given = self.baseline
        if isinstance(given, PadBaseline):
            return self.pad
        return given.id if isinstance(given, ConstantBaseline | TokenBaseline) else None

    @property
    def baseline_per_row(self) -> bool:
        """Whether its baseline is ids of each row, which go along with the row's own."""
        zero = self.baseline is None or isinstance(self.baseline, ZeroBaseline)
        return not zero and self.baseline_id is None

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns of ids, or of what they are made of."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, one, or one for each column."""
        return self.embedding if isinstance(self.embedding, tuple) else (self.embedding,)


class IdsInput(EmbeddedInput):
    """Category or token ids, attributed at the output of the module that embeds them: one number
    per id.
    """

    ids: str | tuple[str, ...] = Field(
        description=(
            "An integer column (`[rows]`), a column of lists (`[rows, length]`), or integer"
            " columns, stacked."
        )
    )

    @model_validator(mode="after")
    def _fitting(self) -> IdsInput:
        columns = self.columns
        twice = repeated(columns)
        if twice:
            raise ValueError(f"columns named twice: {', '.join(twice)}")
        if not columns:
            raise ValueError("`ids` names no column")
        if isinstance(self.embedding, tuple) and len(self.embedding) != len(columns):
            raise ValueError(
                f"{len(self.embedding)} modules for {len(columns)} columns: name one, or one for"
                " each"
            )
        if isinstance(self.ids, tuple) and self.pad is not None:
            raise ValueError("`pad` is for a column of lists")
        return self

    @model_validator(mode="after")
    def _known_ids(self) -> IdsInput:
        for one in self.baseline_parts:
            if isinstance(one, PadBaseline) and self.pad is None:
                raise ValueError("a `pad` baseline is the input's `pad`: give it")
            if isinstance(one, TokenBaseline):
                raise ValueError(
                    "a `token` baseline is for texts, whose tokenizer is known: give its id as a"
                    " `constant`"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return self.ids if isinstance(self.ids, tuple) else (self.ids,)

    @property
    def reads(self) -> tuple[Read, ...]:
        holds: Literal["integer", "list"] = "integer" if self.pad is None else "list"
        return tuple(Read(name, holds) for name in self.columns)

    @property
    def outputs(self) -> tuple[str, ...]:
        """None of one column: whether it holds single ids or lists is known with the data."""
        return self.ids if isinstance(self.ids, tuple) else ()


class TextInput(EmbeddedInput):
    """Strings, made token ids by a tokenizer and attributed at the output of the module that embeds
    them: one number per token.
    """

    text: str = Field(description="A column of strings.")
    tokenizer: str = Field(
        description="A tokenizer.json of Hugging Face's `tokenizers`, or the folder that holds it."
    )
    tokenizer_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description=(
            "Of that file: the run is pinned to it. Taken when the job is planned; if given, it"
            " must be that."
        ),
    )
    long: Literal["bad_input", "truncate"] = Field(
        "bad_input",
        description=(
            "What becomes of a text of more than `max_length` tokens. truncate: its end is left"
            " out, and `tokens_left_out` says how many."
        ),
    )
    special: Literal["keep", "drop"] = Field(
        "keep",
        description=(
            "keep: with the tokens that the tokenizer adds, such as `[CLS]`, which are marked in"
            " `token_special`; drop: without them."
        ),
    )

    @model_validator(mode="after")
    def _for_texts(self) -> TextInput:
        if isinstance(self.embedding, tuple):
            raise ValueError("a text has one embedding")
        if isinstance(self.baseline, ColumnBaseline):
            raise ValueError(
                "a text's baseline is no column: take zero, pad, token, shuffle, row or training"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.text, "text"),)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.name,)


_Forms = (
    Annotated[ColumnsInput, Tag("columns")]
    | Annotated[TensorInput, Tag("column")]
    | Annotated[IdsInput, Tag("ids")]
    | Annotated[ImageInput, Tag("image")]
    | Annotated[TextInput, Tag("text")]
)
"""Each form of input under the field that only it has."""

_FIELDS = tuple(branches_of(_Forms))


def _form_of(value: Any) -> str | None:
    fields = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    forms = (form for form in _FIELDS if form in fields)
    return next(forms, None)


Input = Annotated[
    _Forms,
    Discriminator(
        _form_of,
        custom_error_type="input_form",
        custom_error_message=(
            "an input needs `columns: [...]`, `column: ...`, `ids: ...`, `image: ...` or"
            " `text: ...`"
        ),
    ),
]


def ids_of(inputs: tuple[Input, ...]) -> tuple[EmbeddedInput, ...]:
    """Those of the inputs that are ids, or become some, in order."""
    return tuple(one for one in inputs if isinstance(one, EmbeddedInput))


def texts_of(inputs: tuple[Input, ...]) -> tuple[TextInput, ...]:
    """Those of the inputs that are texts, in order."""
    return tuple(one for one in inputs if isinstance(one, TextInput))
