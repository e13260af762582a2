"""JobSpec → Plan: everything is resolved, checked and frozen before any worker starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.ids import NUMERICS_VERSION
from integrand.schemas.records import (
    Artefact,
    InputShape,
    Numerics,
    Plan,
    PrepassFile,
    Projection,
    Shard,
    SourceFile,
)
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.job import AnySpec, AttributeSpec
from integrand.schemas.specs.output import Output, TopKStore
from integrand.service.planning.contract import column_sizes
from integrand.service.planning.cutting import auto_rows, check_decoded, cut, rows_by_bytes
from integrand.service.planning.datasets import Dataset, prepare_dataset, run_prepass
from integrand.service.planning.preflight import PlanFacts, examine
from integrand.service.planning.presets import with_presets
from integrand.service.planning.reason_codes import (
    check_reasons,
    check_when,
    read_codes,
    reason_warnings,
)
from integrand.service.planning.references import Sources, references
from integrand.service.planning.runid import FileId, run_id
from integrand.service.planning.sample import find_rows, looks, real_rows, sample_rows
from integrand.service.planning.texts import check_vocabularies, settle_texts
from integrand.service.pools.base import Mapper
from integrand.workers import kernels, switches
from integrand.workers.baselines.outside import check_found
from integrand.workers.baselines.tensors import check_baselines, prepasses_of
from integrand.workers.data.blocks import Block, blocks_of
from integrand.workers.data.columns import declared_columns, row_bytes
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import Rows
from integrand.workers.methods.base import Method
from integrand.workers.methods.table import method_of
from integrand.workers.models.code import (
    CodeBundle,
    check_shipped,
    check_trust,
    code_digest,
    install_code,
    model_artefacts,
    pack_code,
)
from integrand.workers.models.embeddings import IdsModel, through_embeddings
from integrand.workers.models.kinds.base import Loaded
from integrand.workers.models.loading import DTYPES, load_model
from integrand.workers.models.outputs import Forward, on_copies
from integrand.workers.models.portions import Portions, find_portion, in_portions
from integrand.workers.models.rebuilding import build_again, check_outputs
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.models.state import probe_outputs
from integrand.workers.models.targets.table import with_view
from integrand.workers.reason_codes.candidates import candidates_of
from integrand.workers.shards.numerics import processor, versions
from integrand.workers.shards.output import ROUNDED
from integrand.workers.storage.store import Store

PLACE_BYTES = 4
"""Of the place of one attribution, where the largest are stored alone."""
References = tuple[tuple[str, tuple[FileId, ...]], ...]
"""The files of the datasets that baselines name, by pre-pass."""

SomeSpec = TypeVar("SomeSpec", bound=AnySpec)


@dataclass(frozen=True)
class AnyRequest(Generic[SomeSpec]):
    """One call of plan or run: the spec and all that stands beside it."""

    spec: SomeSpec
    base: str
    store: Store
    trusted: tuple[str, ...]
    salt: str = ""
    ingest: bool = True


Request = AnyRequest[AttributeSpec]


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """The model's code and files, as fingerprinted."""

    code: CodeBundle
    code_sha256: str | None
    artefacts: tuple[Artefact, ...]


