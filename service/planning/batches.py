"""The step batch of a plan: one that the model takes, and in which rows keep their bits wherever
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from integrand.schemas.errors import IntegrandError, SpecError
from integrand.schemas.specs.accuracy import Exact
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.forms import Form
from integrand.service.planning.sample import one_target
from integrand.service.planning.trials import StepTrial, repeats_bits, seconds_per_batch, step_trial
from integrand.workers.closed_form.integral import BLOCK
from integrand.workers.engine.batching import halves
from integrand.workers.engine.evaluator import is_out_of_memory
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.row_results import NUMBERS, RowResults
from integrand.workers.kernels import in_force, objection
from integrand.workers.methods.exact import ExactMethod
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.repeatability import Repeatability, measure_repeatability
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.switches import nondeterministic_operations

FEWEST = 16
"""Rows below which a step batch is not taken for the sake of bits that were merely preferred."""
SHRINK = 4
"""By how much it may shrink for them."""
FILLED_UP = (
    "linear layers run with their widths filled up to multiples of 16: as they are, a row's last"
    " bits depend on its place"
)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """What was chosen: the model as it runs, its rows, and why a row's bits depend on its place, if
    they do.
    """

    form: Form
    rows: int
    lowered: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked: a model, a few rows, and how much bits matter.

    remedy  the model rewritten so that kernels may leave rows' places out of account; None where
            there is no such way
    """

    spec: AttributeSpec
    form: Form
    sample: RowTensors
    remedy: Callable[[], Form | None]

    @property
    def gradients(self) -> bool:
        """Whether step batches take gradients."""
        return method_of(self.spec.accuracy, self.spec.method).needs_gradients

    @property
    def insisting(self) -> bool:
        return insists(self.spec)

    @property
    def free(self) -> bool:
        """Whether the number of rows is ours to choose."""
        return self.spec.compute.batch_rows == "auto"

    def trial(self, form: Form, rows: int) -> StepTrial:
        """A step batch of that many rows."""
        return step_trial(form.prepared, self.sample, rows, gradients=self.gradients)


def choose_batch(asked: Question, planned: int) -> StepBatch:
    """The step batch of at most `planned` rows: a function of model, kernels and rows, never of a
    timing.

    Where rows keep their bits, `planned` as far as the model takes so many. Else a remedy, and
    somewhat fewer rows. Else under `prefer` all of them, and the reason; otherwise the most in
    which they do, and the price.

    Raises SpecError for models that are random, mix rows, or take no such batch, and where bits are
    insisted on, for a `compute.batch_rows` or an operation that breaks them.
    """
    size = _fitting(asked, planned)
    operations = _nondeterministic(asked, size)
    if operations:
        return _whatever_its_bits(asked, size, operations)
    found = _measured(asked, asked.form, size)
    if found is None:
        return StepBatch(asked.form, size)
    better = asked.remedy()
    if better is not None and _measured(asked, better, size) is None:
        return StepBatch(better, size, warnings=(FILLED_UP,))
    smaller = _smaller(asked, size)
    if smaller is not None:
        return replace(smaller, warnings=(_price(asked, smaller.rows, size),))
    if asked.insisting:
        raise _refused(size)
    reason = (
        f"a row's last bits depend on its place in a step batch of {size:,} rows ({_moved(found)})"
    )
    return StepBatch(asked.form, size, reason, (f"{reason}; {_advice()}",))


def judge_closed_form(asked: Question, planned: int) -> StepBatch:
    """For an integral in closed form, which takes no step batches: whether its rows keep their
    bits, in any order.

    Raises SpecError where they do not and bits are insisted on, and for models that mix rows.
    """
    measure_repeatability(asked.form.prepared, path_points(asked.sample), 16).check()
    if keeps_order(asked.form.prepared, asked.sample):
        return StepBatch(asked.form, planned)
    reason = (
        f"a row's last bits depend on its place among the {BLOCK} that the closed form takes at"
        " once"
    )
    if asked.insisting:
        raise SpecError(
            f"compute.reproducible: {asked.spec.compute.reproducible}",
            expected="rows that keep their bits",
            seen=reason,
            next_step=f"take `prefer`; {_advice()}",
        )
    return StepBatch(asked.form, planned, reason, (f"{reason}; {_advice()}",))


def insists(spec: AttributeSpec) -> bool:
    """Whether a job would rather not run than lose bits."""
    return spec.compute.reproducible != "prefer"


