"""What is tried on a few real rows before any worker starts: the model's contract, and what a row costs."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.errors import DataError, IntegrandError, SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs import Adaptive, AttributeSpec, ColumnTarget
from integrand.workers.attribution import attribute, unused_inputs
from integrand.workers.baselines import baseline_tensors
from integrand.workers.batching import activation_bytes, step_batch_rows
from integrand.workers.engine import Problem, step_gradients
from integrand.workers.outputs import Forward, check_output, target_table, transformed
from integrand.workers.quadrature import build_rule
from integrand.workers.rows import Rows

TRIAL_S = 10.0
"""Longest that the adaptive mode is tried on real rows; a dearer model is projected at its most evaluations."""


@dataclass(frozen=True)
class Findings:
    """What the trial showed."""

    batch_rows: int
    outputs: int | None
    row_bytes: int
    batch_s: float
    evaluations_per_row: float
    seconds_per_row: float
    memory_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """A few clean rows as the model will get them."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    forward_args: tuple[Tensor, ...]
    target: Tensor | None

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[0]

    def repeat(self, rows: int) -> Sample:
        """The same rows over and over, `rows` in all."""
        index = torch.arange(rows) % self.rows
        return Sample(tuple(x[index] for x in self.inputs),
                      tuple(b if b.shape[0] == 1 else b[index] for b in self.baselines),
                      tuple(a[index] for a in self.forward_args),
                      None if self.target is None else self.target[index])  # fmt: skip


def sample_rows(spec: AttributeSpec, shapes: Sequence[InputShape], rows: Rows, means: Sequence[np.ndarray] | None,
                device: str, most: int = 8) -> Sample:  # fmt: skip
    """The first clean rows. Raises DataError with their reasons if every row tried is bad."""
    clean = [i for i, reason in enumerate(rows.reasons) if reason is None][:most]
    if not clean:
        raise DataError("source", expected="at least one usable row among the first",
                        seen=f"{len(rows.reasons)} bad rows, the first: {rows.reasons[0]}",
                        next_step="mend the data, or name the right columns and shape under inputs")  # fmt: skip
    index = torch.tensor(clean)
    baselines = baseline_tensors(spec, shapes, rows, means)
    return Sample(tuple(x[index].to(device) for x in rows.inputs),
                  tuple((b if b.shape[0] == 1 else b[index]).to(device) for b in baselines),
                  tuple(a[index].to(device) for a in rows.forward_args),
                  None if rows.target is None else rows.target[index].to(device))  # fmt: skip


def examine(spec: AttributeSpec, forward: Forward, sample: Sample) -> Findings:
    """Try the model on real rows. Raises SpecError for whatever cannot work, with its likely cause."""
    forward = transformed(forward, spec.target.transform)
    out, warnings = _first_pass(spec, forward, sample)
    table, width = _targets(spec, out, sample)
    check_output(out, sample.rows, table)
    row_bytes = activation_bytes(forward, sample.inputs, sample.forward_args)
    batch_rows = _batch_rows(spec, row_bytes)
    sample = replace(sample, target=table)
    _check_repeatable(forward, sample, batch_rows)
    batch_s = _time_batch(forward, sample, batch_rows)
    evaluations, seconds = _cost(spec, forward, sample, batch_rows, batch_s)
    return Findings(batch_rows, width, row_bytes, batch_s, evaluations, seconds,
                    _memory(spec, sample, row_bytes, batch_rows), tuple(warnings))  # fmt: skip


def _first_pass(spec: AttributeSpec, forward: Forward, sample: Sample) -> tuple[Tensor, list[str]]:
    points = [x.clone().requires_grad_() for x in sample.inputs]
    try:
        with torch.enable_grad():
            out = forward(*points, *sample.forward_args)
    except IntegrandError:
        raise
    except Exception as error:
        shapes = [list(x.shape) for x in (*points, *sample.forward_args)]
        raise SpecError("model", expected="a forward pass over real rows", next_step="check shape, columns and dtypes "
                        "of inputs and forward_args, and that the model takes them in this order",
                        seen=f"{type(error).__name__}: {str(error)[:300]}, for arguments of shape {shapes}") from error  # fmt: skip
    if not isinstance(out, Tensor):
        check_output(out, sample.rows, None)
    if not torch.isfinite(out).all():
        warnings = ["the model's output is NaN or inf on some of the first rows: they will be `nonfinite`"]
    else:
        warnings = []
    unused = unused_inputs(out, points)
    warnings += [
        f"the output does not depend on input `{spec.inputs[i].name}`: its attributions are zeros" for i in unused
    ]
    gradients = torch.autograd.grad(forward(*points, *sample.forward_args).sum(), points, allow_unused=True)
    if all(g is None or not g.any() for g in gradients):
        warnings.append("every gradient is zero on the first rows: is the output rounded, clamped or saturated?")
    return out.detach(), warnings


def _targets(spec: AttributeSpec, out: Tensor, sample: Sample) -> tuple[Tensor | None, int | None]:
    """Targets of the sample rows, and the width of the output where it has one."""
    target = spec.target
    width = int(out.shape[-1]) if out.ndim == 2 else None
    if target.kind == "scalar":
        return None, width
    if target.kind == "index":
        return target_table(target.index, sample.rows), width
    if width is None:
        raise SpecError(f"target.kind {target.kind}", expected="model outputs [rows, outputs]",
                        seen=f"shape {list(out.shape)}", next_step="use `scalar`, or `index` with a list")  # fmt: skip
    if isinstance(target, ColumnTarget):
        assert sample.target is not None
        return _column_targets(sample.target, width, target.column), width
    return (out.argmax(-1, keepdim=True) if target.kind == "argmax" else torch.zeros(sample.rows, 1).long()), width


