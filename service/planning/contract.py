"""Whether a job's model keeps to its contract on real rows: outputs per row that depend on the
inputs, and targets among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.sample import one_target, real_rows
from integrand.workers.methods.probing import unused_inputs
from integrand.workers.methods.table import method_of
from integrand.workers.models.gradients import differentiate
from integrand.workers.models.outputs import (
    Forward,
    check_output,
    on_copies,
    select,
    transformed,
)
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.models.targets.table import kind_of_target

LOGARITHMS = 1e-3
"""As far from 1 as sums of probabilities may be by rounding."""
TRIED = 64
"""Paths at whose ends f is looked at."""
LARGE = 1.0
"""Of |f| at rows: from there on |f| at the baseline is far from 0 beside it."""


def first_pass(
    spec: AttributeSpec, model: Forward, sample: RowTensors
) -> tuple[RowTensors, tuple[int, ...], list[str]]:
    """The sample with its targets, the sizes of the model's output after its rows, and what is
    doubtful about both.
    """
    forward = transformed(model, spec.target.transform_of_output)
    out, warnings = _try_model(spec, forward, sample)
    kind = kind_of_target(spec.target)
    kind.check(spec.target, out)
    table = kind.of_sample(spec.target, sample.rows, out, sample.target)
    check_output(out, sample.rows, table)
    with_targets = replace(sample, target=table)
    return with_targets, tuple(out.shape[1:]), warnings


def baseline_warnings(spec: AttributeSpec, model: Forward, sample: RowTensors) -> list[str]:
    """That f at the baseline is far from 0 beside f at rows: attributions explain the difference
    alone, so a baseline shall say little (Sundararajan, Taly & Yan 2017, §6).

    sample  rows with their baselines and targets
    """
    forward = transformed(model, spec.target.transform_of_output)
    first = one_target(sample).along_paths().take(slice(TRIED))
    rows = first.expanded()
    ends = []
    for points in (rows.inputs, rows.baselines):
        with real_rows(forward, rows.arguments), torch.no_grad():
            out = on_copies(forward, *points, *rows.forward_args)
        if _are_log_probabilities(out):
            return []  # there 0 is certainty, and no baseline has it
        table = None if rows.target is None else rows.target[:, 0]
        ends.append(select(out, table).double())
    at_rows = ends[0].abs().median().item()
    at_baseline = _of_rows(ends[1], sample.draws).abs().median().item()
    if not at_baseline > LARGE * at_rows:
        return []
    return [
        f"f at the baseline is {at_baseline:.2g} beside {at_rows:.2g} at the first rows (medians of"
        " |f|): attributions add up to their difference, and f at the baseline stays unexplained"
    ]


def _are_log_probabilities(out: Tensor) -> bool:
    """Whether the outputs of each row are logarithms of numbers that add up to 1."""
    if out.ndim != 2 or out.shape[1] < 2:
        return False
    return bool(((out.double().exp().sum(1) - 1).abs() < LOGARITHMS).all())


def _of_rows(f_baseline: Tensor, draws: int) -> Tensor:
    """The mean over the draws of each row, of some of the last one's."""
    parts = [of_row.mean() for of_row in f_baseline.split(draws)]
    return torch.stack(parts)


def column_sizes(spec: AttributeSpec, model: Forward, sample: RowTensors) -> tuple[int, ...] | None:
    """Sizes of the output in which target columns name a place; None where none does."""
    if not spec.target.reads:
        return None
    out, _ = _try_model(spec, model, sample)
    return tuple(out.shape[1:]) if out.ndim == 1 + spec.target.depth else None


def _try_model(
    spec: AttributeSpec, forward: Forward, sample: RowTensors
) -> tuple[Tensor, list[str]]:
    """The model's output, and what is doubtful about it and its gradients."""
    rows = sample.first_draw()
    points = [x.clone().requires_grad_() for x in rows.inputs]
    arguments = [*points, *rows.forward_args]
    with real_rows(forward, arguments), torch.enable_grad():
        out = on_copies(forward, *arguments)
    if not isinstance(out, Tensor):
        check_output(out, sample.rows, None)
    warnings = _output_warnings(spec, out, points[0].dtype)
    if method_of(spec.accuracy, spec.method).needs_gradients:
        unused = [spec.inputs[i].name for i in unused_inputs(out, points)]
        again = on_copies(forward, *arguments)
        gradients = differentiate(again.sum(), points)
        warnings += _gradient_warnings(unused, gradients)
    return out.detach(), warnings


def _output_warnings(spec: AttributeSpec, out: Tensor, dtype: torch.dtype) -> list[str]:
    warnings = []
    if not torch.isfinite(out).all():
        warnings.append(
            "the model's output is NaN or inf on some of the first rows: they will be `nonfinite`"
        )
    if out.is_floating_point() and torch.finfo(out.dtype).eps > torch.finfo(dtype).eps:
        warnings.append(
            f"the model returns {str(out.dtype)[6:]} although precision is"
            f" {spec.compute.precision}: something in it casts down"
        )
    return warnings


def _gradient_warnings(unused: list[str], gradients: Sequence[Tensor | None]) -> list[str]:
    warnings = [
        f"the output does not depend on input `{name}`: its attributions are zeros"
        for name in unused
    ]
    if all(g is None or not g.any() for g in gradients):
        warnings.append(
            "every gradient is zero on the first rows: is the output rounded, clamped or saturated?"
        )
    return warnings