def make_plan(request: Request, pool: Mapper) -> tuple[Plan, CodeBundle]:
    """Resolve a spec. Raises SpecError, DataError or IntegrityError for what cannot work.

    Without `request.ingest`, what must be split or counted first is estimated
    (`projection.estimated`).
    """
    request = replace(request, spec=with_presets(request.store, request.spec, request.base))
    check_trust(request.spec.model, request.trusted)
    store = request.store
    spec = settle_texts(store, request.spec, request.base)
    request = replace(request, spec=spec)
    settle_kernels(spec)
    check_precision(spec)
    method = method_of(spec.accuracy, spec.method)  # raises for one that there is not
    check_spread(spec, method)
    codes = read_codes(store, spec, request.base)
    store.prove_creates(store.parse(spec.output.uri, request.base))
    with pinned(_thread_count(spec)):
        job = survey(request, pool)
        check_reasons(spec, job.shapes, codes)
        varying = any(shape.varying for shape in job.shapes)
        among = candidates_of(spec.output, job.shapes, codes)
        counted = bool(job.prepasses) or not prepasses_of(spec.baselines)
        findings = examine(
            spec,
            job.forward,
            job.sample,
            varying=varying,
            candidates=among,
            counted=counted,
        )
    if job.device == "cuda":
        torch.cuda.empty_cache()  # what was tried in here is for workers to take
    dataset, shapes, facts = job.dataset, job.shapes, job.facts
    numerics = _numerics(spec, job, findings)
    shards = _cut(spec, dataset, shapes, findings, store.access.decoded_bytes)
    code = (facts.code_sha256, facts.code.digest)
    state = job.loaded.state
    roughly, exactly = (state.roughly, state.exactly) if state else (None, None)
    plan = Plan(
        run_id=run_id(
            spec,
            dataset.identity,
            facts.artefacts,
            code,
            numerics,
            request.salt,
            state=roughly,
            reason_codes=codes.sha256 if codes else None,
            references=dict(job.named),
        ),
        spec=_absolute(request),
        model_state=roughly,
        model_bits=exactly,
        model_outputs=_outputs(spec, job),
        lowered=findings.lowered,
        files=dataset.files,
        identity=dataset.identity if dataset.split else (),
        code_bundle=facts.code.digest,
        source_columns=declared_columns(spec),
        row_id_type=str(_row_id_type(spec, dataset.schema)),
        inputs=shapes,
        numerics=numerics,
        artefacts=facts.artefacts,
        code_sha256=facts.code_sha256,
        statistics=job.prepasses,
        reason_codes=codes,
        references=dict(job.named),
        shards=shards,
        projection=_projection(spec, dataset, shapes, shards, findings),
        warnings=(
            *job.loaded.notes,
            *findings.warnings,
            *_device_warnings(spec),
            *_kernel_warnings(findings, job.device),
            *reason_warnings(spec),
            *_root_warnings(spec),
        ),
        left_out=findings.savings.left_out,
        half_error=findings.half_error,
        promises_completeness=method.complete,
        salt=request.salt,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(job.device),
    )
    check_when(plan)
    return plan, facts.code


