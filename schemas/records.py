"""What a run stores: the plan, its shards, each shard's footer, and the manifest folded from the
footers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from integrand.schemas.ids import FORMAT_VERSION
from integrand.schemas.quantiles import Quantiles
from integrand.schemas.record import Record
from integrand.schemas.specs.job import AnySpec, AttributeSpec
from integrand.schemas.tables import CONVERGED, WITHOUT_ATTRIBUTION

Determinism = Literal["bitwise", "tolerance"]


class SourceFile(Record):
    """One Parquet file that is read, and the identity of its rows."""

    path: str = Field(description="Path relative to the source root: part of the row identity.")
    uri: str = Field(description="Where it is read.")
    rows: int
    size: int
    fingerprint: str = Field(
        description="ETag, or footer sha256 for local Parquet: pinned for every read."
    )
    row_groups: tuple[int, ...] = Field(description="Rows of each row group.")
    first_row: int = Field(
        0, description="Row number, within `path`, of this file's first row (ingested pieces)."
    )


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of one source file, by its position in the plan's list."""

    file: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of work: slices of source files, written to one object.

    No Record, as a plan may hold 100,000 of them: with slots they take a quarter of the memory.
    """

    id: str
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)


class Artefact(Record):
    """A model file or code digest, rechecked by each worker."""

    uri: str
    sha256: str


class InputShape(Record):
    """One model input as resolved against the data: its columns and the shape of one row."""

    name: str
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    named: bool = Field(description="True: one output column per feature; False: one list column.")
    varying: bool = Field(
        False,
        description=(
            "True: lists of ids of any length; `shape` is that of the rows tried while planning."
        ),
    )


class Numerics(Record):
    """Every choice that can change a bit, made once, from model, shapes and memory budget."""

    numerics_version: int
    batch_rows: int
    smaller_batches: tuple[int, ...] = Field(
        (),
        description=(
            "Fewer rows, descending, as what does not fill a step batch may be taken: tried, and"
            " rows kept every bit; no part of the run's id."
        ),
    )
    threads: int
    precision: Literal["float32", "float64"] = Field(
        description="Dtype of model, inputs, sums and output columns."
    )
    device: Literal["cpu", "cuda"]
    torch_build: str
    outputs: int | None = Field(None, description="Width of the model's output, for target `all`.")
    sizes: tuple[int, ...] = Field(
        (),
        description=(
            "Sizes of the model's output after its rows, where several columns name a place there."
        ),
    )
    exact: bool = Field(False, description="Whether the integral is taken in closed form.")
    savings: tuple[str, ...] = Field(
        (), description="Exact savings applied to the model, in this order."
    )
    folded: tuple[tuple[str, str], ...] = Field(
        (), description="Layers and the batch norms folded into them."
    )
    frontier: tuple[str, ...] = Field(
        (), description="Tensors at which the hoisted affine prefix ends."
    )
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="Dtype under which gradients are taken."
    )
    compile: bool = Field(False, description="Whether what takes gradients is compiled.")
    tf32: bool = Field(False, description="Whether CUDA rounds float32 factors to TF32 there.")
    takes_rows: int | None = Field(
        None, description="Rows that the model takes at once, where it takes no other number."
    )
    portable: bool = Field(
        False, description="Whether kernels are those that every x86 CPU with AVX2 has."
    )
    kernels: str | None = Field(
        None, description="Processor and kernels in force while planning; no part of the run's id."
    )

    @property
    def reduced(self) -> Literal["bfloat16", "float16", "tf32"] | None:
        """Precision in which gradients are taken, where it rounds more than `precision`."""
        return "tf32" if self.tf32 else self.autocast


class PrepassFile(Record):
    """Where that lies which a pass over all the data found before the run."""

    uri: str
    sha256: str


def _by_name(stored: object) -> object:
    """Files of pre-passes by name, from either form that they are stored in."""
    if isinstance(stored, dict) and "sha256" in stored:
        return {"mean": stored}
    return {} if stored is None else stored


def _as_stored(files: dict[str, PrepassFile]) -> object:
    """The means alone are stored without a name, as they were while there was nothing else."""
    if set(files) <= {"mean"}:
        return files.get("mean")
    return files


PrepassFiles = Annotated[
    dict[str, PrepassFile], BeforeValidator(_by_name), PlainSerializer(_as_stored)
]


class ReasonLine(Record):
    """One line of a file of reason codes."""

    feature: str
    code: str
    text: str


class ReasonCodes(Record):
    """A file of reason codes as it was planned with."""

    sha256: str
    lines: tuple[ReasonLine, ...]


class Projection(Record):
    """What the plan expects the run to cost, measured on a few real rows."""

    seconds_per_row: float
    evaluations_per_row: float
    batch_seconds: float
    output_bytes: int
    memory_bytes: int
    device_bytes: int = Field(0, description="On a worker's GPU; 0 where it has none.")
    seconds: float
    estimated: bool = Field(False, description="True while the source is not split or counted yet.")


SomeSpec = TypeVar("SomeSpec", bound=AnySpec, covariant=True)


class JobPlan(Record, Generic[SomeSpec]):
    """A resolved job of any kind: printable, testable, stored once as `_plan.json`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # a bound that is a protocol

    format_version: Literal[1] = 1
    run_id: str
    spec: SomeSpec
    files: tuple[SourceFile, ...]
    source_columns: tuple[str, ...]
    row_id_type: str
    inputs: tuple[InputShape, ...]
    numerics: Numerics
    identity: tuple[tuple[str, int, str], ...] = Field(
        (),
        description=(
            "Path, size and fingerprint of the text files that `files` were split from; empty for"
            " Parquet."
        ),
    )
    artefacts: tuple[Artefact, ...]
    code_sha256: str | None
    code_bundle: str | None = Field(
        None, description="Digest of the code that is shipped to the workers."
    )
    statistics: PrepassFiles = Field({}, description="Pre-passes over the data, by name.")
    reason_codes: ReasonCodes | None = Field(
        None, description="The codes and texts of `output.reasons`, where a file names them."
    )
    references: dict[str, tuple[tuple[str, int, str], ...]] = Field(
        {},
        description=(
            "Path, size and fingerprint of the files of datasets that baselines name, by pre-pass."
        ),
    )
    shards: tuple[Shard, ...]
    projection: Projection
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = Field(
        (), description="Savings that are not applied, and why."
    )
    half_error: Quantiles | None = Field(
        None,
        description=(
            "What reduced precision does to the first rows: relative L1 distance from float32 at 15"
            " Gauss nodes."
        ),
    )
    model_state: str | None = Field(
        None,
        description=(
            "Digest of what the factory built, in a few digits: the same on all processors."
        ),
    )
    model_bits: str | None = Field(
        None, description="Digest of every bit of it: the same where kernels are."
    )
    model_outputs: tuple[float, ...] | None = Field(
        None,
        description=(
            "What the model says of two made-up rows; None where it takes more than plain inputs."
        ),
    )
    lowered: str | None = Field(
        None, description="Why a row's bits may depend on its place; None where they do not."
    )
    salt: str = ""
    created: str
    versions: dict[str, str]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.shards)


