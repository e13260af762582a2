"""What is tried on a few real rows before any worker starts, and what a plan takes from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from integrand.schemas.errors import SpecError
from integrand.schemas.quantiles import Quantiles
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.batches import (
    Question,
    StepBatch,
    choose_batch,
    insists,
    judge_closed_form,
    keeps_order,
)
from integrand.service.planning.contract import baseline_warnings, first_pass
from integrand.service.planning.cost import (
    WorkerMemory,
    affordable_rows,
    evaluations_per_row,
    memory_of,
    row_cost,
    seconds_per_row,
    worker_memory,
)
from integrand.service.planning.forms import Form, aligned_form, choose_form, stepping_form
from integrand.service.planning.ladder import smaller_batches
from integrand.service.planning.promises import promise_warnings
from integrand.service.planning.sample import enough_memory, real_rows
from integrand.service.planning.trials import (
    check_compiled,
    rounding_seen,
    seconds_per_batch,
    step_trial,
)
from integrand.workers.engine.reduced import REDUCED
from integrand.workers.engine.rounding import CAUTION, LEAST
from integrand.workers.methods.adaptive import until_reasons
from integrand.workers.methods.base import Method
from integrand.workers.methods.table import method_of
from integrand.workers.models.outputs import Forward
from integrand.workers.models.portions import Portions
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import Candidates
from integrand.workers.rewriting.savings import Savings

SPOILT = 0.01
"""Relative error by TF32 that is too much where no tolerance was asked for: smooth networks stay
below a thousandth, deep ReLU networks were off by 5 to 13%.
"""


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What the trial showed.

    outputs  the width of the model's output, where it has one axis behind its rows
    sizes    its sizes there, where several columns name a place in it and they are always the same
    smaller  numbers of rows below `batch_rows` in which rows keep their bits
    lowered  why a row's bits depend on its place; None where they do not
    """

    batch_rows: int
    smaller: tuple[int, ...]
    outputs: int | None
    sizes: tuple[int, ...]
    batch_s: float
    evaluations_per_row: float
    seconds_per_row: float
    memory: WorkerMemory
    warnings: tuple[str, ...]
    exact: bool
    savings: Savings
    half_error: Quantiles | None
    lowered: str | None = None


def examine(
    spec: AttributeSpec,
    model: Forward,
    sample: RowTensors,
    *,
    varying: bool = False,
    candidates: Candidates | None = None,
    counted: bool = True,
) -> PlanFacts:
    """Try the model on real rows. Raises SpecError for whatever cannot work, with its
    likely cause.

    varying     whether other rows have other lengths than those of the sample
    candidates  what may be a reason, where rows get some
    counted     whether the baselines are those of the job, and no stand-ins for what a pass over
                the data has yet to find
    """
    method = until_reasons(method_of(spec.accuracy, spec.method), candidates)
    rows, sizes, warnings = first_pass(spec, model, sample)
    width = sizes[0] if len(sizes) == 1 else None
    method.check(model, rows)
    sample = rows.first_draw()
    if counted:
        warnings += baseline_warnings(spec, model, rows)
    form = choose_form(spec, model, sample)
    if form.exact and not method.needs_closed_form and _loses_bits(spec, form, sample):
        form = stepping_form(spec, model, sample)  # step batches may keep the bits
        warnings.append("the closed form is not taken: a row's last bits depend on its place there")
    # twice as many rows are tried here
    with real_rows(model, sample.arguments):
        row = row_cost(method, form.prepared, sample, spec.target.per_row(width))
    budget = memory_of(spec, sample.device)
    asked = Question(spec, form, sample, partial(aligned_form, spec, model, sample, form.savings))
    with enough_memory(sample.device):
        chosen = _step_batch(asked, affordable_rows(spec, budget, row, model))
    one_size = varying or _of_one_size(spec, model, form)
    smaller = () if one_size else smaller_batches(asked, chosen)
    prepared, batch_rows = chosen.form.prepared, chosen.rows
    half_error = rounding_seen(prepared, sample, batch_rows) if prepared.reduced else None
    check_rounding(spec, method, half_error)
    warnings += promise_warnings(method, prepared, rows, batch_rows)
    gradients = method.needs_gradients
    at_once = method.rows_of_pass(batch_rows, rows.draws)
    trial = step_trial(prepared, sample, at_once, gradients=gradients)
    batch_s = seconds_per_batch(trial)
    evaluations = evaluations_per_row(method, prepared, rows, at_once, batch_s, smaller=smaller)
    return PlanFacts(
        batch_rows=batch_rows,
        smaller=smaller,
        outputs=width,
        sizes=() if varying or spec.target.depth == 1 else sizes,
        batch_s=batch_s,
        evaluations_per_row=evaluations,
        seconds_per_row=seconds_per_row(evaluations, at_once, batch_s),
        memory=worker_memory(method, row, batch_rows),
        warnings=(*warnings, *chosen.warnings, *_rounding_warnings(spec, method, half_error)),
        exact=form.exact,
        savings=chosen.form.savings,
        half_error=half_error,
        lowered=chosen.lowered,
    )


def _of_one_size(spec: AttributeSpec, model: Forward, form: Form) -> bool:
    """Whether step batches of fewer rows are none or cost more: in closed form; of a model that
    takes one number of rows, or is compiled anew for each.
    """
    return form.exact or spec.compute.compile or isinstance(model, Portions)


def _loses_bits(spec: AttributeSpec, form: Form, sample: RowTensors) -> bool:
    """Whether a closed form breaks bits that are insisted on."""
    return insists(spec) and not keeps_order(form.prepared, sample)


def _step_batch(asked: Question, planned: int) -> StepBatch:
    if asked.spec.compute.compile:
        check_compiled(asked.trial(asked.form, planned))
    if asked.form.exact:
        return judge_closed_form(asked, planned)
    return choose_batch(asked, planned)


def check_rounding(spec: AttributeSpec, method: Method[Any], seen: Quantiles | None) -> None:
    """Raises SpecError for a model that TF32 spoils, as it does deep ReLU networks: where an
    adaptive method would have nothing left of its tolerance for half of the rows.
    """
    if spec.compute.precision != "tf32" or seen is None or seen.p50 is None:
        return
    most = SPOILT if method.tolerance is None else method.tolerance / CAUTION
    if seen.p50 < most:
        return
    moved = f"{seen.p50:.2g} (median) to {seen.max or 0:.2g}"
    if method.tolerance is None:
        remedy = "set compute.precision: float32"
    else:
        least = CAUTION * seen.p50
        remedy = f"set compute.precision: float32, or a tolerance above {least:.1g}"
    raise SpecError(
        "compute.precision: tf32",
        expected=(
            f"rounding that moves half of the rows' attributions by less than {most:.2g} of their"
            " size"
        ),
        seen=f"the first rows moved by {moved}, against float32 at the same nodes",
        next_step=remedy,
    )


def _rounding_warnings(
    spec: AttributeSpec, method: Method[Any], seen: Quantiles | None
) -> list[str]:
    """What reduced precision does to the first rows, and to what can be certified."""
    precision = spec.compute.reduced
    if seen is None or not precision:
        return []
    found = [
        f"{precision} moves the attributions of the first rows by {seen.p50 or 0:.2g} (median) to"
        f" {seen.max or 0:.2g} of their size, against float32 at the same nodes"
    ]
    least = LEAST * REDUCED[precision].epsilon
    if method.tolerance is not None and method.tolerance <= least:
        found.append(
            f"no row can be certified to {method.tolerance:g} under {precision}, whose"
            f" rounding counts for {least:.2g} or more: rows will be `at_precision_floor`"
        )
    return found
