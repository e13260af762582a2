"""`attribute`: Integrated Gradients of a batch of tensors, with an error estimate and a status for every row.

The same function runs in a notebook and inside every shard of a job.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs import Adaptive, FixedSteps
from integrand.schemas.tables import WITHOUT_ATTRIBUTION, RowStatus
from integrand.workers.batching import activation_bytes, step_batch_rows
from integrand.workers.engine import (
    Judge,
    Problem,
    Sums,
    Verdict,
    endpoint_values,
    independent_of_inputs,
    integrate,
)
from integrand.workers.outputs import Forward, Target, check_output, target_table
from integrand.workers.quadrature import build_rule

Tensors = Tensor | tuple[Tensor, ...]
NOTEBOOK_MEMORY = 512 << 20


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attributions and diagnostics, one entry per row.

    attributions    like `inputs`: `[rows, ...]` in the inputs' dtype, units of f; NaN where the row has none
    f_input         f(x), `[rows]` float64
    f_baseline      f(x'), `[rows]` float64
    gap             Σ attributions − (f(x) − f(x')), `[rows]` float64, units of f, signed
    error_estimate  estimated ‖a − a*‖₁ / ‖a‖₁, `[rows]` float64; NaN where the rule gives none
    evaluations     gradient evaluations of the row as if alone, `[rows]` int32
    status, reason  what became of each row, and why if it is not ok
    padded          gradient evaluations that only filled step batches up
    """

    attributions: Tensors
    f_input: Tensor
    f_baseline: Tensor
    gap: Tensor
    error_estimate: Tensor
    evaluations: Tensor
    status: tuple[RowStatus, ...]
    reason: tuple[str | None, ...]
    padded: int = 0


def attribute(forward: Forward, inputs: Tensors, *, baselines: Tensors | float | None = None, target: Target = None,
              forward_args: Tensors = (), accuracy: Adaptive | FixedSteps | None = None, batch_rows: int | None = None,
              tick: Callable[[], None] = lambda: None, checked: bool = False) -> Attribution:  # fmt: skip
    """Integrated Gradients of `forward` at `inputs` against `baselines`. Sundararajan, Taly & Yan 2017.

    inputs        a floating tensor `[rows, ...]` or a tuple of them, passed to `forward` in order
    baselines     None for zeros, a number, or tensors shaped like inputs with `rows` rows or 1
    target        None for outputs `[rows]` or `[rows, 1]`; an index; a tuple of indices for tensor outputs; or an
                  int64 tensor `[rows]` (`[rows, depth]`) with one target per row
    forward_args  tensors `[rows, ...]` passed after the inputs and not attributed
    accuracy      Adaptive(tolerance, max_evaluations) by default, or FixedSteps(rule, steps)
    batch_rows    rows of a step batch; the same value gives the same bits whatever rows are beside a row
    tick          called after each step batch, for progress
    checked       True where a plan has run the model already: eval mode and dependence are not probed again

    Raises SpecError or DataError (both ValueErrors) that say what to change. Rows with NaN or inf do not raise: they
    come back as `bad_input` or `nonfinite`.
    """
    chosen = accuracy or Adaptive()
    if batch_rows is not None and batch_rows < 1:
        raise SpecError("batch_rows", expected="at least 1, or None", seen=str(batch_rows), next_step="leave it out")
    with torch.inference_mode(False):
        xs = _tensors("inputs", inputs)
        _check_inputs(xs)
        bs = _baselines(xs, baselines)
        arguments = _forward_args(forward_args, xs)
        targets = target_table(target, xs[0].shape[0])
        targets = None if targets is None else targets.to(xs[0].device)
        if not checked:
            _check_eval(forward)
            _probe(forward, xs, arguments, targets)
        size = _notebook_batch(forward, xs, arguments, chosen) if batch_rows is None else batch_rows
        problem = Problem(forward, xs, bs, arguments, targets, size, tick)
        return _explain(problem, chosen, like=inputs)