def keeps_order(prepared: Prepared, sample: RowTensors) -> bool:
    """Whether rows in closed form are the same in reverse order: the sample's, over and over."""
    rows = sample.repeat(3 * BLOCK // 4)
    order = np.arange(rows.rows)[::-1].copy()
    turned = rows.take(torch.from_numpy(order).to(rows.device))
    there = _in_closed_form(prepared, rows)
    back = _in_closed_form(prepared, turned).take(order)
    pairs = zip(_columns(there), _columns(back), strict=True)
    return all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


def _in_closed_form(prepared: Prepared, rows: RowTensors) -> RowResults:
    method = ExactMethod(Exact())
    return explain(prepared, one_target(rows), method, batch_rows=FEWEST).results


def _columns(found: RowResults) -> list[NDArray[Any]]:
    """Attributions, and the diagnostics in float64 of which they may be rounded."""
    diagnostics = [getattr(found, name) for name in NUMBERS]
    return [*found.attributions, *diagnostics]


def _smaller(asked: Question, size: int) -> StepBatch | None:
    """The largest batch in which rows keep their bits: down to one row if that is insisted on, else
    not much smaller.
    """
    if not asked.free:
        return None
    fewest = 1 if asked.insisting else max(FEWEST, size // SHRINK)
    for rows in halves(size // 2, fewest):
        if _error_at(asked, rows) is None and _measured(asked, asked.form, rows) is None:
            return StepBatch(asked.form, rows)
    return None


def _price(asked: Question, rows: int, planned: int) -> str:
    """What the smaller batch is for, and what it costs."""
    small = seconds_per_batch(asked.trial(asked.form, rows)) / rows
    full = seconds_per_batch(asked.trial(asked.form, planned)) / planned
    return (
        f"batch_rows is {rows:,}, not {planned:,}, in which a row's last bits depend on its place:"
        f" an evaluation takes {small / full:.1f} times as long; `compute.reproducible: prefer`"
        f" with `batch_rows: {planned}` gives them up"
    )


def _nondeterministic(asked: Question, size: int) -> str:
    """Names of the operations of a step batch that torch has in no deterministic form."""
    with nondeterministic_operations() as names:
        asked.trial(asked.form, size).run()
    return ", ".join(sorted(names))


def _whatever_its_bits(asked: Question, size: int, operations: str) -> StepBatch:
    """The full step batch of a model whose bits may be others in every run, by rounding alone.

    Raises SpecError where bits are insisted on, and for models that are random or mix rows.
    """
    reason = (
        f"torch has no deterministic form of {operations} on {asked.sample.device.type}, which the"
        " model uses: last bits may be others in every run"
    )
    if asked.insisting:
        raise SpecError(
            f"compute.reproducible: {asked.spec.compute.reproducible}",
            expected="operations that give the same bits in every run",
            seen=reason,
            next_step=(
                "take `prefer`, which ends the run with `determinism: tolerance`; replace the"
                " operation in the model, or run where it has such a form"
            ),
        )
    points = path_points(asked.sample)
    prepared, rows = asked.form.prepared, max(2, size)
    found = measure_repeatability(prepared, points, rows, gradients=asked.gradients)
    if not found.steady:
        found.check()
    return StepBatch(asked.form, size, reason, (reason,))


def _refused(size: int) -> SpecError:
    return SpecError(
        "compute.reproducible",
        expected=(
            "a step batch in which a row's bits do not depend on its place, and "
            f"batch_rows is {size}"
        ),
        seen="rows that round differently from place to place",
        next_step=(
            f"take `batch_rows: auto`, which finds one, or `reproducible: prefer`; {_advice()}"
        ),
    )


def _moved(found: Repeatability) -> str:
    if found.bitwise:
        return "as gradients are taken"
    return f"by up to {max(found.outputs, found.gradients):.1g} of the largest"


def _advice() -> str:
    return objection(in_force()) or (
        "this model's kernels round by place on this processor: `compute.reproducible: require` "
        "looks for the largest step batch in which they do not"
    )


def _measured(asked: Question, form: Form, size: int) -> Repeatability | None:
    """How rows differ from place to place; None where not by a bit. Raises SpecError for random and
    coupled models.
    """
    points = path_points(asked.sample)
    found = measure_repeatability(form.prepared, points, max(2, size), gradients=asked.gradients)
    found.check()
    if size == 1:
        return None
    stepping = form.prepared.step is not None
    repeats = found.bitwise and (not stepping or repeats_bits(asked.trial(form, size)))
    return None if repeats else found


def path_points(sample: RowTensors) -> RowTensors:
    """Each row at three places between its baseline and itself, where step batches will be."""
    points = []
    for x, baseline in zip(sample.inputs, sample.baselines, strict=True):
        places = [torch.lerp(baseline, x, at) for at in (1.0, 0.5, 0.25)]
        points.append(torch.cat(places))
    thrice = sample.repeat(3 * sample.rows)
    return replace(thrice, inputs=tuple(points))


# --- numbers of rows that a model takes --------------------------------------------------------


def _fitting(asked: Question, planned: int) -> int:
    """The most rows up to `planned` that the model takes. Raises SpecError where it takes none, or
    not those asked for.
    """
    errors: dict[int, Exception] = {}
    for size in halves(planned, 1 if asked.free else planned):
        error = _error_or_lack_at(asked, size)
        if error is None:
            return size
        errors[size] = error
    found = list(errors.values())
    if is_out_of_memory(found[-1]):
        raise found[-1]
    raise no_batch(list(errors), found[0]) from found[0]


def _error_at(asked: Question, size: int) -> Exception | None:
    """What a step batch of that many rows raises; None where it runs."""
    return error_of(lambda: asked.trial(asked.form, size).run())


def _error_or_lack_at(asked: Question, size: int) -> Exception | None:
    """The same, or how memory runs out."""
    try:
        return _error_at(asked, size)
    except (MemoryError, RuntimeError) as error:
        # without the frames, which hold on to what filled the memory
        lack = error.with_traceback(None)
    torch.cuda.empty_cache()
    return lack


def error_of(run: Callable[[], object]) -> Exception | None:
    """What a model raises on a number of rows; None where it runs. Refusals and a lack of memory
    are raised: they are not about that number.
    """
    try:
        run()
    except IntegrandError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error
    return None


def no_batch(sizes: Sequence[int], error: Exception) -> SpecError:
    """For a model that ran on a few rows, and on none of these numbers of them."""
    tried = ", ".join(f"{n:,}" for n in sizes[:12])
    return SpecError(
        "compute.batch_rows",
        expected="a number of rows that the model takes at once",
        seen=(
            f"{type(error).__name__} for batches of {tried} rows:"
            f" {' '.join(str(error).split())[:300]}"
        ),
        next_step=(
            "name a number that it takes as compute.batch_rows, or let it take any: follow"
            " x.shape[0], and export with a dynamic first dimension"
        ),
    )
