"""Results as they are stored: the largest alone, and rounded, with what that costs told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.records import InputShape, Plan
from integrand.schemas.specs.output import TopKStore
from integrand.schemas.tables import RowStatus, feature_names
from integrand.workers.shards.footer import shard_digest
from integrand.workers.shards.job import Job
from integrand.workers.shards.layouts import layout_of
from integrand.workers.shards.output import attribution_sums, results_of, results_table
from integrand.workers.shards.storing import as_stored
from tests.plugins.results import made_results, varying_results, with_columns

ROWS = 12
SHAPES = {
    "named": InputShape(name="f", columns=("a", "b", "c", "d"), shape=(4,), named=True),
    "tensor": InputShape(name="image", columns=("p",), shape=(2, 3), named=False),
    "varying": InputShape(name="text", columns=("t",), shape=(5,), named=False, varying=True),
}


@pytest.fixture
def planned(job: Job) -> Callable[..., Plan]:
    """The plan of a job in float64 with another output."""

    def plan(**output: Any) -> Plan:
        spec = job.plan.spec
        changed = spec.output.model_validate({"uri": "out", **output})
        return job.plan.model_copy(update={"spec": spec.model_copy(update={"output": changed})})

    return plan


def largest(values: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_largest_stand_in_order_and_are_read_back(
    kind: str, k: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrand.workers.shards.layouts.WIDE", 1 if wide else 100)
    shape = SHAPES[kind]
    random = np.random.default_rng(k)
    width = int(np.prod(shape.shape))
    values = random.integers(-2, 3, (ROWS, *shape.shape)).astype(np.float32)  # many are equal
    lengths = random.integers(1, width + 1, ROWS) if shape.varying else None
    there = random.random(ROWS) < 0.8
    values[~there] = np.nan
    layout = layout_of(shape, TopKStore(k=k))
    columns = layout.columns(values, lengths, there)
    fields = layout.fields(pa.float32())
    assert [f.name for f in fields] == [f"attr.{shape.name}", f"index.{shape.name}"]
    assert [c.type for c in columns] == [f.type for f in fields]
    read, ends = layout.read(iter(columns))
    kept, kept_ends = layout.kept(values, lengths)
    flat = values.reshape(ROWS, -1)
    for row in range(ROWS):
        found, places = (column[row].as_py() for column in columns)
        if not there[row]:
            assert found is places is None
            continue
        own = flat[row, : width if lengths is None else lengths[row]]
        assert places == largest(own, k)
        assert found == own[places].tolist()
        whole = np.zeros(width)
        whole[places] = found
        stop = read.reshape(ROWS, -1).shape[1]
        np.testing.assert_array_equal(read[row].reshape(-1), whole[:stop])
        if ends is not None and kept_ends is not None:
            assert ends[row] == kept_ends[row] == max(places) + 1
            whole = whole[: ends[row]]
        np.testing.assert_array_equal(kept[row].reshape(-1)[: len(whole)], whole)
    again = layout.columns(read, ends, there)
    assert [c.to_pylist() for c in again] == [c.to_pylist() for c in columns]


def test_columns_of_the_largest_know_the_features() -> None:
    named, tensor, varying = (
        layout_of(shape, TopKStore(k=2)).fields(pa.float32())[0] for shape in SHAPES.values()
    )
    assert feature_names(named) == ["a", "b", "c", "d"]
    assert feature_names(tensor)[:4] == ["image[0,0]", "image[0,1]", "image[0,2]", "image[1,0]"]
    assert feature_names(varying) == ["text"]
    assert feature_names(varying, 2) == ["text[0]", "text[1]"]


def test_a_full_store_leaves_results_as_they_are(planned: Callable[..., Plan]) -> None:
    found = made_results(ROWS)
    for output in ({}, {"store": "full"}):
        assert as_stored(planned(**output), found, 1e-2) is found


@pytest.mark.parametrize(
    "output",
    [
        {"dtype": "float16"},
        {"dtype": "float32"},
        {"store": {"kind": "top_k", "k": 2}},
        {"store": {"kind": "top_k", "k": 2}, "dtype": "float16"},
    ],
    ids=str,
)
def test_reading_gives_back_what_is_stored(
    planned: Callable[..., Plan], output: dict[str, Any]
) -> None:
    plan, whole = planned(**output), made_results(ROWS)
    found = as_stored(plan, whole, 1e-2)
    table = results_table(plan, found)
    again = results_of(plan, table)
    assert shard_digest(again) == shard_digest(found)
    there = found.rows.attributed
    np.testing.assert_array_equal(again.sums[there], attribution_sums(plan, whole)[there])
    assert results_table(plan, again).equals(table)


def test_varying_rows_are_read_back(planned: Callable[..., Plan]) -> None:
    shapes = (
        SHAPES["varying"],
        SHAPES["named"].model_copy(update={"columns": ("a", "b", "c"), "shape": (3,)}),
    )
    plan = planned(store={"kind": "top_k", "k": 2}).model_copy(update={"inputs": shapes})
    found = as_stored(plan, varying_results(ROWS, 5), 1e-2)
    again = results_of(plan, results_table(plan, found))
    assert shard_digest(again) == shard_digest(found)


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rounding_is_measured_in_each_row(
    planned: Callable[..., Plan], dtype: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrand.workers.shards.storing.AT_ONCE", at_once)
    whole = made_results(ROWS)
    found = as_stored(planned(dtype=dtype), whole, None)
    for row in np.flatnonzero(whole.rows.attributed).tolist():
        exact = np.concatenate(whole.values(row))
        stored = np.concatenate(found.values(row)).astype(np.float64)
        moved = np.abs(stored - exact).sum() / np.abs(exact).sum()
        expected = whole.rows.error_estimate[row] + moved
        assert found.rows.error_estimate[row] == pytest.approx(expected, rel=1e-12)
        assert 0 < moved <= np.finfo(dtype).eps
    assert found.rows.status.tolist() == whole.rows.status.tolist()


def test_rows_that_rounding_lifts_above_the_tolerance_say_so(planned: Callable[..., Plan]) -> None:
    whole = made_results(ROWS)
    tiny = tuple(values * 1e-7 for values in whole.rows.attributions)
    error = np.where(whole.rows.attributed, 1e-3, np.nan)
    whole = with_columns(whole, attributions=tiny, error_estimate=error)
    found = as_stored(planned(dtype="float16"), whole, 1e-2)
    ok = whole.rows.status == RowStatus.ok
    assert set(found.rows.status[ok]) == {RowStatus.at_precision_floor}
    assert (found.rows.error_estimate[ok] > 1e-2).all()
    assert all("rounding to float16" in reason for reason in found.rows.reason[ok])
    np.testing.assert_array_equal(found.rows.status[~ok], whole.rows.status[~ok])
    unheld = as_stored(planned(dtype="float16"), whole, None)
    np.testing.assert_array_equal(unheld.rows.status, whole.rows.status)


def test_what_float16_cannot_hold_is_no_attribution(planned: Callable[..., Plan]) -> None:
    whole = made_results(ROWS)
    first = whole.rows.attributions[0].copy()
    first[4, 1] = 7e4
    known = {"baseline_spread": np.ones(ROWS), "reasons_status": np.full(ROWS, "certified", object)}
    others = (first, whole.rows.attributions[1])
    whole = with_columns(whole, attributions=others, optional=known)
    plan = planned(dtype="float16")
    found = as_stored(plan, whole, None)
    assert found.rows.optional["reasons_status"][3:6].tolist() == ["certified", None, "certified"]
    assert np.isnan(found.rows.optional["baseline_spread"]).tolist() == [
        i == 4 for i in range(ROWS)
    ]
    assert found.rows.status[4] == RowStatus.nonfinite
    assert "does not fit float16" in found.rows.reason[4]
    assert np.isnan([found.rows.gap[4], found.rows.error_estimate[4]]).all()
    table = results_table(plan, found)
    behind = [name for name in table.column_names if name.startswith("attr.")]
    assert all(table[name][4].as_py() is None for name in (*behind, "attribution_sum", "gap"))
    assert not any(np.isinf(values).any() for values in found.rows.attributions)


def test_the_largest_of_rounded_numbers_are_chosen(planned: Callable[..., Plan]) -> None:
    """What is equal once it is rounded stands by its place, as it is read back."""
    whole = made_results(ROWS, shapes=((3,), (2, 2)))
    equal = np.tile([1.0, 1.00001, 0.5], (ROWS, 1))
    whole = with_columns(whole, attributions=(equal, whole.rows.attributions[1]))
    plan = planned(dtype="float16", store={"kind": "top_k", "k": 2})
    found = results_table(plan, as_stored(plan, whole, None))
    assert found[f"index.{plan.inputs[0].name}"][0].as_py() == [0, 1]