def _explain(problem: Problem, accuracy: Adaptive | FixedSteps, *, like: Tensors) -> Attribution:
    report = _Report(problem)
    clean = report.set_bad_inputs()
    if len(clean):
        f_input, f_baseline = endpoint_values(problem, clean)
        report.set_endpoints(clean, f_input, f_baseline)
        moving = report.set_unmoved(clean)
        rule, judge = build_rule(accuracy), _judge(accuracy)
        verdicts = integrate(problem, rule, judge, clean[moving], f_input[moving], f_baseline[moving])
        report.take(verdicts, accuracy)
    return report.result(like)


def _judge(accuracy: Adaptive | FixedSteps) -> Judge:
    """What ends a row: a fixed rule's only level, or difference and gap both within the tolerance."""
    if isinstance(accuracy, FixedSteps):
        return lambda sums: [RowStatus.unchecked if ok else RowStatus.nonfinite for ok in sums.finite]
    return lambda sums: _adaptive_statuses(sums, accuracy.tolerance)


def _adaptive_statuses(sums: Sums, tolerance: float) -> list[RowStatus | None]:
    """ok, at the floor, spent, or None for a row that goes on to the next level."""
    beyond = RowStatus.not_converged if sums.last else None
    judged = zip(sums.finite, sums.error <= tolerance, sums.at_floor, strict=True)
    return [RowStatus.nonfinite if not finite else RowStatus.ok if within else
            RowStatus.at_precision_floor if at_floor else beyond for finite, within, at_floor in judged]  # fmt: skip


class _Report:
    """Per-row results while they come in."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        rows = problem.rows
        elements = sum(x[0].numel() for x in problem.inputs)
        self.values = np.full((rows, elements), np.nan, problem.inputs[0].detach().cpu().numpy().dtype)
        self.f_input, self.f_baseline = np.full(rows, np.nan), np.full(rows, np.nan)
        self.gap, self.error = np.full(rows, np.nan), np.full(rows, np.nan)
        self.evaluations = np.zeros(rows, np.int32)
        self.status: list[RowStatus] = [RowStatus.bad_input] * rows
        self.reason: list[str | None] = [None] * rows
        self.padded = 0

    def set_bad_inputs(self) -> Tensor:
        """Mark rows whose input or baseline is not finite; return the numbers of the others."""
        clean = torch.ones(self.problem.rows, dtype=torch.bool)
        for kind, tensors in (("input", self.problem.inputs), ("baseline", self.problem.baselines)):
            for i, tensor in enumerate(tensors):
                finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1).cpu().expand(self.problem.rows)
                for row in (~finite & clean).nonzero().flatten().tolist():
                    self.reason[row] = f"{kind} {i} holds NaN or inf"
                clean &= finite
        return clean.nonzero().flatten().to(self.problem.inputs[0].device)

    def set_endpoints(self, rows: Tensor, f_input: np.ndarray, f_baseline: np.ndarray) -> None:
        places = rows.cpu().numpy()
        self.f_input[places], self.f_baseline[places] = f_input, f_baseline

    def set_unmoved(self, rows: Tensor) -> np.ndarray:
        """Settle rows with x = x' (all zeros) and with a non-finite f; return which of `rows` remain to integrate."""
        difference = np.concatenate([np.any(self.problem.difference(part) != 0, 1) for part in rows.split(1024)])
        remain = np.zeros(len(rows), bool)
        for i, row in enumerate(rows.tolist()):
            if not np.isfinite([self.f_input[row], self.f_baseline[row]]).all():
                where = "x" if not np.isfinite(self.f_input[row]) else "the baseline"
                self.status[row], self.reason[row] = RowStatus.nonfinite, f"the model's output at {where} is NaN or inf"
            elif not difference[i]:
                self.status[row], self.values[row], self.gap[row], self.error[row] = RowStatus.ok, 0, 0, 0
            else:
                remain[i] = True
        return remain

    def take(self, verdicts: Generator[Verdict, None, int], accuracy: Adaptive | FixedSteps) -> None:
        """Record verdicts until there are no more, then the padding."""
        while True:
            try:
                self._set(next(verdicts), accuracy)
            except StopIteration as end:
                self.padded = end.value
                return

    def _set(self, verdict: Verdict, accuracy: Adaptive | FixedSteps) -> None:
        row = verdict.row
        self.status[row], self.evaluations[row] = verdict.status, verdict.evaluations
        self.reason[row] = _reason(verdict, accuracy)
        if verdict.status not in WITHOUT_ATTRIBUTION:
            self.values[row], self.gap[row], self.error[row] = verdict.attributions, verdict.gap, verdict.error

    def result(self, like: Tensors) -> Attribution:
        xs, start, parts = self.problem.inputs, 0, []
        for x in xs:
            size = x[0].numel()
            part = torch.from_numpy(np.ascontiguousarray(self.values[:, start : start + size])).reshape(x.shape)
            parts.append(part.to(x.device))
            start += size
        diagnostics = [
            torch.from_numpy(a) for a in (self.f_input, self.f_baseline, self.gap, self.error, self.evaluations)
        ]
        return Attribution(tuple(parts) if isinstance(like, tuple) else parts[0], *diagnostics,
                           tuple(self.status), tuple(self.reason), self.padded)  # fmt: skip


