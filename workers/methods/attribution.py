"""`attribute`: Integrated Gradients of a batch of tensors, with an error estimate and a status for
every row.

The same methods run in a notebook and inside every shard of a job.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive
from integrand.schemas.specs.methods import MethodPart, refusal
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.batching import LEAST, SMALLEST, halves
from integrand.workers.engine.memory import memory_budget, row_bytes
from integrand.workers.engine.prepared import Prepared, assemble
from integrand.workers.engine.results import Attribution, Explained, Tensors, as_attribution
from integrand.workers.kernels import warn_once
from integrand.workers.methods.arguments import Baselines, check_batch_rows, row_tensors
from integrand.workers.methods.base import Method
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.probing import Call, check_eval, check_rows_apart, explained, probe
from integrand.workers.methods.table import INTEGRATED, method_of
from integrand.workers.models.outputs import Forward, TargetLike
from integrand.workers.models.row_tensors import RowTensors, keys_of_rows
from integrand.workers.rewriting.choosing import choose
from integrand.workers.switches import pinned_on

__all__ = ["Attribution", "attribute", "prepare"]

FURTHER_TARGET = 4
"""How often a further target's gradients count in a step batch: they are kept, and judged in
float64.
"""


def attribute(
    forward: Forward,
    inputs: Tensors,
    *,
    baselines: Baselines = None,
    target: TargetLike = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
    batch_rows: int | None = None,
    method: MethodPart = INTEGRATED,
    draws: int = 1,
) -> Attribution:
    """Integrated Gradients of `forward` at `inputs` against `baselines`, or what another method
    makes of them. Sundararajan, Taly & Yan 2017.

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
    method        a part of `schemas.specs.methods`; what it draws depends on its seed and on what a
                  row holds
    draws         baselines of each row, over which attributions are averaged: `baselines` are then
                  `[draws, ...]`, shared by all rows, or `[rows × draws, ...]`, each row's own

    Raises SpecError or DataError (both ValueErrors) that say what to change. Rows with NaN or inf
    do not raise: they come back as `bad_input` or `nonfinite`.
    """
    exactness = accuracy or Adaptive()
    refused = refusal(method, exactness, asked=accuracy is not None)
    if refused:
        raise SpecError("accuracy", expected=refused, seen=exactness.kind)
    asked = method_of(exactness, method)
    check_batch_rows(batch_rows)
    with torch.inference_mode(False):
        rows = row_tensors(inputs, baselines, forward_args, target, draws)
        if asked.random:
            rows = replace(rows, keys=keys_of_rows(rows.inputs))
        warn_once(rows.device.type)
        with pinned_on(rows.device):
            found = _explained(Call(forward, rows, batch_rows), asked)
        return as_attribution(found, inputs, several=isinstance(target, list))


def _explained(call: Call, method: Method[Any]) -> Explained:
    forward, rows = call.forward, call.tensors
    check_eval(forward)
    probe(call, gradients=method.needs_gradients)
    with explained(call, 2 * min(2, call.rows)):
        size = call.batch_rows or _notebook_batch(forward, rows, method)
    with explained(call, size):
        prepared = prepared_for(forward, rows, method)
        smaller = () if call.batch_rows else tuple(halves(size // 2, LEAST))
        found = explain(prepared, rows, method, batch_rows=size, smaller=smaller)
    if found.holds(RowStatus.not_converged):
        check_rows_apart(call)
    return found


def prepare(
    model: nn.Module,
    inputs: Tensors,
    *,
    baselines: Baselines = None,
    target: TargetLike = None,
    forward_args: Tensors = (),
    accuracy: Accuracy | None = None,
) -> Prepared:
    """What a job's plan does once for its workers: the model with the savings that hold on these
    rows.

    A few rows will do. `attribute` takes the result in place of the model, for inputs of the same
    shapes. Verification runs the model in float64. Raises like `attribute`.
    """
    method = method_of(accuracy or Adaptive())
    with torch.inference_mode(False):
        rows = row_tensors(inputs, baselines, forward_args, target)
        with pinned_on(rows.device):
            return _prepared(model, rows, method)


def _prepared(model: nn.Module, rows: RowTensors, method: Method[Any]) -> Prepared:
    check_eval(model)
    found = prepared_for(model, rows, method)
    if found.network is not None or method.needs_plain_model:
        return found
    rows = rows.first_draw()
    first = replace(rows, target=None if rows.target is None else rows.target[:, 0])
    savings = choose(model, first, method.needs.work)
    return assemble(model, "none", savings, rows.inputs, rows.forward_args)


def prepared_for(forward: Forward, rows: RowTensors, method: Method[Any]) -> Prepared:
    """The forward as given, with its closed form where the method takes one. Raises SpecError for
    what the method cannot explain.
    """
    if isinstance(forward, Prepared) and not method.needs_plain_model:
        return forward
    method.check(forward, rows)
    return Prepared(forward, network=method.closed_form(forward, rows))


def _notebook_batch(forward: Forward, rows: RowTensors, method: Method[Any]) -> int:
    """What the device's memory allows, or less where all rows together ask for less in their first
    pass.
    """
    few, needs = rows.take(slice(2)), method.needs
    targets = 1 if rows.target is None else rows.target.shape[1]
    gradient = _elements(forward, few) * rows.inputs[0].element_size()
    of_row = row_bytes(forward, few.inputs, few.forward_args)
    of_row += (targets - 1) * FURTHER_TARGET * gradient
    kept = targets * rows.elements * needs.kept_bytes
    planned = memory_budget(rows.device).batch_rows(of_row, 2 * kept // needs.first_evaluations)
    first_pass = rows.rows * needs.first_evaluations
    wanted = -(-first_pass // SMALLEST) * SMALLEST
    return min(max(SMALLEST, wanted), planned)


def _elements(forward: Forward, rows: RowTensors) -> int:
    """Of a row's gradients, as they are kept: behind a hoisted prefix those of hidden tensors."""
    hoisted = forward.hoisted if isinstance(forward, Prepared) else None
    if hoisted is None:
        return rows.elements
    with torch.no_grad():
        hidden = hoisted.prefix(*rows.arguments)
    return sum(h[0].numel() for h in hidden)
