"""What the user asks for: JobSpec and its parts, frozen, with every unknown field refused.

Unions are told apart by `kind`; `inputs` by whether `columns`, `column` or `ids` is given. `published_schema()` is
the JSON Schema that `integrand schema` prints.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from integrand.schemas.errors import SpecError

Rule = Literal["left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
InputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Numbers = float | tuple[float, ...]
_MOST = 2**31 - 1
"""Torch and Arrow count in 32 bits here and there; `target` is an int32 column."""

Count = Annotated[int, Field(ge=1, le=_MOST)]


class Part(BaseModel):
    """Base of every piece of a spec: frozen, no unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


# --- source ------------------------------------------------------------------------------------------------


class Source(Part):
    """Where the rows are: files, folders or globs of Parquet, CSV or JSON lines."""

    uri: str | tuple[str, ...] = Field(description="A file, folder or glob, or a list of them; local or s3://.")
    row_id: str | None = Field(
        None, description="Column that names each row once, nulls and NaN refused; without it `<relative path>#<row>`."
    )
    format: Literal["auto", "parquet", "csv", "json_lines"] = Field(
        "auto", description="File format; auto goes by the extension (.parquet .pq .csv .jsonl .ndjson)."
    )

    @property
    def uris(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri


# --- model -------------------------------------------------------------------------------------------------


class FactoryModel(Part):
    """A function that builds the module, and plain weights for it. The function is code: it must be trusted."""

    kind: Literal["factory"] = "factory"
    entrypoint: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`package.module:callable` that returns a torch Module."
    )
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Keyword arguments of the callable."
    )
    weights: str | None = Field(None, description="A .safetensors file or a weights-only state dict (.pt, .pth).")
    code: tuple[str, ...] = Field(
        (), description="Wheels, folders or .py files that hold the entrypoint; shipped to the workers."
    )


class ExportedModel(Part):
    """A torch.export program (.pt2). It is code: it must be trusted."""

    kind: Literal["torch_export"] = "torch_export"
    uri: str = Field(description="The .pt2 file, exported with a dynamic first dimension.")


class ScriptedModel(Part):
    """A TorchScript program. It is code: it must be trusted."""

    kind: Literal["torchscript"] = "torchscript"
    uri: str = Field(description="The TorchScript file.")


Model = Annotated[FactoryModel | ExportedModel | ScriptedModel, Field(discriminator="kind")]


# --- baselines ---------------------------------------------------------------------------------------------


class ZeroBaseline(Part):
    """All zeros, in the units that the model receives."""

    kind: Literal["zero"] = "zero"


class ConstantBaseline(Part):
    """One value for all features, or one per feature (a flat list, or one per leading channel)."""

    kind: Literal["constant"] = "constant"
    value: Numbers = Field(description="One number, one per feature (flattened), or one per channel.")
    units: Literal["model", "raw"] = Field("model", description="raw: scaled like the data before use.")


