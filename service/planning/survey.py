"""A job's data and model as they are found, before anything is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.records import (
    Artefact,
    InputShape,
    Plan,
    PrepassFile,
)
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.contract import column_sizes
from integrand.service.planning.datasets import Dataset, prepare_dataset, run_prepass
from integrand.service.planning.references import Sources, references
from integrand.service.planning.request import Request
from integrand.service.planning.runid import FileId
from integrand.service.planning.sample import find_rows, looks, real_rows, sample_rows
from integrand.service.planning.texts import check_vocabularies
from integrand.service.pools.base import Mapper
from integrand.workers import switches
from integrand.workers.baselines.outside import check_found
from integrand.workers.baselines.tensors import check_baselines, prepasses_of
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import Rows
from integrand.workers.models.code import (
    CodeBundle,
    check_shipped,
    code_digest,
    install_code,
    model_artefacts,
    pack_code,
)
from integrand.workers.models.embeddings import IdsModel, through_embeddings
from integrand.workers.models.kinds.base import Loaded
from integrand.workers.models.loading import load_model
from integrand.workers.models.outputs import Forward, on_copies
from integrand.workers.models.portions import Portions, find_portion, in_portions
from integrand.workers.models.rebuilding import build_again, check_outputs
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.models.targets.table import with_view
from integrand.workers.storage.store import Store

References = tuple[tuple[str, tuple[FileId, ...]], ...]
"""The files of the datasets that baselines name, by pre-pass."""


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """The model's code and files, as fingerprinted."""

    code: CodeBundle
    code_sha256: str | None
    artefacts: tuple[Artefact, ...]


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


def _outputs_on_sample(spec: AttributeSpec, job: Survey, model: Forward) -> object:
    embedded = through_embeddings(with_view(model, spec.target), spec.inputs_with_baselines)
    forward = in_portions(embedded, job.portion)
    arguments = job.sample.first_draw().arguments
    with real_rows(forward, arguments), torch.no_grad():
        return on_copies(forward, *arguments)
