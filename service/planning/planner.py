"""JobSpec → Plan: everything is resolved, checked and frozen before any worker starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import torch

from integrand.schemas.ids import NUMERICS_VERSION
from integrand.schemas.records import (
    Numerics,
    Plan,
    ReasonCodes,
)
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import Output
from integrand.service.planning.demands import check_precision, check_spread, settle_kernels
from integrand.service.planning.preflight import PlanFacts, examine
from integrand.service.planning.presets import with_presets
from integrand.service.planning.projection import cut_shards, project
from integrand.service.planning.reason_codes import (
    check_reasons,
    check_when,
    read_codes,
    reason_warnings,
)
from integrand.service.planning.request import Request
from integrand.service.planning.runid import run_id
from integrand.service.planning.survey import Survey, pinned, survey
from integrand.service.planning.texts import settle_texts
from integrand.service.pools.base import Mapper
from integrand.workers import kernels
from integrand.workers.baselines.tensors import prepasses_of
from integrand.workers.data.columns import declared_columns
from integrand.workers.methods.table import method_of
from integrand.workers.models.code import (
    CodeBundle,
    check_trust,
)
from integrand.workers.models.loading import DTYPES
from integrand.workers.models.state import probe_outputs
from integrand.workers.reason_codes.candidates import candidates_of
from integrand.workers.shards.numerics import processor, versions


def make_plan(request: Request, pool: Mapper) -> tuple[Plan, CodeBundle]:
    """Resolve a spec. Raises SpecError, DataError or IntegrityError for what cannot work.

    Without `request.ingest`, what must be split or counted first is estimated
    (`projection.estimated`).
    """
    request = _settled(request)
    spec, store = request.spec, request.store
    codes = read_codes(store, spec, request.base)
    store.prove_creates(store.parse(spec.output.uri, request.base))
    with pinned(_thread_count(spec)):
        job = survey(request, pool)
        findings = _examined(spec, job, codes)
    if job.device == "cuda":
        torch.cuda.empty_cache()  # what was tried in here is for workers to take
    dataset, shapes, facts = job.dataset, job.shapes, job.facts
    numerics = _numerics(spec, job, findings)
    shards = cut_shards(spec, dataset, shapes, findings, store.access.decoded_bytes)
    state = job.loaded.state
    plan = Plan(
        run_id=_run_id(request, job, numerics, codes),
        spec=_absolute(request),
        model_state=state.roughly if state else None,
        model_bits=state.exactly if state else None,
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
        projection=project(spec, dataset, shapes, shards, findings),
        warnings=_warnings(spec, job, findings),
        left_out=findings.savings.left_out,
        half_error=findings.half_error,
        promises_completeness=method_of(spec.accuracy, spec.method).complete,
        salt=request.salt,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(job.device),
    )
    check_when(plan)
    return plan, facts.code


def _run_id(request: Request, job: Survey, numerics: Numerics, codes: ReasonCodes | None) -> str:
    facts, state = job.facts, job.loaded.state
    return run_id(
        request.spec,
        job.dataset.identity,
        facts.artefacts,
        (facts.code_sha256, facts.code.digest),
        numerics,
        request.salt,
        state=state.roughly if state else None,
        reason_codes=codes.sha256 if codes else None,
        references=dict(job.named),
    )


def _settled(request: Request) -> Request:
    """With what files beside the spec say in it. Raises SpecError for what a spec may not ask."""
    spec = with_presets(request.store, request.spec, request.base)
    check_trust(spec.model, request.trusted)
    spec = settle_texts(request.store, spec, request.base)
    settle_kernels(spec)
    check_precision(spec)
    check_spread(spec, method_of(spec.accuracy, spec.method))
    return replace(request, spec=spec)


def _examined(spec: AttributeSpec, job: Survey, codes: ReasonCodes | None) -> PlanFacts:
    """What is seen on the job's sample."""
    check_reasons(spec, job.shapes, codes)
    return examine(
        spec,
        job.forward,
        job.sample,
        varying=any(shape.varying for shape in job.shapes),
        candidates=candidates_of(spec.output, job.shapes, codes),
        counted=bool(job.prepasses) or not prepasses_of(spec.baselines),
    )


def _warnings(spec: AttributeSpec, job: Survey, findings: PlanFacts) -> tuple[str, ...]:
    return (
        *job.loaded.notes,
        *findings.warnings,
        *_device_warnings(spec),
        *_kernel_warnings(findings, job.device),
        *reason_warnings(spec),
        *_root_warnings(spec),
    )


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


def _outputs(spec: AttributeSpec, job: Survey) -> tuple[float, ...] | None:
    """What workers hold their model against, for numbers that a factory keeps in no tensor."""
    if job.loaded.state is None or spec.passed or spec.ids_inputs:
        return None
    return probe_outputs(
        job.forward, [s.shape for s in job.shapes], DTYPES[spec.compute.storage], job.device
    )


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


def _device_warnings(spec: AttributeSpec) -> tuple[str, ...]:
    gpus = spec.compute.gpus_per_worker
    if gpus <= 1:
        return ()
    return (
        f"a worker computes on one GPU: of the {gpus:g} that compute.gpus_per_worker reserves for"
        " it the others stand idle; take 1, and more workers",
    )


def _row_id_type(spec: AttributeSpec, schema: pa.Schema) -> pa.DataType:
    if spec.source.row_id is None:
        return pa.string()
    kind = schema.field(spec.source.row_id).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _thread_count(spec: AttributeSpec) -> int:
    compute = spec.compute
    return compute.threads or max(1, math.floor(compute.cpus_per_worker))


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


def _root_warnings(spec: AttributeSpec) -> tuple[str, ...]:
    """That a run is named by paths alone."""
    rooted = [one.name for one in spec.inputs if isinstance(one, ImageInput) and one.root]
    return tuple(
        f"pictures of `{name}` are named by their paths alone: one that is changed under its name"
        " changes results, and the run id stays"
        for name in rooted
    )
