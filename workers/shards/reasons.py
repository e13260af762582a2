"""The reasons of output rows, where a run gives some."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from integrand.schemas.records import Plan
from integrand.workers.data.conditions import matching_rows, sandbox
from integrand.workers.data.values import plain_values, widened
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import planned_candidates
from integrand.workers.reason_codes.columns import Asked, reason_columns
from integrand.workers.shards.output import AGREE, REASON_COLUMNS, attributed, results_table
from integrand.workers.shards.results import Results


def with_reasons(
    plan: Plan, source: pa.Table, moved: NDArray[np.bool_], results: Results
) -> Results:
    """Results with the columns of reasons filled in, if the run has these.

    `source` and `moved` (`[rows, elements]`, see below) are of the same rows, every one of which
    has as many results as targets.
    """
    among = planned_candidates(plan)
    if among is None:
        return results
    chosen = _chosen(plan, results)
    owner = chosen // plan.targets_per_row
    rows = results.rows.take(chosen)
    of_features = rows.attributions[: attributed(plan)]
    values = [_flat(own).astype(np.float64) for own in of_features]
    asked = Asked(
        attributions=np.concatenate(values, axis=1),
        moved=moved[owner],
        error=rows.error_estimate,
        status=rows.status,
    )

    def texts(feature: str, places: NDArray[np.int64]) -> list[str | None]:
        return _texts(source[feature].take(pa.array(owner[places])))

    columns = dict(results.rows.optional)
    for name, found in zip(REASON_COLUMNS, reason_columns(among, asked, texts), strict=True):
        columns[name] = columns[name].copy()
        columns[name][chosen] = found
    if AGREE in columns:
        columns[AGREE] = columns[AGREE].copy()
        columns[AGREE][np.setdiff1d(np.arange(len(results.rows.status)), chosen)] = np.nan
    filled = replace(results.rows, optional=MappingProxyType(columns))
    return replace(results, rows=filled)


def _chosen(plan: Plan, results: Results) -> NDArray[np.int64]:
    """Numbers of the results that get reasons."""
    asked = plan.spec.output.reasons
    there = np.flatnonzero(results.rows.attributed)
    if asked is None or asked.when is None:
        return there
    table = results_table(plan, results).drop_columns(REASON_COLUMNS)
    with sandbox() as connection:
        readable = table.cast(widened(table.schema))
        meeting = matching_rows(connection, readable, asked.when, "output.reasons.when")
    return np.intersect1d(there, meeting)


def moved_elements(tensors: RowTensors) -> NDArray[np.bool_]:
    """Where rows differ from any of their baselines, `[rows, elements]`."""
    every = torch.arange(tensors.rows, device=tensors.device) * tensors.draws
    columns = []
    for x, baseline in zip(tensors.inputs, tensors.baselines, strict=True):
        moved = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for draw in range(tensors.draws):
            moved |= x != tensors.of_draw(baseline, every + draw)
        columns.append(_flat(moved.cpu().numpy()))
    return np.concatenate(columns, axis=1)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """`[rows, elements]`, of no rows too."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    try:
        return list(column.cast(pa.string()).to_pylist())
    except pa.ArrowException:  # no form of its own in Arrow
        return [None if value is None else str(value) for value in plain_values(column)]
