"""Which outputs of a table's rows are explained: as indices for the engine, and as the output's
column `target`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.baselines.tensors import Given, at_rows
from integrand.workers.data.tensors import Rows
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.problem import Problem
from integrand.workers.isolation import Raised, isolate
from integrand.workers.models.outputs import on_copies
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.models.targets.base import Choice, TargetRows
from integrand.workers.models.targets.table import kind_of_target
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import repeated_targets, target_array


def refuse_targets(job: Job, rows: Rows, reasons: list[str | None]) -> None:
    """Reasons for rows whose target the model does not have, as far as the plan knows its
    outputs.
    """
    numerics = job.plan.numerics
    if rows.target is None:
        return
    if numerics.sizes:
        _refuse(job, rows.target, numerics.sizes, reasons)
    elif numerics.outputs is not None:
        _refuse(job, rows.target, (numerics.outputs,), reasons)


def refuse_places(job: Job, rows: Rows, reasons: list[str | None], clean: Tensor) -> None:
    """Reasons for rows whose place lies outside where outputs are as long as lists of ids: their
    sizes are seen at the first of the `clean` rows that the model takes.
    """
    places = _places(job, rows)
    if places is None or not any(shape.varying for shape in job.plan.inputs):
        return
    some = Given.of(rows).take(clean)
    arguments = [t.to(job.device) for t in at_rows(job.plan.spec, some)]
    for row in range(len(clean)):
        with suppress(Exception), torch.no_grad():
            out = on_copies(job.forward, *[a[row : row + 1] for a in arguments])
            _refuse(job, places, tuple(out.shape[1:]), reasons)
            return


def _places(job: Job, rows: Rows) -> Tensor | None:
    """Each row's place in a tensor output, `[rows, depth]`; None where targets are no such."""
    target = job.plan.spec.target
    if rows.target is not None:
        return rows.target if target.depth > 1 else None
    same = target.places(job.plan.numerics.outputs)
    if same is None or len(same) != 1 or len(same[0]) < 2:
        return None
    return torch.tensor(same).expand(len(rows.reasons), -1)


def _refuse(job: Job, places: Tensor, sizes: tuple[int, ...], reasons: list[str | None]) -> None:
    refused = kind_of_target(job.plan.spec.target).refusals(places, sizes)
    for row, reason in refused.items():
        reasons[row] = reasons[row] or reason


def row_targets(
    job: Job,
    tensors: RowTensors,
    column: Tensor | None,
    batch_rows: int,
    tick: Callable[[], None],
) -> Tensor | None:
    """Output indices of every row and target, `[rows, targets, depth]`, or None for scalar
    outputs. `column` is what the rows' target columns hold, where they have some.
    """

    def choose(choice: Choice) -> Tensor:
        smaller = job.plan.numerics.smaller_batches
        problem = Problem(job.prepared, tensors.first_draw(), batch_rows, tick, smaller=smaller)
        return _chosen(problem, choice, job.plan.targets_per_row)

    target = job.plan.spec.target
    outputs = job.plan.numerics.outputs
    asked = TargetRows(tensors.rows, outputs, job.device, column, choose)
    return kind_of_target(target).of_rows(target, asked)


def _chosen(problem: Problem, choice: Choice, targets: int) -> Tensor:
    """A choice of each row's outputs, `[rows, targets]`; the first ones for a row that the model
    raises on, which fails later.
    """
    if not problem.rows:
        return torch.zeros(0, targets, dtype=torch.int64)
    index = torch.arange(problem.rows, device=problem.inputs[0].device)

    def attempt(rows: slice) -> Tensor:
        evaluator = Evaluator(problem)
        out = evaluator.outputs(problem.input, index[rows], check=False)
        return choice(out)

    def failed(error: Raised) -> Tensor:
        firsts = torch.arange(targets, device=index.device)
        return firsts[None]

    return torch.cat(isolate(attempt, failed, slice(0, problem.rows)))


def target_column(
    job: Job, table: Tensor | None, places: NDArray[np.int64], status: list[RowStatus]
) -> pa.Array:
    """Targets by output row. Those that all rows share stand in bad rows too; the others have none
    there.
    """
    target = job.plan.spec.target
    count = len(status)
    same = target.places(job.plan.numerics.outputs)
    if same is not None:
        return repeated_targets(same, count)
    assert table is not None
    full = np.zeros((count, table.shape[1]), np.int64)
    full[places] = table.cpu().numpy()
    present = np.zeros(count, bool)
    present[places] = True
    if not kind_of_target(target).known_without_model:
        present &= np.array(status) != RowStatus.failed
    return target_array(full, present)
