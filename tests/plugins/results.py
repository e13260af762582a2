"""Results of made-up rows, of every status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from integrand.schemas.tables import RowStatus
from integrand.workers.engine.row_results import FILLS, RowResults
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_table
from integrand.workers.shards.parquet import encode
from integrand.workers.shards.results import Results

STATUSES = [RowStatus.ok, RowStatus.not_converged, RowStatus.bad_input, RowStatus.failed]


def made_results(
    rows: int, seed: int = 0, shapes: tuple[tuple[int, ...], ...] = ((3,), (2, 2))
) -> Results:
    """Rows of every status; those without attributions hold NaN, as a shard leaves them."""
    random = np.random.default_rng(seed)
    status = [STATUSES[i % 4] for i in range(rows)]
    there = np.array([s in STATUSES[:2] for s in status], bool)

    def numbers(*shape: int) -> Any:
        return np.where(
            there.reshape(-1, *[1] * len(shape)), random.normal(size=(rows, *shape)), np.nan
        )

    row_id = pa.array(random.permutation(rows))
    target = pa.array(random.integers(0, 3, rows), pa.int32())
    found = RowResults(
        status=np.array(status, object),
        reason=np.array([None if s == "ok" else str(s) for s in status], object),
        f_input=numbers(),
        f_baseline=numbers(),
        gap=numbers(),
        error_estimate=np.abs(numbers()),
        evaluations=random.integers(0, 500, rows).astype(np.int32),
        attributions=tuple(numbers(*shape) for shape in shapes),
    )
    return Results(row_id=row_id, target=target, rows=found)


def assert_same(one: RowResults, other: RowResults) -> None:
    """The same columns in every bit, and NaN where the other has it."""
    for name in FILLS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for mine, theirs in zip(one.attributions, other.attributions, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert one.optional.keys() == other.optional.keys()
    for name, column in one.optional.items():
        assert column.dtype == other.optional[name].dtype
        np.testing.assert_array_equal(column, other.optional[name])


def with_columns(whole: Results, **columns: Any) -> Results:
    """The results with other columns of their rows."""
    return replace(whole, rows=replace(whole.rows, **columns))


def varying_results(rows: int, width: int, seed: int = 0) -> Results:
    """Two inputs, the first of varying length; what lies beyond a row's own length is rubbish."""
    found = made_results(rows, seed, ((width,), (3,)))
    return replace(found, lengths=(np.random.default_rng(seed).integers(1, width + 1, rows), None))


def encoded(job: Job, found: Results, seconds: float = 1.0) -> bytes:
    """The bytes of the first shard's object, if these were its results."""
    footer = shard_footer(
        job.plan,
        job.plan_sha256,
        job.plan.shards[0],
        found,
        seconds={"compute": seconds},
        versions=job.versions,
        same_build=True,
    )
    return encode(results_table(job.plan, found), footer)
