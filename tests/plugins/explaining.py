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
from integrand.workers.models.row_tensors import RowTensors


def explained(
    forward: Forward,
    inputs: Tensors,
    *,
    target: TargetLike,
    batch_rows: int,
    accuracy: Accuracy | None = None,
) -> Explained:
    """Results `[rows, targets]` against zeros, as shards get them."""
    with torch.inference_mode(False):
        rows = row_tensors(inputs, None, (), target)
        return _explain(forward, rows, accuracy, batch_rows, lambda: None)


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
    with torch.inference_mode(False):
        rows = row_tensors(inputs, baselines, forward_args, target)
        found = _explain(forward, rows, accuracy, batch_rows, tick)
        return as_attribution(found, inputs, several=isinstance(target, list))


def _explain(
    forward: Forward,
    rows: RowTensors,
    accuracy: Accuracy | None,
    batch_rows: int,
    tick: Callable[[], None],
) -> Explained:
    method = method_of(accuracy or Adaptive())
    prepared = prepared_for(forward, rows, method)
    return explain(prepared, rows, method, batch_rows=batch_rows, tick=tick)