class Plan(JobPlan[AttributeSpec]):
    """The plan of an attribution job."""

    promises_completeness: bool | None = Field(
        None, description="Whether its method promises attributions that add up to f(x) − f(x')."
    )

    @property
    def prepasses(self) -> dict[str, PrepassFile]:
        """What was found over all the data before the run, by the name of the pre-pass."""
        return self.statistics

    @property
    def targets_per_row(self) -> int:
        return self.spec.target.per_row(self.numerics.outputs)


class TaskFooter(Record):
    """What the committed object of a task says of itself, whatever kind of job it is of."""

    format_version: int = FORMAT_VERSION
    run_id: str
    shard: str
    plan_sha256: str
    rows_in: int
    rows_out: int


class ShardFooter(TaskFooter):
    """What a shard's object says of itself, under the Parquet footer key `integrand.shard`."""

    statuses: dict[str, int]
    gap: Quantiles = Field(description="|gap| over rows with attributions.")
    error: Quantiles = Field(description="error_estimate over rows that have one.")
    error_histogram: dict[str, int] = Field(
        description="Rows by decimal exponent of error_estimate, rounded up."
    )
    gap_histogram: dict[str, int] = Field(
        description="Rows by decimal exponent of |gap|, rounded up."
    )
    reasons: dict[str, int] = Field({}, description="Rows that get reasons, by reasons_status.")
    evaluations: int
    padded_evaluations: int
    duplicates: int = Field(
        0, description="Rows equal to an earlier one in every bit: copied, not computed again."
    )
    digest: str = Field(description="Logical digest of the rows, foldable over shards.")
    determinism: Determinism = Field(
        "bitwise", description="`tolerance` where this shard is not as the plan meant it."
    )
    lowered: str | None = Field(
        None, description="Why the level is `tolerance`, said of this shard."
    )
    batch_rows: int
    seconds: dict[str, float]
    node: str
    versions: dict[str, str] = Field(
        description="Packages, and the processor that their kernels were chosen for."
    )

    @property
    def environment(self) -> str:
        return environment(self.versions)


