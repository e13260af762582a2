"""Which outputs of a table's rows are explained: as indices for the engine, and as the output's
column `target`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.specs.targets import ArgmaxTarget, ColumnTarget, IndexTarget, TopKTarget
from integrand.schemas.tables import RowStatus
from integrand.workers.data.tensors import Rows
from integrand.workers.engine.evaluator import Evaluator, Problem
from integrand.workers.isolation import isolate
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import target_array


def refuse_targets(job: Job, rows: Rows, reasons: list[str | None]) -> None:
    """Reasons for rows whose target the model does not have."""
    width = job.plan.numerics.outputs
    if (
        isinstance(job.plan.spec.target, ColumnTarget)
        and rows.target is not None
        and width is not None
    ):
        outside = (rows.target < 0) | (rows.target >= width)
        for i in outside.nonzero().flatten().tolist():
            reasons[i] = reasons[i] or f"target {int(rows.target[i])} is outside 0..{width - 1}"


def row_targets(
    job: Job, rows: Rows, device: list[tuple[Tensor, ...]], per_row: int, tick: Callable[[], None]
) -> Tensor | None:
    """Output indices of every row and target, `[rows, targets, depth]`, or None for scalar
    outputs.
    """
    target, count = job.plan.spec.target, rows.inputs[0].shape[0]
    if target.kind == "scalar":
        return None
    if isinstance(target, IndexTarget):
        return torch.tensor(_index(target), device=job.device).expand(count, 1, -1)
    if target.kind == "all":
        return torch.arange(per_row, device=job.device)[None, :, None].expand(count, -1, -1)
    if rows.target is not None:
        return rows.target.to(job.device)[:, None, None]
    problem = Problem(
        job.prepared, device[0], device[0], device[2], None, job.plan.numerics.batch_rows, tick
    )
    return _largest(problem, per_row) if count else torch.zeros(0, per_row, 1, dtype=torch.int64)


def _largest(problem: Problem, k: int) -> Tensor:
    """Each row's k largest outputs, `[rows, k, 1]`; the first ones for a row that the model raises
    on, which fails later.
    """
    index = torch.arange(problem.rows, device=problem.inputs[0].device)

    def attempt(rows: slice) -> Tensor:
        out = Evaluator(problem).outputs(problem.inputs, index[rows], check=False)
        return out.argmax(-1, keepdim=True) if k == 1 else out.topk(k, -1).indices

    def failed(error: Exception) -> Tensor:
        return torch.arange(k, device=index.device)[None]

    return torch.cat(isolate(attempt, failed, slice(0, problem.rows)))[:, :, None]


def target_column(
    job: Job, table: Tensor | None, places: NDArray[np.int64], status: list[RowStatus]
) -> pa.Array:
    """Targets by output row. An index and `all` name them in bad rows too; the others have none
    there.
    """
    out = len(status)
    if job.plan.spec.target.kind == "scalar":
        return target_array(None, np.zeros(out, bool))
    if job.plan.spec.target.kind == "all":
        per_row = job.plan.targets_per_row
        return target_array(
            np.tile(np.arange(per_row), out // per_row)[:, None], np.ones(out, bool)
        )
    if isinstance(job.plan.spec.target, IndexTarget):
        return target_array(np.tile(_index(job.plan.spec.target), (out, 1)), np.ones(out, bool))
    assert table is not None
    full, present = np.zeros((out, table.shape[1]), np.int64), np.zeros(out, bool)
    full[places], present[places] = table.cpu().numpy(), True
    if isinstance(job.plan.spec.target, ArgmaxTarget | TopKTarget):
        present &= np.array(status) != RowStatus.failed
    return target_array(full, present)


def _index(target: IndexTarget) -> tuple[int, ...]:
    return target.index if isinstance(target.index, tuple) else (target.index,)
