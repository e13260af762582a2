"""Rows whose baselines are made a part of them after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.workers.shards import table as shard_table
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_table
from integrand.workers.shards.results import Results
from integrand.workers.shards.table import attribute_table

RANGED = [{"name": "f", "columns": ["a", "b", "c"], "range": [-3, 3]}]
BASELINES: dict[str, dict[str, Any]] = {
    "own": {"kind": "gaussian", "sigma": 0.5, "draws": 4},
    "shared": {"kind": "uniform", "draws": 3, "shared": True},
    "both": {"kind": "average", "of": [{"kind": "zero"}, {"kind": "uniform", "draws": 2}]},
}


def rows(count: int = 24) -> pa.Table:
    """A bad row, and two that are equal but for their ids."""
    values = np.random.default_rng(3).normal(size=(count, 3))
    values[7] = values[3]
    values[5, 1] = np.nan
    return pa.table({"id": np.arange(count)} | dict(zip("abc", values.T, strict=True)))


def run(job: Job, table: pa.Table) -> Results:
    return attribute_table(job, table, table["id"].combine_chunks(), lambda: None)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("name", BASELINES)
def test_no_bit_depends_on_the_parts(
    make_job: Callable[..., Job], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(rows(), "smooth", RANGED, baseline=BASELINES[name])
    whole = run(job, rows())
    draws = job.plan.spec.draws
    for most in (1, 5):  # rows of a part: elements of 8 bytes
        monkeypatch.setattr(shard_table, "_ON_CPU", most * draws * 3 * 8)
        found = run(job, rows())
        assert results_table(job.plan, found).equals(results_table(job.plan, whole))
        assert found.duplicates == whole.duplicates == (1 if name == "shared" else 0)


def test_one_baseline_a_row_is_made_at_once(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_table, "_ON_CPU", 1)
    job = make_job(rows(), "smooth", RANGED)
    assert shard_table._rows_at_once(job, job.plan.inputs) > 24
    drawn = make_job(rows(), "smooth", RANGED, "drawn", baseline=BASELINES["own"])
    assert shard_table._rows_at_once(drawn, drawn.plan.inputs) == 1