def _numerics(spec: AttributeSpec, job: Survey, findings: PlanFacts) -> Numerics:
    """Every choice that can change a bit."""
    compute, savings = spec.compute, findings.savings
    return Numerics(
        numerics_version=NUMERICS_VERSION,
        batch_rows=findings.batch_rows,
        smaller_batches=findings.smaller,
        threads=_thread_count(spec),
        precision=compute.storage,
        device=job.device,
        torch_build=torch.__version__,
        outputs=findings.outputs,
        sizes=findings.sizes,
        exact=findings.exact,
        savings=savings.names,
        folded=tuple((p.layer, p.norm) for p in savings.folded),
        frontier=savings.frontier,
        autocast=None if findings.exact else compute.autocast,
        tf32=compute.precision == "tf32" and not findings.exact,
        compile=compute.compile and not findings.exact,
        takes_rows=job.portion,
        portable=compute.reproducible == "portable",
        kernels=processor(job.device),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """A job's data and model as found, before anything is chosen."""

    dataset: Dataset
    shapes: tuple[InputShape, ...]
    facts: ModelFacts
    prepasses: dict[str, PrepassFile]
    named: References
    device: Literal["cpu", "cuda"]
    loaded: Loaded
    forward: Forward
    sample: RowTensors

    @property
    def portion(self) -> int | None:
        """Rows that the model takes at once, where it takes no other number."""
        return self.forward.rows if isinstance(self.forward, Portions) else None


def survey(request: Request, pool: Mapper, *, rebuild: bool = True) -> Survey:
    """Read a few rows and load the model, which the caller has passed through `check_trust`, of a
    spec whose texts and pictures are settled.

    rebuild  build it once more, and raise SpecError where that is another model
    """
    spec, store = request.spec, request.store
    device = _device(spec)
    output = store.parse(spec.output.uri, request.base)
    dataset = prepare_dataset(store, spec, request.base, output, pool, ingest=request.ingest)
    shapes = resolve_columns(dataset.schema, spec)
    check_baselines(spec, shapes)
    sources = Sources(store, request.base, output, pool, request.ingest)
    wanted = references(spec, prepasses_of(spec.baselines), dataset, shapes, sources)
    pool.prepare()
    facts = _model_facts(request)
    loaded = load_model(store, spec.model, facts.artefacts, spec.compute.storage, device)
    check_vocabularies(store, spec, loaded.forward)
    second = build_again(spec.model, loaded) if rebuild else None
    forward = through_embeddings(with_view(loaded.forward, spec.target), spec.inputs_with_baselines)
    found = looks(store, spec, dataset)
    tried, rows = find_rows(spec, shapes, found, device, forward, estimated=dataset.estimated)
    _refuse_lengths(spec, tried)
    portion = _portion(spec, forward, loaded, rows, device)
    forward = in_portions(forward, portion)
    counted = {one.prepass.name: one.prepass.stand_in(tried) for one in wanted}
    sample = sample_rows(spec, tried, rows, counted, device, forward)
    prepasses: dict[str, PrepassFile] = {}
    split = not any(one.dataset.estimated for one in wanted)
    if wanted and request.ingest and split:
        # over rows that are not bad, which a target can be to this model alone
        varying = any(shape.varying for shape in tried)
        fixed = spec.target.depth == 1 or not varying
        sizes = column_sizes(spec, forward, sample) if fixed else None
        for one in wanted:
            found_there = run_prepass(one.prepass, one.scan(store, sizes), output, pool)
            counted[one.prepass.name], prepasses[one.prepass.name] = found_there
        check_found(spec, tried, counted)
        sample = sample_rows(spec, tried, rows, counted, device, forward)
    named = tuple((one.prepass.name, one.dataset.identity) for one in wanted if one.named)
    job = Survey(
        dataset=dataset,
        shapes=tried,
        facts=facts,
        prepasses=prepasses,
        named=named,
        device=device,
        loaded=loaded,
        forward=forward,
        sample=sample,
    )
    if second is not None:
        outputs_of = partial(_outputs_on_sample, spec, job)
        check_outputs(spec.model, loaded, second, outputs_of)
    built = replace(loaded, build=None)
    return replace(job, loaded=built)


def settle_kernels(spec: AttributeSpec) -> None:
    """Ask for portable kernels where the spec does. Raises SpecError where this process or its
    processor has others.
    """
    if spec.compute.reproducible != "portable":
        return
    where = "compute.reproducible: portable"
    if spec.compute.gpus_per_worker:
        raise SpecError(
            where,
            expected="a job on CPUs",
            seen="compute.gpus_per_worker",
            next_step="take `require`",
        )
    found = kernels.ask_portable()
    if not found.portable:
        raise SpecError(
            where,
            expected=f"the kernels {kernels.portable_name()}",
            seen=str(found) or "none of x86",
            next_step=(
                "start the job in a process of its own, since kernels are chosen at their first"
                " use, on x86 with AVX2 and a torch with MKL"
            ),
        )


def check_precision(spec: AttributeSpec) -> None:
    """Raises SpecError for a precision that workers on CPUs do not have, or whose rounding a
    method does not measure.
    """
    compute = spec.compute
    method = method_of(spec.accuracy, spec.method)
    if compute.reduced and not method.by_path:
        raise SpecError(
            f"compute.precision: {compute.precision}",
            expected=f"float32 or float64: {spec.method.kind} does not measure what rounding does",
            seen=compute.precision,
            next_step="set compute.precision: float32",
        )
    if compute.precision == "tf32" and not compute.gpus_per_worker:
        raise SpecError(
            "compute.precision: tf32",
            expected="workers on GPUs, whose products TF32 is for",
            seen="compute.gpus_per_worker: 0",
            next_step="set compute.gpus_per_worker: 1, or compute.precision: float32",
        )


def check_spread(spec: AttributeSpec, method: Method[Any]) -> None:
    """Raises SpecError for a spread over baselines that the method makes one result of."""
    if not spec.output.spread or method.by_path:
        return
    raise SpecError(
        "output.spread",
        expected="a method that attributes against one baseline of a row at a time",
        seen=f"method {spec.method.title}, which takes them together or takes none",
        next_step="take integrated_gradients, or leave out output.spread",
    )


def _portion(
    spec: AttributeSpec, forward: Forward, loaded: Loaded, rows: Rows, device: str
) -> int | None:
    """Rows that the model must be given, where it does not take any number. With ids it is not
    divided.
    """
    clean = np.flatnonzero(rows.clean)
    if not len(clean) or isinstance(forward, IdsModel):
        return None
    asked = [n for n in (spec.compute.batch_rows, loaded.rows) if isinstance(n, int)]
    tensors = (*rows.inputs, *rows.forward_args)
    arguments = [t[clean].to(device) for t in tensors]
    return find_portion(forward, arguments, asked)


def _outputs(spec: AttributeSpec, job: Survey) -> tuple[float, ...] | None:
    """What workers hold their model against, for numbers that a factory keeps in no tensor."""
    if job.loaded.state is None or spec.passed or spec.ids_inputs:
        return None
    return probe_outputs(
        job.forward, [s.shape for s in job.shapes], DTYPES[spec.compute.storage], job.device
    )


def _outputs_on_sample(spec: AttributeSpec, job: Survey, model: Forward) -> object:
    embedded = through_embeddings(with_view(model, spec.target), spec.inputs_with_baselines)
    forward = in_portions(embedded, job.portion)
    arguments = job.sample.first_draw().arguments
    with real_rows(forward, arguments), torch.no_grad():
        return on_copies(forward, *arguments)


def _kernel_warnings(findings: PlanFacts, device: str) -> tuple[str, ...]:
    """That kernels were asked for which may round rows by their place, where the trial has not
    shown it already, or which may differ from run to run.
    """
    found = []
    if not findings.lowered:
        found.append(kernels.objection(kernels.in_force()))
    if device == "cuda":
        found.append(kernels.objection_on_cuda())
    return tuple(filter(None, found))


def _device(spec: AttributeSpec) -> Literal["cpu", "cuda"]:
    """Where workers compute. Raises SpecError where that is a GPU and none is here."""
    gpus = spec.compute.gpus_per_worker
    if not gpus:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise SpecError(
        "compute.gpus_per_worker",
        expected="a CUDA device where the job is planned: the model is tried on it",
        seen=f"{gpus:g}, and none that torch {torch.__version__} finds here",
        next_step=(
            "plan and run it where there is one (on a Ray cluster: `ray job submit"
            " --entrypoint-num-gpus 1`), or set compute.gpus_per_worker: 0 for CPUs"
        ),
    )


def _device_warnings(spec: AttributeSpec) -> tuple[str, ...]:
    gpus = spec.compute.gpus_per_worker
    if gpus <= 1:
        return ()
    return (
        f"a worker computes on one GPU: of the {gpus:g} that compute.gpus_per_worker reserves for"
        " it the others stand idle; take 1, and more workers",
    )


def _model_facts(request: Request) -> ModelFacts:
    code = pack_code(request.store, request.spec.model, request.base)
    check_shipped(code, request.trusted)
    install_code(code)
    return ModelFacts(
        code,
        code_digest(request.spec.model),
        model_artefacts(request.store, request.spec.model, request.base),
    )


def planned_code(store: Store, plan: Plan) -> CodeBundle:
    """The code that a stored plan ships, read again. IntegrityError if it is other code by now."""
    code = pack_code(store, plan.spec.model, "/")
    if plan.code_bundle not in (None, code.digest):
        raise IntegrityError(
            "model.code",
            expected=f"the planned code, {str(plan.code_bundle)[:16]}…",
            seen=f"{code.digest[:16]}…",
            next_step="restore it, or plan a new run",
        )
    return code


def _refuse_lengths(spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """A compiled model is compiled again for every length, and after a few of them no more; a
    region would hold outputs of padding.
    """
    varying = [s.name for s in shapes if s.varying]
    if varying and spec.target.needs_one_shape:
        raise SpecError(
            f"target.kind {spec.target.kind}",
            expected="inputs of one shape",
            seen=f"lists of any length in {varying[0]}, whose padding has outputs, too",
            next_step="let the model return the sum that is meant, and explain it by `index`",
        )
    if spec.compute.compile and varying:
        raise SpecError(
            "compute.compile",
            expected="inputs of one shape",
            seen=f"lists of any length in {varying[0]}",
            next_step="set compute.compile: false",
        )


def _row_id_type(spec: AttributeSpec, schema: pa.Schema) -> pa.DataType:
    if spec.source.row_id is None:
        return pa.string()
    kind = schema.field(spec.source.row_id).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _thread_count(spec: AttributeSpec) -> int:
    compute = spec.compute
    return compute.threads or max(1, math.floor(compute.cpus_per_worker))


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """The workers' threads and deterministic kernels while the model is tried here; put back
    afterwards.
    """
    threads = torch.get_num_threads()
    try:
        with switches.pinned():
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(threads)


def _absolute(request: Request) -> AttributeSpec:
    """The spec with every URI as workers will see it."""
    spec = request.spec

    def absolute(uri: str) -> str:
        return str(request.store.parse(uri, request.base))

    uris = tuple(absolute(uri) for uri in spec.source.uris)
    labels = spec.source.labels
    source = spec.source.model_copy(
        update={"uri": uris, "labels": None if labels is None else absolute(labels)}
    )
    output = _absolute_output(spec.output, absolute)
    model = spec.model.moved(absolute)
    moved = {"source": source, "output": output, "model": model}
    return spec.moved(absolute).model_copy(update=moved)


def _absolute_output(output: Output, absolute: Callable[[str], str]) -> Output:
    reasons = output.reasons
    if reasons is not None and reasons.codes is not None:
        reasons = reasons.model_copy(update={"codes": absolute(reasons.codes)})
    return output.model_copy(update={"uri": absolute(output.uri), "reasons": reasons})


def _cut(
    spec: AttributeSpec,
    dataset: Dataset,
    shapes: Sequence[InputShape],
    findings: PlanFacts,
    most: int,
) -> tuple[Shard, ...]:
    """The shards of a dataset, none of which decodes to more than `most` bytes."""
    compute, files = spec.compute, dataset.files
    width = row_bytes(dataset.schema, shapes) + _encoded_bytes(spec, files)
    if compute.shard_bytes is not None:
        rows = rows_by_bytes(files, compute.shard_bytes)
    elif compute.shard_rows != "auto":
        rows = compute.shard_rows
    else:
        per_row = spec.target.per_row(findings.outputs)
        fitting = auto_rows(
            sum(f.rows for f in files),
            compute.worker_range.max,
            per_row * _result_row_bytes(spec, shapes),
            per_row * findings.seconds_per_row,
        )
        # half of it is left to ids, masks and targets
        rows = max(1, min(fitting, most // max(1, 2 * width)))
    shards = cut(files, rows)
    check_decoded(shards, width, most)
    return shards


def _encoded_bytes(spec: AttributeSpec, files: Sequence[SourceFile]) -> int:
    """Of a row whose pictures lie in the table: their pixels come beside them."""
    pictures = [one for one in spec.inputs if isinstance(one, ImageInput) and one.root is None]
    rows = sum(file.rows for file in files)
    return sum(file.size for file in files) // max(1, rows) if pictures else 0


def _root_warnings(spec: AttributeSpec) -> tuple[str, ...]:
    """That a run is named by paths alone."""
    rooted = [one.name for one in spec.inputs if isinstance(one, ImageInput) and one.root]
    return tuple(
        f"pictures of `{name}` are named by their paths alone: one that is changed under its name"
        " changes results, and the run id stays"
        for name in rooted
    )


def _result_row_bytes(spec: AttributeSpec, shapes: Sequence[InputShape]) -> int:
    """Of an output row while its shard is computed."""
    width = np.dtype(spec.compute.storage).itemsize
    numbers = sum(math.prod(block.shape.shape) for block in blocks_of(spec, shapes))
    return numbers * width + 100


def _stored_row_bytes(spec: AttributeSpec, shapes: Sequence[InputShape]) -> int:
    """Of an output row as it is stored."""
    return sum(_stored_block_bytes(spec, block) for block in blocks_of(spec, shapes)) + 100


def _stored_block_bytes(spec: AttributeSpec, block: Block) -> int:
    computed = spec.compute.storage
    kind = spec.output.dtype or computed if block.role in ROUNDED else computed
    width = np.dtype(kind).itemsize
    store, elements = spec.output.store, math.prod(block.shape.shape)
    if block.role == "attr" and isinstance(store, TopKStore):
        return min(store.k, elements) * (width + PLACE_BYTES)
    return elements * width


def _projection(
    spec: AttributeSpec,
    dataset: Dataset,
    shapes: Sequence[InputShape],
    shards: Sequence[Shard],
    findings: PlanFacts,
) -> Projection:
    per_row = spec.target.per_row(findings.outputs)
    rows = (dataset.estimated_rows or sum(f.rows for f in dataset.files)) * per_row
    largest = max((s.rows for s in shards), default=0) * per_row
    return Projection(
        seconds_per_row=findings.seconds_per_row,
        evaluations_per_row=findings.evaluations_per_row,
        batch_seconds=findings.batch_s,
        output_bytes=rows * _stored_row_bytes(spec, shapes),
        memory_bytes=findings.memory.host + 4 * largest * _result_row_bytes(spec, shapes),
        device_bytes=findings.memory.device,
        seconds=rows * findings.seconds_per_row / spec.compute.side_by_side,
        estimated=dataset.estimated,
    )
