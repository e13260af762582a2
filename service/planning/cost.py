"""What a job's rows cost: the rows of a step batch that memory allows, evaluations, seconds, and
the memory of a worker.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.sample import one_target
from integrand.workers.engine.batching import live_rows
from integrand.workers.engine.memory import MemoryBudget, memory_budget, row_bytes
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.base import Method
from integrand.workers.methods.explaining import explain
from integrand.workers.models.outputs import Forward
from integrand.workers.models.portions import Portions
from integrand.workers.models.row_tensors import RowTensors

TRIAL_S = 10.0
"""Longest that a method is tried on real rows; a dearer model is projected at its most evaluations.
"""
SHARED = 8
"""Targets for which a step batch on a GPU leaves room: forward passes that more of them share save
little more.
"""
SPARE = 1.2
"""Reading, judging and writing, as a share of the time in step batches."""


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """Bytes of a row on a device.

    step          in a step batch, as `row_bytes` finds them
    kept          of one target while it is under way
    kept_by_step  of the targets that share forward passes, by rows of a step batch
    """

    device: torch.device
    step: int
    kept: int
    kept_by_step: int


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of a worker: of its process, and on its GPU beside what CUDA itself takes there."""

    host: int
    device: int = 0


def row_cost(
    method: Method[Any], prepared: Prepared, sample: RowTensors, targets: int = 1
) -> RowCost:
    """What one row of so many targets takes, found on a few."""
    kept = sample.elements * method.needs.kept_bytes
    shared = min(targets, SHARED)
    return RowCost(
        device=sample.device,
        step=row_bytes(prepared, sample.inputs, sample.forward_args),
        kept=kept,
        kept_by_step=-(-2 * kept * shared // method.needs.first_evaluations),
    )


def memory_of(spec: AttributeSpec, device: torch.device) -> MemoryBudget:
    """What the spec lets a worker take of a device's memory."""
    compute = spec.compute
    share = compute.gpus_per_worker or 1.0
    return memory_budget(device, compute.memory, share=share)


def affordable_rows(spec: AttributeSpec, budget: MemoryBudget, row: RowCost, model: Forward) -> int:
    """Rows of a step batch: as the spec or the model has them, or as memory allows. Raises
    SpecError where it allows none.
    """
    if spec.compute.batch_rows != "auto":
        return spec.compute.batch_rows
    if isinstance(model, Portions):
        return model.rows
    if row.step > budget.most:
        raise too_little_memory(spec, budget, row.step)
    return budget.batch_rows(row.step, row.kept_by_step)


def too_little_memory(spec: AttributeSpec, budget: MemoryBudget, needed: int) -> SpecError:
    """For a single row that needs more than there is."""
    needs = f"at least {needed / 2**20:,.0f} MiB: what one row keeps for its backward pass"
    there = f"{budget.most / 2**20:,.0f} MiB"
    if budget.device != "cuda" or spec.compute.memory != "auto":
        return SpecError(
            "compute.memory",
            expected=needs,
            seen=there,
            next_step="raise compute.memory, or run where there is more",
        )
    return SpecError(
        "compute.gpus_per_worker",
        expected=f"{needs} on the GPU",
        seen=f"{there} free for a worker with {spec.compute.gpus_per_worker:g} of it",
        next_step=(
            "raise compute.gpus_per_worker to 1, end what else holds its memory, or take a GPU with"
            " more of it"
        ),
    )


def evaluations_per_row(
    method: Method[Any],
    prepared: Prepared,
    sample: RowTensors,
    batch_rows: int,
    batch_s: float,
    *,
    smaller: tuple[int, ...] = (),
) -> float:
    """The mean, tried on the sample where that is quick and rows differ in it; else the most."""
    most = method.evaluations_of(sample)
    trial_s = sample.rows * most / batch_rows * batch_s
    if not method.varies or trial_s > TRIAL_S:
        return float(most)
    rows = one_target(sample)
    found = explain(prepared, rows, method, batch_rows=batch_rows, smaller=smaller)
    mean = float(found.results.evaluations.mean(dtype=float))
    return max(1.0, mean)


def seconds_per_row(evaluations: float, batch_rows: int, batch_s: float) -> float:
    """Of an output row: its evaluations, and one more for f at both ends."""
    return (evaluations + 1) * batch_s / batch_rows * SPARE


def worker_memory(method: Method[Any], row: RowCost, batch_rows: int) -> WorkerMemory:
    """The process as it is now, one step batch, and what is kept of live rows: these on the device
    where that is a GPU.
    """
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    live = live_rows(batch_rows, method.needs.first_evaluations)
    computed = row.step * batch_rows + live * row.kept
    if row.device.type != "cuda":
        return WorkerMemory(int(process + computed + row.step * batch_rows))
    return WorkerMemory(int(process), int(torch.cuda.memory_allocated(row.device) + computed))
