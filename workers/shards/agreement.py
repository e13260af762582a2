"""What a plan froze, held against what a worker finds: code, torch build, kernels and the model.

Each check raises IntegrityError where a result would be another one here, SpecError where there can
be none.
"""

from __future__ import annotations

import torch

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.records import Plan
from integrand.schemas.specs.inputs import ImageInput
from integrand.workers.data.pictures import decoder
from integrand.workers.models.code import code_digest
from integrand.workers.models.loading import DTYPES
from integrand.workers.models.outputs import Forward
from integrand.workers.models.state import State, probe_outputs, same_outputs
from integrand.workers.shards.numerics import processor


def check_code(plan: Plan) -> None:
    """IntegrityError for other code of the model than was planned with."""
    seen = code_digest(plan.spec.model)
    if seen != plan.code_sha256:
        raise IntegrityError(
            "model code",
            expected=f"sha256 {str(plan.code_sha256)[:16]}…",
            seen=f"{str(seen)[:16]}…",
            next_step="plan again: other code is another run; install the same code on all workers",
        )


def is_planned_build(plan: Plan) -> bool:
    """Whether torch is the build that was planned with."""
    return plan.numerics.torch_build == torch.__version__


def check_build(plan: Plan) -> None:
    """IntegrityError for another torch than was planned with."""
    if is_planned_build(plan):
        return
    raise IntegrityError(
        "torch build",
        expected=plan.numerics.torch_build,
        seen=torch.__version__,
        next_step="use the planned build, or --allow-mixed and lose bitwise equality",
    )


def check_decoder(plan: Plan) -> None:
    """IntegrityError where pictures would be decoded by another Pillow than was planned with."""
    planned, seen = plan.versions.get("pillow"), decoder()
    pictures = any(isinstance(one, ImageInput) for one in plan.spec.inputs)
    if not pictures or planned == seen:
        return
    raise IntegrityError(
        "Pillow, which decodes pictures",
        expected=f"{planned}, as planned",
        seen=seen or "none: pip install 'integrand[image]'",
        next_step="install the planned version, or --allow-mixed and lose bitwise equality",
    )


def check_device(plan: Plan) -> None:
    """SpecError for a job that was planned on a GPU, where there is none."""
    if plan.numerics.device == "cpu" or torch.cuda.is_available():
        return
    raise SpecError(
        "GPU of the worker",
        expected=f"a CUDA device, as planned ({plan.numerics.kernels or 'not recorded'})",
        seen=f"none that torch {torch.__version__} finds in this worker",
        next_step=(
            "run it on nodes whose torch sees their GPUs (a CUDA build and a driver for it), or"
            " set compute.gpus_per_worker: 0 and plan anew: on CPUs it is another run"
        ),
    )


def check_kernels(plan: Plan) -> None:
    """IntegrityError for other kernels than the plan's, where the spec insists on bits: they would
    be other ones here.
    """
    insisted, planned = plan.spec.compute.reproducible, plan.numerics.kernels
    seen = processor(plan.numerics.device)
    if insisted != "prefer" and planned not in (None, seen):
        raise IntegrityError(
            f"kernels, for compute.reproducible: {insisted}",
            expected=f"{planned}, as planned",
            seen=seen,
            next_step=(
                "plan and run on like machines, take `portable` for x86 of several kinds, or "
                "--allow-mixed (level `tolerance`); --fresh SALT plans anew here"
            ),
        )


def check_state(plan: Plan, found: State | None) -> None:
    """IntegrityError for a factory that built another model here: in any bit where kernels are the
    planned ones.
    """
    if found is None or plan.model_state is None:
        return
    exact = plan.numerics.kernels == processor(plan.numerics.device)
    planned, seen = (plan.model_bits, found.exactly) if exact else (plan.model_state, found.roughly)
    if planned != seen:
        raise IntegrityError(
            "model",
            expected=f"the parameters that were planned, digest {str(planned)[:16]}…",
            seen=f"{seen[:16]}…: the factory built another model here",
            next_step=(
                "let it depend on nothing but its arguments, code and weights: no random or"
                " machine's own state; or plan again"
            ),
        )


def check_outputs(plan: Plan, forward: Forward) -> None:
    """IntegrityError for a model that says something else here, whatever it keeps that in."""
    if plan.model_outputs is None:
        return
    shapes, dtype = [s.shape for s in plan.inputs], DTYPES[plan.numerics.precision]
    seen = probe_outputs(forward, shapes, dtype, plan.numerics.device)
    if seen is None or not same_outputs(plan.model_outputs, seen):
        raise IntegrityError(
            "model",
            expected=(
                f"the outputs that were planned for two made-up rows, {plan.model_outputs[:3]} …"
            ),
            seen=f"{seen and seen[:3]} …: the factory built another model here",
            next_step=(
                "let it depend on nothing but its arguments, code and weights: no random or"
                " process's own numbers"
            ),
        )
