"""Results as the output table, and back."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.records import InputShape
from integrand.schemas.tables import COLUMNS, OPTIONAL_COLUMNS, OPTIONAL_TYPES
from integrand.workers.engine.results import Attribution
from integrand.workers.engine.row_results import FILLS, NUMBERS
from integrand.workers.shards.footer import shard_digest
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_of, results_table, target_array
from tests.plugins.results import (
    assert_same,
    encoded,
    made_results,
    varying_results,
    with_columns,
)


def test_columns_hold_the_results(job: Job) -> None:
    found = made_results(40)
    table = pq.read_table(io.BytesIO(encoded(job, found)))
    assert table.column_names == [
        "row_id",
        "target",
        "status",
        "reason",
        "f_input",
        "f_baseline",
        "attribution_sum",
        "gap",
        "error_estimate",
        "evaluations",
        "attr.a",
        "attr.b",
        "attr.c",
        "attr.image",
    ]
    assert table.column("status").to_pylist() == found.rows.status.tolist()
    assert table.column("reason").to_pylist() == found.rows.reason.tolist()
    assert table.schema.field("attr.image").metadata == {b"shape": b"[2, 2]"}
    there = found.rows.attributed
    for name in ("f_input", "gap", "error_estimate", "attribution_sum", "attr.a", "attr.image"):
        assert table.column(name).is_valid().to_pylist() == there.tolist()
    np.testing.assert_array_equal(
        table.column("attr.b").to_numpy()[there], found.rows.attributions[0][there, 1]
    )
    images = np.array(table.column("attr.image").filter(pa.array(there)).to_pylist()).reshape(
        -1, 2, 2
    )
    np.testing.assert_array_equal(images, found.rows.attributions[1][there])
    sums = sum(a.reshape(40, -1).sum(1) for a in found.rows.attributions)
    np.testing.assert_allclose(
        table.column("attribution_sum").to_numpy()[there], sums[there], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("targets", "expected", "kind"),
    [
        (None, [None, None], pa.int32()),
        ([[3], [4]], [3, None], pa.int32()),
        ([[1, 0], [0, 2]], ["1,0", None], pa.string()),
    ],
)
def test_target_columns(targets: Any, expected: list[Any], kind: pa.DataType) -> None:
    array = None if targets is None else np.array(targets)
    found = target_array(array, np.array([True, False]))
    assert (found.to_pylist(), found.type) == (expected, kind)


def test_lists_of_varying_length_are_written_without_padding(make_job: Callable[..., Job]) -> None:
    plan = make_job(pa.table({"id": range(4), "a": [1.0] * 4, "b": [1.0] * 4, "c": [2.0] * 4})).plan
    shapes = (
        InputShape(name="t", columns=("t",), shape=(8,), named=False, varying=True),
        plan.inputs[0],
    )
    found = varying_results(8, 6)
    table = results_table(plan.model_copy(update={"inputs": shapes}), found)
    assert table.schema.field("attr.t").type == pa.list_(pa.float64())
    for i, (values, total) in enumerate(
        zip(table["attr.t"].to_pylist(), table["attribution_sum"].to_pylist(), strict=True)
    ):
        expected = found.values(i)[0].tolist() if found.rows.attributed[i] else None
        assert values == expected
        assert (total is None) == (expected is None)
        if expected is not None:
            assert total == math.fsum(expected) + found.values(i)[1].sum()


def test_a_table_is_read_as_the_results_that_it_was_made_of(job: Job) -> None:
    found = made_results(12)
    again = results_of(job.plan, results_table(job.plan, found))
    assert shard_digest(again) == shard_digest(found)
    assert again.rows.reason.tolist() == found.rows.reason.tolist()
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(again.rows, name), getattr(found.rows, name))


def test_what_is_known_of_a_row_has_a_column_each() -> None:
    """A diagnostic is declared at RowResults, described at COLUMNS, and a field of Attribution."""
    made = {"row_id", "target", "attribution_sum"}
    assert set(COLUMNS) == set(FILLS) | made
    assert set(NUMBERS) < {field.name for field in fields(Attribution)}


def test_every_optional_column_is_documented() -> None:
    assert set(OPTIONAL_TYPES) == set(OPTIONAL_COLUMNS)
    assert not set(OPTIONAL_COLUMNS) & set(COLUMNS)


@pytest.mark.parametrize("asked", [("draws",), ("baseline_spread", "draws")])
def test_optional_columns_stand_behind_the_attributions(
    job: Job, asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, plain = made_results(12), made_results(12)
    spread = np.where(found.rows.attributed, np.arange(12.0), np.nan)
    known = {"baseline_spread": spread, "draws": np.arange(12, dtype=np.int32)}
    found = with_columns(found, optional={name: known[name] for name in asked})
    monkeypatch.setattr("integrand.workers.shards.output.optional_columns", lambda plan: asked)
    table = results_table(job.plan, found)
    assert table.column_names[-len(asked) :] == list(asked)
    assert table.column_names[: -len(asked)][-1] == "attr.image"
    again = results_of(job.plan, table)
    assert shard_digest(again) == shard_digest(found) != shard_digest(plain)
    assert_same(again.rows, found.rows)
