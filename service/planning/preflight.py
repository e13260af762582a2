"""What is tried on a few real rows before any worker starts: the model's contract, and what a row
costs.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.records import Quantiles
from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.batches import (
    Form,
    Question,
    choose_batch,
    insists,
    judge_closed_form,
    keeps_order,
)
from integrand.service.planning.sample import real_rows
from integrand.service.planning.trials import (
    check_compiled,
    rounding_seen,
    seconds_per_batch,
    step_batch,
)
from integrand.workers.engine.autocast import HALVES, LEAST
from integrand.workers.engine.batching import (
    KEPT_BYTES_PER_ELEMENT,
    activation_bytes,
    step_batch_rows,
)
from integrand.workers.engine.prepared import Prepared, assemble, closed_form, stepping, work_of
from integrand.workers.engine.tracks import live_rows
from integrand.workers.methods.attribution import attribute, no_closed_form
from integrand.workers.methods.probing import unused_inputs
from integrand.workers.models.outputs import (
    Forward,
    check_output,
    on_copies,
    transformed,
)
from integrand.workers.models.portions import Portions
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.models.targets.base import output_width
from integrand.workers.models.targets.table import kind_of_target
from integrand.workers.quadrature.rules import plain_rule
from integrand.workers.quadrature.smooth import FIRST
from integrand.workers.rewriting.choosing import choose, with_alignment
from integrand.workers.rewriting.savings import Savings, without_hoisting

TRIAL_S = 10.0
"""Longest that the adaptive mode is tried on real rows; a dearer model is projected at its most
evaluations.
"""


@dataclass(frozen=True)
class PlanFacts:
    """What the trial showed; `lowered` is why a row's bits depend on its place, None where they do
    not.
    """

    batch_rows: int
    outputs: int | None
    row_bytes: int
    batch_s: float
    evaluations_per_row: float
    seconds_per_row: float
    memory_bytes: int
    warnings: tuple[str, ...]
    exact: bool
    savings: Savings
    half_error: Quantiles | None
    lowered: str | None = None


def examine(spec: AttributeSpec, model: Forward, sample: RowTensors) -> PlanFacts:
    """Try the model on real rows. Raises SpecError for whatever cannot work, with its
    likely cause.
    """
    sample, width, warnings = first_pass(spec, model, sample)
    exact, savings = rewriting(spec, model, sample)
    prepared = ready(spec, model, sample, savings, exact=exact)
    if (
        exact
        and isinstance(spec.accuracy, Adaptive)
        and insists(spec)
        and not keeps_order(prepared, sample)
    ):
        # step batches may keep the bits that it does not
        exact, savings = (
            False,
            _savings(spec, model, sample),
        )
        prepared = ready(spec, model, sample, savings, exact=False)
        warnings.append("the closed form is not taken: a row's last bits depend on its place there")
    # twice as many rows are tried here
    with real_rows(model, [*sample.inputs, *sample.forward_args]):
        row_bytes = activation_bytes(prepared, sample.inputs, sample.forward_args)
    planned = _batch_rows(spec, row_bytes, model)
    if spec.compute.compile:
        check_compiled(step_batch(prepared, sample, planned))
    asked = Question(
        spec, Form(prepared, savings), sample, partial(_aligned, spec, model, sample, savings)
    )
    chosen = judge_closed_form(asked, planned) if exact else choose_batch(asked, planned)
    prepared, batch_rows = chosen.form.prepared, chosen.rows
    warnings += chosen.warnings
    half_error = rounding_seen(prepared, sample, batch_rows) if prepared.half else None
    warnings += _rounding_warnings(spec, half_error) if half_error else []
    batch_s = seconds_per_batch(step_batch(prepared, sample, batch_rows))
    evaluations, seconds = _cost(spec, prepared, sample, batch_rows, batch_s)
    return PlanFacts(
        batch_rows,
        width,
        row_bytes,
        batch_s,
        evaluations,
        seconds,
        _memory(spec, sample, row_bytes, batch_rows),
        tuple(warnings),
        exact,
        chosen.form.savings,
        half_error,
        chosen.lowered,
    )


def _aligned(
    spec: AttributeSpec, model: Forward, sample: RowTensors, savings: Savings
) -> Form | None:
    """The model with linear layers of whole vectors; None where that is no way."""
    if spec.compute.savings == "none":
        return None
    found = with_alignment(model, savings, sample)
    return None if found is None else Form(ready(spec, model, sample, found, exact=False), found)


def ready(
    spec: AttributeSpec, model: Forward, sample: RowTensors, savings: Savings, *, exact: bool
) -> Prepared:
    """The model as the workers of this job will run it."""
    found = assemble(
        model, spec.target.transform, savings, sample.inputs, sample.forward_args, exact=exact
    )
    device = sample.inputs[0].device.type
    return stepping(found, spec.compute.autocast, device, compile=spec.compute.compile)


def _rounding_warnings(spec: AttributeSpec, seen: Quantiles) -> list[str]:
    """What half precision does to the first rows, and to what can be certified."""
    autocast = spec.compute.autocast
    assert autocast
    told = [
        f"{autocast} moves the attributions of the first rows by {seen.p50 or 0:.2g} (median) to"
        f" {seen.max or 0:.2g} of their size, against float32 at the same nodes"
    ]
    least = LEAST * torch.finfo(HALVES[autocast]).eps
    if isinstance(spec.accuracy, Adaptive) and spec.accuracy.tolerance <= least:
        told.append(
            f"no row can be certified to {spec.accuracy.tolerance:g} under {autocast}, whose"
            f" rounding counts for {least:.2g} or more: rows will be `at_precision_floor`"
        )
    return told


def rewriting(spec: AttributeSpec, model: Forward, sample: RowTensors) -> tuple[bool, Savings]:
    """Whether the integral is taken in closed form, and else which savings hold on the sample.

    Raises SpecError where the closed form is asked for and there is none.
    """
    reason = _no_closed_form(spec, model, sample)
    if isinstance(spec.accuracy, Exact) and reason is not None:
        raise no_closed_form(reason)
    return (True, Savings()) if reason is None else (False, _savings(spec, model, sample))


def _savings(spec: AttributeSpec, model: Forward, sample: RowTensors) -> Savings:
    if spec.compute.savings == "none":
        return Savings()
    found = choose(model, sample, work_of(spec.accuracy))
    return (
        without_hoisting(found, "forward_args differ from row to row")
        if sample.forward_args
        else found
    )


def _no_closed_form(spec: AttributeSpec, model: Forward, sample: RowTensors) -> str | None:
    """Why the integral is not taken in closed form; None where it is."""
    if isinstance(spec.accuracy, FixedSteps):
        return "a fixed rule is asked for"
    if spec.compute.savings == "none" and not isinstance(spec.accuracy, Exact):
        return "compute.savings is none"
    if spec.target.transform != "none":
        return f"the output transform {spec.target.transform}"
    if isinstance(spec.accuracy, Adaptive) and sample.inputs[0].device.type != "cpu":
        return "it runs on the CPU"
    depth = 0 if sample.target is None else sample.target.shape[1]
    if len(sample.inputs) > 1 or sample.forward_args or depth > 1:
        return "several inputs, forward_args or a tensor output"
    found = closed_form(model, sample.inputs[0])
    return found if isinstance(found, str) else None


def first_pass(
    spec: AttributeSpec, model: Forward, sample: RowTensors
) -> tuple[RowTensors, int | None, list[str]]:
    """The sample with its targets, the width of the model's output where it has one, and what is
    doubtful about both.
    """
    out, warnings = _try_model(spec, transformed(model, spec.target.transform), sample)
    kind = kind_of_target(spec.target)
    kind.check(spec.target, out)
    table = kind.of_sample(spec.target, sample.rows, out, sample.target)
    check_output(out, sample.rows, table)
    return replace(sample, target=table), output_width(out), warnings


def column_outputs(spec: AttributeSpec, model: Forward, sample: RowTensors) -> int | None:
    """How many outputs a target column may name; None where no column names one."""
    if not kind_of_target(spec.target).named_by_rows:
        return None
    out, _ = _try_model(spec, model, sample)
    return output_width(out)


def _try_model(
    spec: AttributeSpec, forward: Forward, sample: RowTensors
) -> tuple[Tensor, list[str]]:
    points = [x.clone().requires_grad_() for x in sample.inputs]
    with real_rows(forward, [*points, *sample.forward_args]), torch.enable_grad():
        out = on_copies(forward, *points, *sample.forward_args)
    if not isinstance(out, Tensor):
        check_output(out, sample.rows, None)
    if not torch.isfinite(out).all():
        warnings = [
            "the model's output is NaN or inf on some of the first rows: they will be `nonfinite`"
        ]
    else:
        warnings = []
    if out.is_floating_point() and torch.finfo(out.dtype).eps > torch.finfo(points[0].dtype).eps:
        warnings.append(
            f"the model returns {str(out.dtype)[6:]} although precision is"
            f" {spec.compute.precision}: something in it casts down"
        )
    unused = unused_inputs(out, points)
    warnings += [
        f"the output does not depend on input `{spec.inputs[i].name}`: its attributions are zeros"
        for i in unused
    ]
    gradients = torch.autograd.grad(
        on_copies(forward, *points, *sample.forward_args).sum(), points, allow_unused=True
    )
    if all(g is None or not g.any() for g in gradients):
        warnings.append(
            "every gradient is zero on the first rows: is the output rounded, clamped or saturated?"
        )
    return out.detach(), warnings


def _batch_rows(spec: AttributeSpec, row_bytes: int, model: Forward) -> int:
    if spec.compute.batch_rows != "auto":
        return spec.compute.batch_rows
    if isinstance(model, Portions):
        return model.rows
    if row_bytes > spec.compute.memory:
        raise SpecError(
            "compute.memory",
            expected=(
                f"at least {row_bytes / 2**20:.0f} MiB: what one row keeps for its backward pass"
            ),
            seen=f"{spec.compute.memory / 2**20:.0f} MiB",
            next_step="raise compute.memory, or run where there is more",
        )
    return step_batch_rows(row_bytes, spec.compute.memory)


def _cost(
    spec: AttributeSpec, forward: Forward, sample: RowTensors, batch_rows: int, batch_s: float
) -> tuple[float, float]:
    """Evaluations and seconds per output row, tried on the sample where that is quick."""
    most = _most_evaluations(spec.accuracy)
    mean = float(most)
    if isinstance(spec.accuracy, Adaptive) and sample.rows * most / batch_rows * batch_s <= TRIAL_S:
        found = attribute(
            forward,
            sample.inputs,
            baselines=sample.baselines,
            target=sample.target,
            forward_args=sample.forward_args,
            accuracy=spec.accuracy,
            batch_rows=batch_rows,
            checked=True,
        )
        mean = max(1.0, float(found.evaluations.double().mean()))
    return mean, (mean + 1) * batch_s / batch_rows * 1.2


def _memory(spec: AttributeSpec, sample: RowTensors, row_bytes: int, batch_rows: int) -> int:
    """Bytes of one worker: the process as it is now, one step batch, and the sums of live rows."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    elements = sum(x[0].numel() for x in sample.inputs)
    fixed = isinstance(spec.accuracy, FixedSteps)
    live = live_rows(batch_rows, _most_evaluations(spec.accuracy) if fixed else FIRST)
    return int(
        process
        + 2 * row_bytes * batch_rows
        + live * elements * (8 if fixed else KEPT_BYTES_PER_ELEMENT)
    )


def _most_evaluations(accuracy: Accuracy) -> int:
    if isinstance(accuracy, Exact):
        return 1
    return (
        len(plain_rule(accuracy).nodes)
        if isinstance(accuracy, FixedSteps)
        else accuracy.max_evaluations
    )
