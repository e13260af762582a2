"""`attribute`: Integrated Gradients of a batch of tensors, with an error estimate and a status for
every row.

The same function runs in a notebook and inside every shard of a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.closed_form.recognition import ShallowNetwork
from integrand.workers.engine.autocast import measure_rounding
from integrand.workers.engine.batching import SMALLEST, activation_bytes, step_batch_rows
from integrand.workers.engine.evaluator import Evaluator, Floats, Problem, endpoint_values, lifted
from integrand.workers.engine.loop import Verdicts
from integrand.workers.engine.prepared import Prepared, assemble, closed_form, work_of
from integrand.workers.engine.results import Attribution, Report, Tensors
from integrand.workers.kernels import warn_once
from integrand.workers.methods.adaptive import integrate_adaptively
from integrand.workers.methods.exact import TOLERANCE, integrate_network
from integrand.workers.methods.fixed import integrate_fixed
from integrand.workers.methods.probing import Call, check_eval, check_rows_apart, explained, probe
from integrand.workers.models.outputs import Forward, Target, target_tables
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.rules import plain_rule
from integrand.workers.quadrature.smooth import FIRST
from integrand.workers.rewriting.choosing import choose

__all__ = ["Attribution", "attribute", "prepare"]
NOTEBOOK_MEMORY = 512 << 20


def attribute(
    forward: Forward,
    inputs: Tensors,
    *,
    baselines: Tensors | float | None = None,
    target: Target = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
    batch_rows: int | None = None,
    tick: Callable[[], None] = lambda: None,
    checked: bool = False,
) -> Attribution:
    """Integrated Gradients of `forward` at `inputs` against `baselines`. Sundararajan, Taly & Yan
    2017.

    inputs        a floating tensor `[rows, ...]` or a tuple of them, passed to `forward` in order
    baselines     None for zeros, a number, or tensors shaped like inputs with `rows` rows or 1; one
                  for each input in a tuple
    target        None for outputs `[rows]` or `[rows, 1]`; an index; a tuple of indices for tensor
                  outputs; or an int64 tensor `[rows]` (`[rows, depth]`) with one target per row. A
                  list of these explains several targets from shared forward passes: results are
                  then `[rows, targets, ...]`
    forward_args  tensors `[rows, ...]` passed after the inputs and not attributed
    accuracy      Adaptive(tolerance, max_evaluations) by default, FixedSteps(rule, steps), or
                  Exact(). Adaptive takes the closed form too where the model is a ReLU network of
                  at most two hidden layers
    batch_rows    rows of a step batch; the same value gives the same bits whatever rows are beside
                  a row
    tick          called after each step batch, for progress
    checked       True where a plan has run the model already: eval mode and dependence are not
                  probed again

    Raises SpecError or DataError (both ValueErrors) that say what to change. Rows with NaN or inf
    do not raise: they come back as `bad_input` or `nonfinite`.
    """
    chosen = accuracy or Adaptive()
    if batch_rows is not None and batch_rows < 1:
        raise SpecError(
            "batch_rows",
            expected="at least 1, or None",
            seen=str(batch_rows),
            next_step="leave it out",
        )
    with torch.inference_mode(False):
        xs = _tensors("inputs", inputs)
        _check_inputs(xs)
        bs = _baselines(xs, baselines)
        arguments = _forward_args(forward_args, xs)
        targets = target_tables(target, xs[0].shape[0])
        targets = None if targets is None else targets.to(xs[0].device)
        tensors = RowTensors(xs, bs, arguments, targets)
        call = Call(forward, tensors, batch_rows)
        if not checked:
            warn_once()
            check_eval(forward)
            probe(call)
        with explained(call, 2 * min(2, call.rows)):
            size = (
                _notebook_batch(forward, xs, arguments, chosen)
                if batch_rows is None
                else batch_rows
            )
        problem = Problem(forward, tensors, size, tick)
        report = Report(problem)
        with nullcontext() if checked else explained(call, size):
            padded, used = _explain(problem, chosen, _prepared(forward, problem, chosen), report)
        if not checked and (report.results.status == RowStatus.not_converged).any():
            check_rows_apart(call)
        return report.result(
            inputs, several=isinstance(target, list), padded=padded, batch_rows=used
        )


def prepare(
    model: nn.Module,
    inputs: Tensors,
    *,
    baselines: Tensors | float | None = None,
    target: Target = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
) -> Prepared:
    """What a job's plan does once for its workers: the model with the savings that hold on these
    rows.

    A few rows will do. `attribute` takes the result in place of the model, for inputs of the same
    shapes. Verification runs the model in float64. Raises like `attribute`.
    """
    chosen = accuracy or Adaptive()
    with torch.inference_mode(False):
        xs = _tensors("inputs", inputs)
        _check_inputs(xs)
        check_eval(model)
        bs, arguments, targets = (
            _baselines(xs, baselines),
            _forward_args(forward_args, xs),
            target_tables(target, len(xs[0])),
        )
        targets = None if targets is None else targets.to(xs[0].device)
        tensors = RowTensors(xs, bs, arguments, targets)
        found = _prepared(model, Problem(model, tensors, 1), chosen)
        if found.network is not None:
            return found
        rows = replace(tensors, target=None if targets is None else targets[:, 0])
        return assemble(model, "none", choose(model, rows, work_of(chosen)), xs, arguments)


def _explain(
    problem: Problem, accuracy: Accuracy, prepared: Prepared, report: Report
) -> tuple[int, int]:
    """Fill the report; the padded evaluations, and the rows of a step batch as they were at the
    end.
    """
    clean = report.set_bad_inputs()
    if not len(clean):
        return 0, problem.batch_rows
    if not isinstance(accuracy, FixedSteps) and prepared.network is not None:
        tolerance = accuracy.tolerance if isinstance(accuracy, Adaptive) else TOLERANCE
        verdicts, ends = integrate_network(prepared.network, problem, clean, tolerance)
        report.set_endpoints(clean, *ends)
        report.set_unmoved(clean)
        report.take(verdicts, accuracy)
        return 0, problem.batch_rows
    assert not isinstance(accuracy, Exact)
    evaluator = Evaluator(replace(problem, step=prepared.step, half=prepared.half))
    ends = endpoint_values(evaluator, clean)
    report.set_endpoints(clean, *ends)
    moving = report.set_unmoved(clean)
    inner = Evaluator(lifted(evaluator, prepared.hoisted)) if prepared.hoisted else evaluator
    report.take(
        _integrate(inner, accuracy, clean[moving], ends[0][moving], ends[1][moving]), accuracy
    )
    return inner.padded, min(evaluator.capacity, inner.capacity)


def _integrate(
    evaluator: Evaluator,
    accuracy: Adaptive | FixedSteps,
    rows: Tensor,
    f_input: Floats,
    f_baseline: Floats,
) -> Iterator[Verdicts]:
    if isinstance(accuracy, Adaptive):
        if evaluator.problem.half is not None:
            evaluator.problem = replace(
                evaluator.problem, rounding=measure_rounding(evaluator, rows)
            )
        return integrate_adaptively(evaluator, accuracy, rows, f_input, f_baseline)
    return integrate_fixed(evaluator, plain_rule(accuracy), rows, f_input, f_baseline)


def _prepared(forward: Forward, problem: Problem, accuracy: Accuracy) -> Prepared:
    """The forward as given, with its closed form where one applies. Raises SpecError where one is
    asked for in vain.
    """
    if isinstance(forward, Prepared) or isinstance(accuracy, FixedSteps):
        found = forward if isinstance(forward, Prepared) else Prepared(forward)
        reason = "the job was planned without"
    else:
        network = _closed_form(forward, problem, accuracy)
        found, reason = (
            (Prepared(forward), network)
            if isinstance(network, str)
            else (Prepared(forward, network=network), "")
        )
    if isinstance(accuracy, Exact) and found.network is None:
        raise no_closed_form(reason)
    return found


def _closed_form(forward: Forward, problem: Problem, accuracy: Accuracy) -> ShallowNetwork | str:
    depth = 0 if problem.targets is None else problem.targets.shape[2]
    if len(problem.inputs) > 1 or problem.forward_args or depth > 1:
        return "several inputs, forward_args or a tensor output"
    if isinstance(accuracy, Adaptive) and problem.device.type != "cpu":
        return "it runs on the CPU"
    x = problem.inputs[0]
    rows = x[torch.isfinite(x).reshape(len(x), -1).all(1)][:8]
    return closed_form(forward, rows) if len(rows) else "no finite row"


def no_closed_form(reason: str) -> SpecError:
    return SpecError(
        "accuracy.kind exact",
        expected=(
            "a ReLU network of at most two hidden layers, explained before any output transform"
        ),
        seen=reason,
        next_step="use `adaptive`, which certifies an error estimate",
    )


# --- validation --------------------------------------------------------------------------------


def _tensors(name: str, value: Tensors) -> tuple[Tensor, ...]:
    found = value if isinstance(value, tuple) else (value,)
    wrong = [type(v).__name__ for v in found if not isinstance(v, Tensor)]
    if wrong or not found:
        raise SpecError(
            name,
            expected="a tensor or a tuple of tensors",
            seen=", ".join(wrong) or "an empty tuple",
            next_step="convert with torch.as_tensor; several go in a tuple",
        )
    # Autograd cannot save what was made in inference mode; a copy made outside of it is an ordinary
    # tensor.
    return tuple(v.clone() if v.is_inference() else v.detach() for v in found)


def _check_inputs(xs: Sequence[Tensor]) -> None:
    for i, x in enumerate(xs):
        if x.dtype not in (torch.float32, torch.float64):
            step = (
                "attribute at the embedding's output with at_embedding, or cast with .float()"
                if not x.is_floating_point()
                else "cast with .float(); half precision cannot carry the sums"
            )
            raise SpecError(
                f"inputs[{i}]", expected="float32 or float64", seen=str(x.dtype), next_step=step
            )
        if x.ndim < 1 or x.shape[0] == 0:
            raise DataError(
                f"inputs[{i}]",
                expected="at least one row",
                seen=f"shape {list(x.shape)}",
                next_step="skip empty batches",
            )
        if x[0].numel() == 0:
            raise DataError(
                f"inputs[{i}]",
                expected="at least one element per row",
                seen=f"shape {list(x.shape)}",
                next_step="leave out the empty input",
            )
        if x.shape[0] != xs[0].shape[0] or x.device != xs[0].device:
            raise SpecError(
                f"inputs[{i}]",
                expected=f"{xs[0].shape[0]} rows on {xs[0].device}",
                seen=f"{x.shape[0]} rows on {x.device}",
                next_step="give every input the same rows and device",
            )


def _baselines(xs: tuple[Tensor, ...], baselines: Tensors | float | None) -> tuple[Tensor, ...]:
    if _is_number(baselines):
        return tuple(torch.full_like(x[:1], float(baselines or 0)) for x in xs)  # type: ignore[arg-type]
    if isinstance(baselines, tuple) and len(baselines) == len(xs):
        baselines = tuple(
            torch.full_like(x[:1], float(b or 0)) if _is_number(b) else b
            for b, x in zip(baselines, xs, strict=True)
        )
    given = _tensors("baselines", baselines)  # type: ignore[arg-type]
    if len(given) != len(xs):
        raise SpecError(
            "baselines",
            expected=f"{len(xs)} tensors, one per input",
            seen=str(len(given)),
            next_step="pass a tuple with one baseline for each input, or one number for all",
        )
    for i, (b, x) in enumerate(zip(given, xs, strict=True)):
        if b.shape[1:] != x.shape[1:] or b.shape[0] not in (1, x.shape[0]):
            raise SpecError(
                f"baselines[{i}]",
                expected=f"shape {list(x.shape)} or {[1, *x.shape[1:]]}",
                seen=f"{list(b.shape)}",
                next_step="add the row dimension with baseline[None]",
            )
    return tuple(b.to(x) for b, x in zip(given, xs, strict=True))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, Real | np.number) and not isinstance(value, bool))


def _forward_args(forward_args: Tensors, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    given = (
        _tensors("forward_args", forward_args)
        if not (isinstance(forward_args, tuple) and not forward_args)
        else ()
    )
    for i, a in enumerate(given):
        if a.ndim == 0 or a.shape[0] != xs[0].shape[0]:
            raise SpecError(
                f"forward_args[{i}]",
                expected=f"{xs[0].shape[0]} rows",
                seen=f"shape {list(a.shape)}",
                next_step="close over what is the same for all rows: lambda x: model(x, mask)",
            )
    return given


def _notebook_batch(
    forward: Forward, xs: tuple[Tensor, ...], arguments: tuple[Tensor, ...], accuracy: Accuracy
) -> int:
    """The planned size, or less where all rows together ask for less in their first pass."""
    probe = min(2, xs[0].shape[0])
    row_bytes = activation_bytes(forward, [x[:probe] for x in xs], [a[:probe] for a in arguments])
    first = len(plain_rule(accuracy).nodes) if isinstance(accuracy, FixedSteps) else FIRST
    wanted = -(-xs[0].shape[0] * first // SMALLEST) * SMALLEST
    return min(max(SMALLEST, wanted), step_batch_rows(row_bytes, NOTEBOOK_MEMORY))
