"""Whether a method that goes by the model's layers keeps its promise on a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from integrand.service.planning.sample import one_target
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.base import Method
from integrand.workers.methods.explaining import explain
from integrand.workers.models.row_tensors import RowTensors

MISSED = 1e-2
"""Share of a row's attributions from which on it is told that they do not add up."""
MOST = 4096
"""Evaluations of a row above which it is not tried."""


def promise_warnings(
    method: Method[Any], prepared: Prepared, rows: RowTensors, batch_rows: int
) -> list[str]:
    """That attributions of these rows do not add up to f(x) − f(x'), as the method promises.

    What is certified says so itself, and what draws does on average alone. Rules for layers take
    for linear whatever layer they do not know.
    """
    by_layers = method.needs_plain_model and not method.random
    if not method.complete or not by_layers or method.evaluations_of(rows) > MOST:
        return []
    found = explain(prepared, one_target(rows), method, batch_rows=batch_rows).results
    size = sum(np.abs(a).reshape(len(a), -1).sum(1) for a in found.attributions)
    with np.errstate(divide="ignore", invalid="ignore"):
        missed = np.abs(found.gap[:, 0]) / size
    known = missed[np.isfinite(missed)]
    if not len(known) or np.median(known) <= MISSED:
        return []
    return [
        f"attributions of the first rows miss f(x) − f(x') by {np.median(known):.0%} of their size"
        " (median), although the method promises that they add up: rules for layers know"
        " activations that are modules (torch.nn.ReLU, Tanh, Sigmoid, MaxPool), and take functions,"
        " layer norm and attention for linear"
    ]
