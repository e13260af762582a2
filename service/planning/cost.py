"""What a job's rows cost: the rows of a step batch that memory allows, evaluations, seconds, and
the memory of a worker.
"""

from __future__ import annotations

import resource
from typing import Any

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.sample import one_target
from integrand.workers.engine.batching import step_batch_rows
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.tracks import live_rows
from integrand.workers.methods.base import Method
from integrand.workers.methods.explaining import explain
from integrand.workers.models.outputs import Forward
from integrand.workers.models.portions import Portions
from integrand.workers.models.row_tensors import RowTensors

TRIAL_S = 10.0
"""Longest that a method is tried on real rows; a dearer model is projected at its most evaluations.
"""
SPARE = 1.2
"""Reading, judging and writing, as a share of the time in step batches."""


def affordable_rows(spec: AttributeSpec, row_bytes: int, model: Forward) -> int:
    """Rows of a step batch: as the spec or the model has them, or as memory allows. Raises
    SpecError where it allows none.
    """
    if spec.compute.batch_rows != "auto":
        return spec.compute.batch_rows
    if isinstance(model, Portions):
        return model.rows
    if row_bytes > spec.compute.memory:
        raise SpecError(
            "compute.memory",
            expected=(
                f"at least {row_bytes / 2**20:.0f} MiB: what one row keeps for its backward pass"
            ),
            seen=f"{spec.compute.memory / 2**20:.0f} MiB",
            next_step="raise compute.memory, or run where there is more",
        )
    return step_batch_rows(row_bytes, spec.compute.memory)


def evaluations_per_row(
    method: Method[Any], prepared: Prepared, sample: RowTensors, batch_rows: int, batch_s: float
) -> float:
    """The mean, tried on the sample where that is quick and rows differ in it; else the most."""
    most = method.most_evaluations
    trial_s = sample.rows * most / batch_rows * batch_s
    if not method.varies or trial_s > TRIAL_S:
        return float(most)
    found = explain(prepared, one_target(sample), method, batch_rows=batch_rows)
    mean = float(found.results.evaluations.mean(dtype=float))
    return max(1.0, mean)


def seconds_per_row(evaluations: float, batch_rows: int, batch_s: float) -> float:
    """Of an output row: its evaluations, and one more for f at both ends."""
    return (evaluations + 1) * batch_s / batch_rows * SPARE


def worker_bytes(method: Method[Any], sample: RowTensors, row_bytes: int, batch_rows: int) -> int:
    """The process as it is now, one step batch, and what is kept of live rows."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    live = live_rows(batch_rows, method.needs.first_evaluations)
    batch_bytes = 2 * row_bytes * batch_rows
    live_bytes = live * sample.elements * method.needs.kept_bytes
    return int(process + batch_bytes + live_bytes)
