"""What a spec may not ask of kernels, precision and methods."""

from __future__ import annotations

from typing import Any

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import AttributeSpec
from integrand.workers import kernels
from integrand.workers.methods.base import Method
from integrand.workers.methods.table import method_of


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