class ColumnBaseline(Part):
    """A baseline of its own for each row, held by columns of the source."""

    kind: Literal["column"] = "column"
    column: str | None = Field(None, description="List or tensor column, for an input made of one column.")
    columns: tuple[str, ...] = Field((), description="One column per feature, for an input made of columns.")
    units: Literal["model", "raw"] = Field("model", description="raw: scaled like the data before use.")

    @model_validator(mode="after")
    def _one_form(self) -> ColumnBaseline:
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`")
        return self


class MeanBaseline(Part):
    """The mean of each feature over every clean row of the dataset, counted once before the run."""

    kind: Literal["mean"] = "mean"


Baseline = Annotated[ZeroBaseline | ConstantBaseline | ColumnBaseline | MeanBaseline, Field(discriminator="kind")]


# --- inputs ------------------------------------------------------------------------------------------------


class _Scaled(Part):
    name: InputName = Field(description="Name of the model's input; inputs go to the model in this order.")
    divide: float = Field(1.0, description="The raw value is divided by this first (255 for bytes).")
    mean: Numbers = Field(0.0, description="Then this is subtracted: a number, or one per feature or channel.")
    std: Numbers = Field(
        1.0, description="Then the result is divided by this: a number, or one per feature or channel."
    )
    baseline: Baseline | None = Field(None, description="Overrides the job's baseline for this input.")

    @model_validator(mode="after")
    def _divisors(self) -> _Scaled:
        stds = self.std if isinstance(self.std, tuple) else (self.std,)
        if self.divide == 0 or 0 in stds:
            raise ValueError("`divide` and `std` must not be 0")
        return self


class ColumnsInput(_Scaled):
    """Named feature columns, stacked in this order to `[rows, features]`."""

    columns: tuple[str, ...] = Field(min_length=1, description="Numeric columns, one feature each.")

    @model_validator(mode="after")
    def _distinct(self) -> ColumnsInput:
        twice = sorted({c for c in self.columns if self.columns.count(c) > 1})
        if twice:
            raise ValueError(f"columns named twice: {', '.join(twice)}")
        return self


class TensorInput(_Scaled):
    """One list, fixed-size-list or tensor column of numbers, reshaped to `[rows, *shape]`."""

    column: str = Field(description="List, fixed-size-list or tensor column.")
    shape: tuple[Count, ...] = Field((), description="Shape of one row; default: flat.")


class IdsInput(Part):
    """Category or token ids, attributed at the output of the module that embeds them: one number per id."""

    name: InputName = Field(description="Name of the model's input; inputs go to the model in this order.")
    ids: str | tuple[str, ...] = Field(
        description="An integer column (`[rows]`), a column of lists (`[rows, length]`), or integer columns, stacked."
    )
    embedding: str | tuple[str, ...] = Field(
        description="Dotted name of the module that embeds the ids; a list of columns may have one module for each."
    )
    pad: int | None = Field(
        None, ge=0, description="Id that fills lists up to the next multiple of 8, so that rows of about one length go "
        "together; without it, rows of exactly one length do.")  # fmt: skip
    max_length: int = Field(512, ge=1, description="Longest list of varying length; rows beyond it are bad_input.")
    baseline: Annotated[ZeroBaseline | ConstantBaseline, Field(discriminator="kind")] | None = Field(
        None, description="zero: a zero vector for each id; constant: the embedding of the id `value`."
    )

    @model_validator(mode="after")
    def _fitting(self) -> IdsInput:
        columns = self.ids if isinstance(self.ids, tuple) else (self.ids,)
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice or not columns:
            raise ValueError(f"columns named twice: {', '.join(twice)}" if twice else "`ids` names no column")
        if isinstance(self.embedding, tuple) and len(self.embedding) != len(columns):
            raise ValueError(f"{len(self.embedding)} modules for {len(columns)} columns: name one, or one for each")
        if isinstance(self.ids, tuple) and self.pad is not None:
            raise ValueError("`pad` is for a column of lists")
        if isinstance(self.baseline, ConstantBaseline) and self.baseline_id is None:
            raise ValueError("the baseline of ids is an id: one whole number from 0, in model units")
        return self

    @property
    def baseline_id(self) -> int | None:
        """The id whose embedding is the baseline; None for a zero vector."""
        given = self.baseline
        if not isinstance(given, ConstantBaseline) or isinstance(given.value, tuple) or given.units == "raw":
            return None
        return int(given.value) if given.value >= 0 and given.value.is_integer() else None

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, one, or one for each column."""
        return self.embedding if isinstance(self.embedding, tuple) else (self.embedding,)


_FORMS = ("columns", "column", "ids")


def _input_form(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else dir(value)
    return next((form for form in _FORMS if form in keys), None)


Input = Annotated[
    Annotated[ColumnsInput, Tag("columns")] | Annotated[TensorInput, Tag("column")] | Annotated[IdsInput, Tag("ids")],
    Discriminator(_input_form, custom_error_type="input_form",
                  custom_error_message="an input needs `columns: [...]`, `column: ...` or `ids: ...`"),
]  # fmt: skip


class ForwardArg(Part):
    """What is passed to the model after the inputs and not attributed: masks, lengths, categories."""

    name: InputName = Field(description="Name used in messages.")
    columns: tuple[str, ...] = Field((), description="Numeric columns, stacked to `[rows, columns]`.")
    column: str | None = Field(None, description="One scalar (`[rows]`) or list column (`[rows, *shape]`).")
    mask_of: str | None = Field(
        None, description="An input of ids: 1 where its row has an id and 0 in padding, in the shape of the ids."
    )
    shape: tuple[Count, ...] = Field((), description="Shape of one row of a list column.")
    dtype: Literal["float32", "float64", "int64", "bool"] = Field("float32", description="Tensor dtype.")

    @model_validator(mode="after")
    def _one_form(self) -> ForwardArg:
        if [bool(self.columns), self.column is not None, self.mask_of is not None].count(True) != 1:
            raise ValueError("give one of `column`, `columns` and `mask_of`")
        if self.mask_of is not None and self.shape:
            raise ValueError("a mask has the shape of its ids: leave out `shape`")
        return self


# --- target ------------------------------------------------------------------------------------------------


class _Transformed(Part):
    transform: Literal["none", "softmax", "log_softmax", "sigmoid"] = Field(
        "none", description="Applied to the model's output before the target is taken."
    )


class ScalarTarget(_Transformed):
    """The model's one output per row: `[rows]` or `[rows, 1]`."""

    kind: Literal["scalar"] = "scalar"
    transform: Literal["none", "sigmoid"] = Field("none", description="Applied to the output first.")


class IndexTarget(_Transformed):
    """One output for all rows; a list indexes an output of more than two dimensions."""

    kind: Literal["index"] = "index"
    index: Annotated[int, Field(ge=0, le=_MOST)] | tuple[Annotated[int, Field(ge=0, le=_MOST)], ...] = Field(
        description="Output index, from 0; a list for tensor outputs."
    )


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
    ScalarTarget | IndexTarget | ColumnTarget | ArgmaxTarget | TopKTarget | AllTargets, Field(discriminator="kind")
]


# --- accuracy, output, compute, limits ---------------------------------------------------------------------


class FixedSteps(Part):
    """One rule with a fixed number of steps for every row; rows are `unchecked` (no tolerance to hold them to)."""

    kind: Literal["fixed"] = "fixed"
    rule: Rule = Field("gauss_legendre", description="Quadrature rule on [0, 1].")
    steps: int = Field(50, ge=1, le=10_000, description="m of the rule: m evaluations, m + 1 with both ends.")

    @model_validator(mode="after")
    def _both_ends(self) -> FixedSteps:
        if self.rule == "gauss_legendre" and self.steps > 1000:
            raise ValueError("gauss_legendre takes at most 1000 steps; smooth models need fewer than 50")
        return self


class Adaptive(Part):
    """Nodes per row until error estimate and gap are within the tolerance, or the evaluations are spent."""

    kind: Literal["adaptive"] = "adaptive"
    tolerance: float = Field(1e-2, gt=0, lt=1, description="Relative L1 error of a row's attributions to reach.")
    max_evaluations: int = Field(512, ge=7, le=8192, description="Most gradient evaluations per row.")
    on_unreachable: Literal["stop", "spend"] = Field(
        "stop",
        description="A row whose error falls too slowly to reach the tolerance: stop early, or spend all evaluations.",
    )


class Exact(Part):
    """The integral itself, without steps: for ReLU networks with at most two hidden layers, explained before any softmax."""

    kind: Literal["exact"] = "exact"


Accuracy = Annotated[FixedSteps | Adaptive | Exact, Field(discriminator="kind")]


class Output(Part):
    """Where the run folder goes."""

    uri: str = Field(description="Root under which the run folder `<run_id>/` is made: local, s3://, gs:// or abfs://.")


class WorkerRange(Part):
    """Actors scale between these."""

    min: int = Field(1, ge=1, description="Fewest workers to run with.")
    max: int = Field(ge=1, description="Most workers to ask for.")

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError("workers.min is above workers.max")
        return self


class Compute(Part):
    """How the work is spread. Only `precision`, `reproducible`, `compile`, `batch_rows`, `savings` and `threads`, which default to the CPUs of a worker, can change a bit of the result."""

    workers: Annotated[
        Annotated[int, Field(ge=1), Tag("count")] | Annotated[WorkerRange, Tag("WorkerRange")],
        Discriminator(lambda value: "count" if isinstance(value, int) else "WorkerRange"),
    ] = Field(1, description="Number of actors, or {min, max}.")
    cpus_per_worker: float = Field(1, gt=0, le=10_000, description="CPUs that Ray reserves for an actor.")
    gpus_per_worker: float = Field(0, ge=0, le=10_000, description="GPUs that Ray reserves for an actor.")
    threads: int | None = Field(None, ge=1, le=10_000, description="Torch threads of an actor; default: its CPUs.")
    precision: Literal["float32", "float64", "bfloat16", "float16"] = Field(
        "float32", description="Dtype of model, inputs and gradients. bfloat16, float16: gradients are taken under "
        "autocast, all else stays float32; six evaluations more tell each adaptive row's rounding, and nothing below a "
        "few percent (bfloat16) or permille (float16) is certified.")  # fmt: skip
    reproducible: Literal["prefer", "require", "portable"] = Field(
        "prefer", description="Whether a row keeps its bits wherever it is computed. prefer: where kernels let it; else the "
        "run says `tolerance` and why. require: at the price of smaller step batches, and no resuming where kernels differ. "
        "portable: require, on kernels that every x86 CPU with AVX2 has.")  # fmt: skip
    compile: bool = Field(
        False, description="Compile the model with torch.compile where gradients are taken; needs a C++ compiler."
    )
    batch_rows: Count | Literal["auto"] = Field("auto", description="Rows of a step batch.")
    savings: Literal["auto", "none"] = Field(
        "auto", description="Rewritings of the model that leave its function as it is, each verified on real rows while "
        "planning: folded batch norm, channels last, hoisted affine prefix, closed form. none: the model as it is.")  # fmt: skip
    memory: int = Field(
        512 << 20, ge=1 << 20, le=1 << 50, description="Bytes that a step batch may take; `auto` stays below."
    )
    shard_rows: Count | Literal["auto"] = Field("auto", description="Most rows of a shard.")
    shard_bytes: int | None = Field(None, ge=1, description="Most input bytes of a shard, instead of rows.")
    attempts: int = Field(3, ge=1, le=20, description="Charged failures after which a shard is quarantined.")
    stall_s: float | None = Field(
        None, gt=0, description="Seconds without a finished step batch before a worker is killed; "
        "default: max(60, 20 x planned batch time).")  # fmt: skip
    start_s: float = Field(600, gt=0, description="Seconds that a worker may take to start and load the model.")

    @model_validator(mode="after")
    def _one_size(self) -> Compute:
        if self.shard_bytes is not None and self.shard_rows != "auto":
            raise ValueError("give `shard_rows` or `shard_bytes`, not both")
        return self

    @property
    def storage(self) -> Literal["float32", "float64"]:
        """Dtype of model, inputs, sums and output columns."""
        return "float64" if self.precision == "float64" else "float32"

    @property
    def autocast(self) -> Literal["bfloat16", "float16"] | None:
        """Dtype under which gradients are taken, where it is another one than the model's."""
        return self.precision if self.precision == "bfloat16" or self.precision == "float16" else None

    @property
    def worker_range(self) -> WorkerRange:
        w = self.workers
        return w if isinstance(w, WorkerRange) else WorkerRange(min=w, max=w)


class Limits(Part):
    """What a run may contain and still end with exit code 0."""

    max_bad_share: float | None = Field(None, ge=0, le=1, description="Share of rows bad_input, nonfinite or failed.")
    max_uncertified_share: float | None = Field(None, ge=0, le=1, description="Share of rows not_converged.")
    max_quarantined: int | None = Field(
        None, ge=0, description="Quarantined shards above which the run stops early; default: the others finish."
    )


class AttributeSpec(Part):
    """One attribution job."""

    kind: Literal["attribute"] = "attribute"
    name: Name = Field(description="Names the job's `_latest` pointer.")
    source: Source = Field(description="Where the rows are.")
    model: Model = Field(description="What is explained.")
    inputs: tuple[Input, ...] = Field(min_length=1, description="The model's inputs, in the order of its arguments.")
    forward_args: tuple[ForwardArg, ...] = Field((), description="Further arguments, passed and not attributed.")
    target: Target = Field(default_factory=ScalarTarget, description="Which output is explained.")
    baseline: Baseline = Field(default_factory=ZeroBaseline, description="The input that stands for absence.")
    accuracy: Accuracy = Field(default_factory=Adaptive, description="How exact, and how it is checked.")
    output: Output = Field(description="Where the run folder goes.")
    compute: Compute = Field(default_factory=Compute, description="How the work is spread.")
    limits: Limits = Field(default_factory=Limits, description="What still counts as success.")

    @model_validator(mode="after")
    def _unique_names(self) -> AttributeSpec:
        names = [i.name for i in self.inputs] + [a.name for a in self.forward_args]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"inputs and forward_args share a name: {', '.join(twice)}")
        features = [c for i in self.inputs if isinstance(i, ColumnsInput) for c in i.columns]
        features += [c for i in self.ids_inputs if isinstance(i.ids, tuple) for c in i.ids]
        tensors = [i.name for i in self.inputs if isinstance(i, TensorInput)]
        clash = sorted({f for f in features + tensors if (features + tensors).count(f) > 1})
        if clash:
            raise ValueError(f"output columns would clash: attr.{', attr.'.join(clash)}; rename an input")
        return self

    @model_validator(mode="after")
    def _embeddings(self) -> AttributeSpec:
        modules = [m for i in self.ids_inputs for m in i.modules]
        twice = sorted({m for m in modules if modules.count(m) > 1})
        if twice:
            raise ValueError(f"one embedding for several inputs: {', '.join(twice)}; stack their columns in one input")
        if modules and not isinstance(self.model, FactoryModel):
            raise ValueError(f"inputs of ids need a model of kind factory: {self.model.kind} hides its modules")
        masked = [a.mask_of for a in self.forward_args if a.mask_of is not None]
        unknown = sorted(set(masked) - {i.name for i in self.ids_inputs})
        if unknown:
            raise ValueError(f"`mask_of` names no input of ids: {', '.join(unknown)}")
        inheriting = [i.name for i in self.ids_inputs if i.baseline is None]
        if inheriting and not isinstance(self.baseline, ZeroBaseline):
            raise ValueError(f"a {self.baseline.kind} baseline says nothing about ids: give {inheriting[0]} its own")
        return self

    @property
    def ids_inputs(self) -> tuple[IdsInput, ...]:
        """The inputs that are ids, in order."""
        return tuple(i for i in self.inputs if isinstance(i, IdsInput))

    @property
    def baselines(self) -> tuple[ZeroBaseline | ConstantBaseline | ColumnBaseline | MeanBaseline, ...]:
        """The baseline of each input, the job's where the input names none."""
        return tuple(i.baseline or self.baseline for i in self.inputs)


JobSpec = AttributeSpec
_ADAPTER: TypeAdapter[AttributeSpec] = TypeAdapter(AttributeSpec)


def published_schema() -> dict[str, Any]:
    """JSON Schema of a job spec, for editors and CI."""
    return _ADAPTER.json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def parse_spec(fields: object, *, where: str = "spec") -> AttributeSpec:
    """Validate a loaded YAML or JSON mapping. Raises SpecError that names each bad field and the nearest good one."""
    if not isinstance(fields, dict):
        raise SpecError(where, expected="a mapping of fields", seen=type(fields).__name__)
    try:
        return _ADAPTER.validate_python(_tuples(fields))
    except ValidationError as error:
        found = [dict(e) for e in error.errors(include_url=False)]
        deeper = [e for e in found if e["type"] != "too_short" or len(found) == 1]
        problems = "; ".join(_explain(e) for e in deeper)
        raise SpecError(where, expected="a valid job spec", seen=problems,
                        next_step="mend the fields named; `integrand schema` prints them all") from None  # fmt: skip


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _explain(problem: dict[str, Any]) -> str:
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown field{_nearest(str(problem['loc'][-1]), _part_at(problem['loc'][:-1]))}"
    if problem["type"] == "union_tag_invalid":
        tag, known = str(problem["ctx"]["tag"]), str(problem["ctx"]["expected_tags"]).replace("'", "").split(", ")
        return f"{place}: unknown kind `{tag}`{_nearest(tag, known)}"
    if problem["type"] == "union_tag_not_found":
        return f"{place}: needs `kind`: one of {', '.join(p.model_fields['kind'].default for p in _KINDS[place.split('.')[-1]])}"
    return f"{place}: {problem['msg']}" + (
        "" if problem["type"] == "missing" else f" (got {problem.get('input')!r:.80})"
    )


def _nearest(word: str, known: list[str]) -> str:
    """The closest known word, else all of them; a field of another part where it fits no better."""
    near = difflib.get_close_matches(word, known, 1, 0.5) or difflib.get_close_matches(word, _all_fields(), 1, 0.75)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}"


_KINDS: dict[str, tuple[type[Part], ...]] = {
    "model": (FactoryModel, ExportedModel, ScriptedModel),
    "baseline": (ZeroBaseline, ConstantBaseline, ColumnBaseline, MeanBaseline),
    "target": (ScalarTarget, IndexTarget, ColumnTarget, ArgmaxTarget, TopKTarget, AllTargets),
    "accuracy": (FixedSteps, Adaptive, Exact),
}
_PLAIN: dict[str, type[Part]] = {
    "source": Source, "output": Output, "compute": Compute, "limits": Limits, "forward_args": ForwardArg,
    "workers": WorkerRange, "columns": ColumnsInput, "column": TensorInput, "ids": IdsInput,
}  # fmt: skip


def _part_at(loc: tuple[object, ...]) -> list[str]:
    """Field names of the part that an error location leads to; pydantic puts union tags into the location."""
    words = [w for w in loc if isinstance(w, str)]
    if not words:
        return list(AttributeSpec.model_fields)
    for part in _KINDS.get(words[-2], ()) if len(words) > 1 else ():
        if part.model_fields["kind"].default == words[-1]:
            return list(part.model_fields)
    word = "workers" if words[-1] == "WorkerRange" else words[-1]
    return list(_PLAIN[word].model_fields) if word in _PLAIN else []


# Names that pydantic gives to the branches of a plain union, such as `constrained-int` or `literal['auto']`.
_BRANCH = re.compile(r"(constrained-)?(str|int|float|bool)|.*\[.*")


def _place(loc: tuple[object, ...]) -> str:
    """An error location as the user wrote it: without the union tags and branches."""
    words: list[str] = []
    for i, word in enumerate(loc):
        parent = loc[i - 1] if i else None
        is_tag = parent in _KINDS or (i > 1 and loc[i - 2] == "inputs" and isinstance(parent, int))
        is_branch = word in ("WorkerRange", "count") or (isinstance(word, str) and _BRANCH.fullmatch(word))
        if not (is_tag and i < len(loc) - 1) and not is_branch:
            words.append(str(word))
    return ".".join(words) or "spec"


def _all_fields() -> list[str]:
    parts = [p for kinds in _KINDS.values() for p in kinds] + list(_PLAIN.values()) + [AttributeSpec]
    return sorted({f for part in parts for f in part.model_fields})