class Quarantined(Record):
    """A shard that was given up, with the reason."""

    shard: str
    rows: int
    attempts: int
    reason: str
    detail: str
    node: str


class JobManifest(Record):
    """A run of any kind as its stored footers tell it. Stored as `_manifest.json` only when every
    row is in.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    name: str
    complete: bool
    plan_sha256: str
    shards_done: int
    shards_planned: int
    rows_in: int
    rows_planned: int
    rows_out: int

    @property
    def has_given_up(self) -> bool:
        """Whether tasks are quarantined: the manifest is then worth keeping while it is partial."""
        raise NotImplementedError

    @property
    def date(self) -> str:
        """The instant that `_latest` is ordered by, ISO 8601."""
        raise NotImplementedError

    @property
    def contents(self) -> str:
        """A digest: two complete manifests of one plan with the same are of the same rows."""
        raise NotImplementedError


class RunManifest(JobManifest):
    """An attribution run as its stored footers tell it."""

    statuses: dict[str, int]
    gap: Quantiles
    error: Quantiles
    reasons: dict[str, int] = Field({}, description="Rows that get reasons, by reasons_status.")
    evaluations: int
    digest: str
    determinism: Determinism
    determinism_reasons: tuple[str, ...] = Field(
        (), description="Why the level is `tolerance`; empty for `bitwise`."
    )
    environments: tuple[str, ...] = Field(
        (), description="Torch builds and processors that made the rows."
    )
    quarantined: tuple[Quarantined, ...] = ()
    missing: tuple[str, ...] = Field((), description="Ids of planned shards without an object.")
    numerics: Numerics | None = Field(None, description="The plan's numerical choices.")
    left_out: tuple[tuple[str, str], ...] = Field(
        (), description="Savings that are not applied, and why."
    )
    half_error: Quantiles | None = Field(
        None, description="What reduced precision does to the first rows, against float32."
    )
    promises_completeness: bool | None = Field(
        None, description="Whether the method promises attributions that add up to f(x) − f(x')."
    )
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    logical_date: str | None = None
    created: str

    @property
    def has_given_up(self) -> bool:
        return bool(self.quarantined)

    @property
    def date(self) -> str:
        return self.logical_date or self.created

    @property
    def contents(self) -> str:
        return self.digest

    @property
    def evaluations_per_row(self) -> float:
        attributed = self.rows_out - self.count(*WITHOUT_ATTRIBUTION)
        return self.evaluations / max(1, attributed)

    @property
    def converged_share(self) -> float:
        converged = self.count(*CONVERGED)
        return converged / max(1, self.rows_out)

    def count(self, *statuses: str) -> int:
        """Rows with any of these statuses."""
        counts = [self.statuses.get(str(status), 0) for status in statuses]
        return sum(counts)


def environment(versions: dict[str, str]) -> str:
    """What the bits of rows depend on beside the plan: the torch build, and the processor its
    kernels are chosen for.
    """
    return (
        f"torch {versions.get('torch', '?')} on"
        f" {versions.get('processor', 'an unrecorded processor')}"
    )
