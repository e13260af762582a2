"""Dataset medians over clean rows: exact, whatever row groups."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError
from integrand.workers.data.prepasses import medians
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan
from integrand.workers.data.prepasses.medians import Medians
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.storage.store import Store
from tests.toys import put, spec

FEATURES = {"name": "f", "columns": ["a", "b"]}
LISTS = {"name": "l", "column": "l", "shape": [3]}


def found(scan: Scan, order: random.Random | None = None) -> tuple[Arrays, int]:
    """What the passes find in the end, and how many there were."""
    result: Arrays | PrePass[Any] = Medians()
    passes = 0
    while isinstance(result, PrePass):
        step = pickle.loads(pickle.dumps(result))
        partials = [step.partial(scan, file, group) for file, group in scan.groups]
        if order is not None:
            order.shuffle(partials)
        some = step.condensed(partials[:3])
        result, passes = step.merge([*some, *partials[3:]]), passes + 1
    return result, passes


def scan_of(folder: Path, table: pa.Table, group: int, *inputs: Any, **fields: Any) -> Scan:
    half = table.num_rows // 2
    parts = [table.slice(0, half), table.slice(half)]
    files = [put(folder, f"{group}-{i}.parquet", part, group) for i, part in enumerate(parts)]
    job = spec(*inputs, **fields)
    shapes = resolve_columns(table.schema, job)
    return Scan(store=Store(), files=tuple(files), spec=job, shapes=shapes)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 7, 40, 41])
@pytest.mark.parametrize("most_bits", [16, 5])
def test_medians_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, count: int, most_bits: int
) -> None:
    monkeypatch.setattr(medians, "_MOST_BITS", most_bits)
    draw = np.random.default_rng(count)
    values = draw.normal(size=(count, 5)) * 10.0 ** draw.integers(-9, 9, (count, 5))
    values[draw.random((count, 5)) < 0.2] = 0.0
    values[draw.random((count, 5)) < 0.1] *= -1
    table = pa.table({"a": values[:, 0], "b": values[:, 1], "l": list(values[:, 2:])})
    scan = scan_of(
        tmp_path, table, 9, FEATURES | {"divide": 3}, LISTS, compute={"precision": precision}
    )
    (features, lists), passes = found(scan)
    kept = values.astype(precision)
    scaled = (kept[:, :2] / np.asarray(3, precision)).astype(np.float64)
    np.testing.assert_allclose(features, np.median(scaled, 0), rtol=1e-6)
    assert lists.tobytes() == (np.median(kept[:, 2:].astype(np.float64), 0) + 0.0).tobytes()
    width = 32 if precision == "float32" else 64
    assert passes == -(-width // min(most_bits, 14))  # as many as five elements fit


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=25),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_row_groups_and_their_order_change_no_bit(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[float],
    group: int,
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    scan = scan_of(folder, pa.table({"a": values, "b": values[::-1]}), group, FEATURES)
    (features,), _ = found(scan, order)
    expected = np.median(np.array(values, np.float32).astype(np.float64))
    assert features.tolist() == [expected, expected]


def test_bad_rows_do_not_count(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, np.nan, 3.0, 100.0], "b": [1.0, 2.0, 3.0, np.inf]})
    (features,), _ = found(scan_of(tmp_path, table, 10, FEATURES))
    assert features.tolist() == [2.0, 2.0]


def test_no_clean_row_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"a": [np.nan] * 3, "b": [1.0] * 3})
    with pytest.raises(DataError, match=r"median baseline(.|\n)*at least one clean row"):
        found(scan_of(tmp_path, table, 10, FEATURES))


def test_counts_are_bounded() -> None:
    for elements in (1, 30, 784, 16_000, 150_000):
        size = 16 * elements << medians._step(elements)
        assert size <= max(2 << 20, 16 * elements * 16)