def _reason(verdict: Verdict, accuracy: Adaptive | FixedSteps) -> str | None:
    if verdict.status is RowStatus.nonfinite:
        return "the model's gradient on the path is NaN or inf"
    if verdict.status is RowStatus.not_converged and isinstance(accuracy, Adaptive):
        return (f"error estimate {verdict.error:.2g} is above the tolerance {accuracy.tolerance:g} "
                f"after {verdict.evaluations} evaluations")  # fmt: skip
    if verdict.status is RowStatus.at_precision_floor:
        return f"error estimate {verdict.error:.2g} is what rounding allows"
    return None


# --- validation ----------------------------------------------------------------------------------------------


def _tensors(name: str, value: Tensors) -> tuple[Tensor, ...]:
    found = value if isinstance(value, tuple) else (value,)
    wrong = [type(v).__name__ for v in found if not isinstance(v, Tensor)]
    if wrong or not found:
        raise SpecError(name, expected="a tensor or a tuple of tensors", seen=", ".join(wrong) or "an empty tuple",
                        next_step="convert with torch.as_tensor; several go in a tuple")  # fmt: skip
    # Autograd cannot save what was made in inference mode; a copy made outside of it is an ordinary tensor.
    return tuple(v.clone() if v.is_inference() else v.detach() for v in found)


def _check_inputs(xs: Sequence[Tensor]) -> None:
    for i, x in enumerate(xs):
        if x.dtype not in (torch.float32, torch.float64):
            step = ("attribute at the embedding's output, or cast with .float()" if not x.is_floating_point()
                    else "cast with .float(); half precision cannot carry the sums")  # fmt: skip
            raise SpecError(f"inputs[{i}]", expected="float32 or float64", seen=str(x.dtype), next_step=step)
        if x.ndim < 1 or x.shape[0] == 0:
            raise DataError(f"inputs[{i}]", expected="at least one row", seen=f"shape {list(x.shape)}",
                            next_step="skip empty batches")  # fmt: skip
        if x[0].numel() == 0:
            raise DataError(f"inputs[{i}]", expected="at least one element per row", seen=f"shape {list(x.shape)}",
                            next_step="leave out the empty input")  # fmt: skip
        if x.shape[0] != xs[0].shape[0] or x.dtype != xs[0].dtype or x.device != xs[0].device:
            raise SpecError(f"inputs[{i}]", expected=f"{xs[0].shape[0]} rows of {xs[0].dtype} on {xs[0].device}",
                            seen=f"{x.shape[0]} rows of {x.dtype} on {x.device}",
                            next_step="give every input the same rows, dtype and device")  # fmt: skip