def _column_targets(targets: Tensor, width: int, column: str) -> Tensor:
    inside = (targets >= 0) & (targets < width)
    if not inside.any():
        raise SpecError(f"target.column {column}", expected=f"output indices from 0 to {width - 1}",
                        seen=f"{targets.tolist()} in the first rows")  # fmt: skip
    return targets.where(inside, targets[inside][0])[:, None]


def _batch_rows(spec: AttributeSpec, row_bytes: int) -> int:
    if spec.compute.batch_rows != "auto":
        return spec.compute.batch_rows
    if row_bytes > spec.compute.memory:
        raise SpecError("compute.memory", expected=f"at least {row_bytes / 2**20:.0f} MiB: what one row keeps for its "
                        "backward pass", seen=f"{spec.compute.memory / 2**20:.0f} MiB",
                        next_step="raise compute.memory, or run where there is more")  # fmt: skip
    return step_batch_rows(row_bytes, spec.compute.memory)


def _check_repeatable(forward: Forward, sample: Sample, batch_rows: int) -> None:
    """One batch twice, then the same first row beside changed neighbours: any differing bit is refused."""
    size = max(2, batch_rows)
    first = _gradients(forward, sample.repeat(size), size)
    again = _gradients(forward, sample.repeat(size), size)
    if not _same(first, again):
        raise SpecError("model", expected="the same result for the same batch", seen="two runs that differ",
                        next_step="switch off dropout, noise and sampling inside forward (model.eval() does not "
                        "reach functional dropout), and use deterministic kernels")  # fmt: skip
    beside = _gradients(forward, _change_neighbours(sample.repeat(size)), size)
    if not _same(first[:1], beside[:1]):
        raise SpecError("model", expected="rows that do not depend on the rows beside them in a batch",
                        seen=f"row 0 changed by {float((first[0] - beside[0]).abs().max()):.2g} with its neighbours",
                        next_step="batch norm in train mode, statistics or softmax over the batch, or expert "
                        "capacity do this: use running statistics and per-row operations")  # fmt: skip


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


def _gradients(forward: Forward, sample: Sample, size: int) -> Tensor:
    """Output and gradient of each row, side by side, at points between baseline and row."""
    problem = Problem(forward, sample.inputs, sample.baselines, sample.forward_args, sample.target, size)
    rows = torch.arange(size, device=sample.inputs[0].device)
    with torch.no_grad():
        out = forward(*sample.inputs, *sample.forward_args).reshape(size, -1)
    alphas = torch.full((size,), 0.75, dtype=torch.float64, device=rows.device)
    return torch.cat([out, step_gradients(problem, rows, alphas)], 1)


def _change_neighbours(sample: Sample) -> Sample:
    """Every row but the first replaced: midway between another row and its baseline, where values stay valid."""

    def changed(x: Tensor, baseline: Tensor) -> Tensor:
        return torch.cat([x[:1], ((x.flip(0) + baseline) / 2)[1:]])

    inputs = tuple(changed(x, b) for x, b in zip(sample.inputs, sample.baselines, strict=True))
    return replace(sample, inputs=inputs)


def _time_batch(forward: Forward, sample: Sample, batch_rows: int) -> float:
    """Median seconds of one gradient step batch. Only projections and the stall limit use it, never a value."""
    batch = sample.repeat(batch_rows)
    problem = Problem(forward, batch.inputs, batch.baselines, batch.forward_args, batch.target, batch_rows)
    rows = torch.arange(batch_rows, device=batch.inputs[0].device)
    alphas = torch.linspace(0, 1, batch_rows, dtype=torch.float64, device=rows.device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step_gradients(problem, rows, alphas).sum().item()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _cost(
    spec: AttributeSpec, forward: Forward, sample: Sample, batch_rows: int, batch_s: float
) -> tuple[float, float]:
    """Evaluations and seconds per output row, tried on the sample where that is quick."""
    most = build_rule(spec.accuracy).levels[-1]
    mean = float(most)
    if isinstance(spec.accuracy, Adaptive) and sample.rows * most / batch_rows * batch_s <= TRIAL_S:
        found = attribute(forward, sample.inputs, baselines=sample.baselines, target=sample.target,
                          forward_args=sample.forward_args, accuracy=spec.accuracy, batch_rows=batch_rows, checked=True)  # fmt: skip
        mean = max(1.0, float(found.evaluations.double().mean()))
    return mean, (mean + 1) * batch_s / batch_rows * 1.2


def _memory(spec: AttributeSpec, sample: Sample, row_bytes: int, batch_rows: int) -> int:
    """Bytes of one worker: the process as it is now, one step batch, and the sums of live rows."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rule = build_rule(spec.accuracy)
    live = batch_rows // rule.levels[min(1, len(rule.levels) - 1)] + 2
    elements = sum(x[0].numel() for x in sample.inputs)
    return int(process + 2 * row_bytes * batch_rows + live * len(rule.levels) * elements * 8)
