"""How the work is spread."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from integrand.schemas.specs.part import Count, Part

Bytes = Annotated[int, Field(ge=1 << 20, le=1 << 50)]


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
    """How the work is spread. Only `precision`, `reproducible`, `compile`, `batch_rows`, `savings`
    and `threads`, which default to the CPUs of a worker, can change a bit of the result.
    """

    workers: Annotated[
        Annotated[int, Field(ge=1), Tag("count")] | Annotated[WorkerRange, Tag("WorkerRange")],
        Discriminator(lambda value: "count" if isinstance(value, int) else "WorkerRange"),
    ] = Field(1, description="Number of actors, or {min, max}.")
    cpus_per_worker: float = Field(
        1, gt=0, le=10_000, description="CPUs that Ray reserves for an actor."
    )
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=10_000,
        description=(
            "GPUs that Ray reserves for an actor, which computes on the first of them; 0.25: a"
            " quarter of one's memory."
        ),
    )
    threads: int | None = Field(
        None, ge=1, le=10_000, description="Torch threads of an actor; default: its CPUs."
    )
    precision: Literal["float32", "float64", "bfloat16", "float16", "tf32"] = Field(
        "float32",
        description=(
            "Dtype of model, inputs and gradients. bfloat16, float16: gradients are taken under"
            " autocast, all else stays float32; six evaluations more tell each adaptive row's"
            " rounding, and nothing below a few percent (bfloat16) or permille (float16, tf32) is"
            " certified. tf32: gradients are taken with CUDA's TF32 products, on GPUs alone; a plan"
            " measures what that does and refuses it where too little of the tolerance is left."
        ),
    )
    reproducible: Literal["prefer", "require", "portable"] = Field(
        "prefer",
        description=(
            "Whether a row keeps its bits wherever it is computed. prefer: where kernels let it;"
            " else the run says `tolerance` and why. require: at the price of smaller step batches,"
            " and no resuming where kernels differ. portable: require, on kernels that every x86"
            " CPU with AVX2 has."
        ),
    )
    compile: bool = Field(
        False,
        description=(
            "Compile the model with torch.compile where gradients are taken; needs a C++ compiler."
        ),
    )
    batch_rows: Count | Literal["auto"] = Field("auto", description="Rows of a step batch.")
    savings: Literal["auto", "none"] = Field(
        "auto",
        description=(
            "Rewritings of the model that leave its function as it is, each verified on real rows"
            " while planning: folded batch norm, channels last, hoisted affine prefix, closed form."
            " none: the model as it is."
        ),
    )
    memory: Bytes | Literal["auto"] = Field(
        "auto",
        description=(
            "Bytes that a step batch may take, where `batch_rows` is `auto`. auto: 512 MiB on CPUs;"
            " on a GPU a quarter of what a worker has of it, at most 12 GiB."
        ),
    )
    shard_rows: Count | Literal["auto"] = Field("auto", description="Most rows of a shard.")
    shard_bytes: int | None = Field(
        None, ge=1, description="Most input bytes of a shard, instead of rows."
    )
    attempts: int = Field(
        3, ge=1, le=20, description="Charged failures after which a shard is quarantined."
    )
    stall_s: float | None = Field(
        None,
        gt=0,
        description=(
            "Seconds without a finished step batch before a worker is killed; "
            "default: max(60, 20 x planned batch time)."
        ),
    )
    start_s: float = Field(
        600, gt=0, description="Seconds that a worker may take to start and load the model."
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_a_part(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a worker has a part of one GPU, or whole ones")
        return gpus

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
        return (
            self.precision if self.precision == "bfloat16" or self.precision == "float16" else None
        )

    @property
    def reduced(self) -> Literal["bfloat16", "float16", "tf32"] | None:
        """Precision in which gradients are taken, where it rounds more than the model's dtype."""
        return "tf32" if self.precision == "tf32" else self.autocast

    @property
    def worker_range(self) -> WorkerRange:
        w = self.workers
        return w if isinstance(w, WorkerRange) else WorkerRange(min=w, max=w)

    @property
    def side_by_side(self) -> float:
        """Workers that compute at the same time: those with a part of a GPU take turns on it."""
        part = self.gpus_per_worker or 1.0
        return max(1.0, self.worker_range.max * min(1.0, part))
