"""Rows through a method without the trial passes that `attribute` makes, as shards do it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from integrand.schemas.specs.accuracy import Accuracy, Adaptive
from integrand.workers.engine.results import Attribution, Explained, Tensors, as_attribution
from integrand.workers.methods.arguments import Baselines, row_tensors
from integrand.workers.methods.attribution import prepared_for
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.outputs import Forward, TargetLike


def explained(
    forward: Forward,
    inputs: Tensors,
    *,
    batch_rows: int,
    baselines: Baselines = None,
    target: TargetLike = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Explained:
    """Results `[rows, targets]` for the arguments of `attribute`."""
    method = method_of(accuracy or Adaptive())
    with torch.inference_mode(False):
        rows = row_tensors(inputs, baselines, forward_args, target)
        prepared = prepared_for(forward, rows, method)
        return explain(prepared, rows, method, batch_rows=batch_rows, tick=tick)


def attribute_untried(
    forward: Forward,
    inputs: Tensors,
    *,
    batch_rows: int,
    baselines: Baselines = None,
    target: TargetLike = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Attribution:
    """What `attribute` returns."""
    found = explained(
        forward,
        inputs,
        batch_rows=batch_rows,
        baselines=baselines,
        target=target,
        forward_args=forward_args,
        accuracy=accuracy,
        tick=tick,
    )
    return as_attribution(found, inputs, several=isinstance(target, list))