def _check_eval(forward: Forward) -> None:
    if isinstance(forward, nn.Module):
        training = [name or type(module).__name__ for name, module in forward.named_modules() if module.training]
        if training:
            raise SpecError("model", expected="eval mode: in train mode rows change each other's results",
                            seen=f"train mode in {', '.join(training[:3])}", next_step="call model.eval() first")  # fmt: skip


def _baselines(xs: tuple[Tensor, ...], baselines: Tensors | float | None) -> tuple[Tensor, ...]:
    if baselines is None or (isinstance(baselines, int | float) and not isinstance(baselines, bool)):
        return tuple(torch.full_like(x[:1], float(baselines or 0)) for x in xs)
    given = _tensors("baselines", baselines)  # type: ignore[arg-type]
    if len(given) != len(xs):
        raise SpecError("baselines", expected=f"{len(xs)} tensors, one per input", seen=str(len(given)),
                        next_step="pass a tuple with one baseline for each input, or one number for all")  # fmt: skip
    for i, (b, x) in enumerate(zip(given, xs, strict=True)):
        if b.shape[1:] != x.shape[1:] or b.shape[0] not in (1, x.shape[0]):
            raise SpecError(f"baselines[{i}]", expected=f"shape {list(x.shape)} or {[1, *x.shape[1:]]}",
                            seen=f"{list(b.shape)}", next_step="add the row dimension with baseline[None]")  # fmt: skip
    return tuple(b.to(x) for b, x in zip(given, xs, strict=True))


def _forward_args(forward_args: Tensors, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    given = _tensors("forward_args", forward_args) if not (isinstance(forward_args, tuple) and not forward_args) else ()
    for i, a in enumerate(given):
        if a.ndim == 0 or a.shape[0] != xs[0].shape[0]:
            raise SpecError(f"forward_args[{i}]", expected=f"{xs[0].shape[0]} rows", seen=f"shape {list(a.shape)}",
                            next_step="close over what is the same for all rows: lambda x: model(x, mask)")  # fmt: skip
    return given


def _probe(forward: Forward, xs: tuple[Tensor, ...], arguments: tuple[Tensor, ...], targets: Tensor | None) -> None:
    """Check the output's shape and every target once, and which inputs the output depends on."""
    row = [x[:1].clone().requires_grad_() for x in xs]
    with torch.enable_grad():
        out = forward(*row, *[a[:1] for a in arguments])
        check_output(out, 1, None if targets is None else targets[:1])
        check_output(out.detach().expand(xs[0].shape[0], *out.shape[1:]), xs[0].shape[0], targets)
        unused = unused_inputs(out, row)
    if unused:
        warnings.warn(f"the output does not depend on inputs {unused}: they get zeros", stacklevel=3)


def unused_inputs(out: Tensor, inputs: Sequence[Tensor]) -> list[int]:
    """Numbers of the inputs without a gradient path from `out`. Raises SpecError when no input has one."""
    if not out.requires_grad:
        raise independent_of_inputs()
    gradients = torch.autograd.grad(out.sum(), list(inputs), allow_unused=True)
    unused = [i for i, g in enumerate(gradients) if g is None]
    if len(unused) == len(inputs):
        raise independent_of_inputs()
    return unused


def _notebook_batch(forward: Forward, xs: tuple[Tensor, ...], arguments: tuple[Tensor, ...],
                    accuracy: Adaptive | FixedSteps) -> int:  # fmt: skip
    """The planned size, or less where all rows together ask for less in their first pass."""
    probe = min(2, xs[0].shape[0])
    row_bytes = activation_bytes(forward, [x[:probe] for x in xs], [a[:probe] for a in arguments])
    first = build_rule(accuracy).levels[:2][-1]
    wanted = 1 << (xs[0].shape[0] * first - 1).bit_length()
    return min(wanted, step_batch_rows(row_bytes, NOTEBOOK_MEMORY))
