"""Dataset means over clean rows, the same whatever order they are counted in."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.records import SourceFile
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.workers.data.prepasses import base
from integrand.workers.data.prepasses.base import Scan, place_of, read_arrays, write_arrays
from integrand.workers.data.prepasses.means import Means, Partial
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.storage.store import Store
from tests.toys import put

STORE, MEANS = Store(), Means()


def spec(**fields: Any) -> AttributeSpec:
    return parse_spec(
        {
            "name": "t",
            "source": {"uri": "/data"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "baseline": {"kind": "mean"},
            "inputs": [
                {"name": "f", "columns": ["a", "b"], "divide": 2, "mean": [1, 0]},
                {"name": "p", "column": "l"},
            ],
            "output": {"uri": "/out"},
        }
        | fields
    )


def dataset(seed: int, rows: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=3 * rows)), 3)
    return pa.table(
        {
            "a": draw.normal(size=rows) * 1e6,
            "b": draw.normal(size=rows),
            "l": lists,
            "y": draw.integers(0, 2, rows),
        }
    )


def all_partials(files: list[SourceFile], job: AttributeSpec, schema: pa.Schema) -> list[Partial]:
    scan = scan_of(files, job, schema)
    return [MEANS.partial(scan, file, group) for file, group in scan.groups]


def scan_of(
    files: list[SourceFile], job: AttributeSpec, schema: pa.Schema, outputs: int | None = None
) -> Scan:
    shapes = resolve_columns(schema, job)
    return Scan(
        store=STORE, files=tuple(files), spec=job, shapes=shapes, sizes=outputs and (outputs,)
    )


def test_means_of_clean_rows_in_model_units(tmp_path: Path) -> None:
    table = dataset(0, 37)
    dirty = table.set_column(
        1,
        "b",
        pa.array([None if i in (3, 30) else v for i, v in enumerate(table["b"].to_pylist())]),
    )
    files = [put(tmp_path, "0.parquet", dirty), put(tmp_path, "1.parquet", dataset(1, 5))]
    partials = all_partials(files, spec(), table.schema)
    assert [p.count for p in partials] == [9, 10, 10, 6, 5]
    features, lists = MEANS.merge(partials)
    clean = pa.concat_tables(
        [dirty.filter(pa.array([i not in (3, 30) for i in range(37)])), dataset(1, 5)]
    )
    assert np.allclose(
        features,
        [clean["a"].to_numpy().mean() / 2 - 1, clean["b"].to_numpy().mean() / 2],
        rtol=1e-6,
    )
    assert np.allclose(lists, np.array(clean["l"].to_pylist()).mean(0), rtol=1e-5)
    assert (features.dtype, lists.shape) == (np.float64, (3,))


def test_blocks_do_not_lose_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataset(0, 40)
    files = [put(tmp_path, "0.parquet", table, group=40)]
    whole = MEANS.merge(all_partials(files, spec(), table.schema))
    monkeypatch.setattr(base, "BLOCK_ROWS", 7)
    blocks = MEANS.merge(all_partials(files, spec(), table.schema))
    assert all(np.allclose(a, b, rtol=1e-12) for a, b in zip(whole, blocks, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_computation_changes_no_bit(
    values: list[float], shuffle: random.Random
) -> None:
    partials = [Partial(i // 4, i % 4, i + 1, (np.array([v]),)) for i, v in enumerate(values)]
    expected = MEANS.merge(partials)[0].tobytes()
    shuffle.shuffle(partials)
    assert MEANS.merge(partials)[0].tobytes() == expected


def test_rows_that_name_no_output_do_not_count(tmp_path: Path) -> None:
    table = dataset(0, 20).set_column(3, "y", pa.array([0, 1] * 9 + [2, 0]))
    files, job = [put(tmp_path, "0.parquet", table)], spec(target={"kind": "column", "column": "y"})
    scans = [scan_of(files, job, table.schema, n) for n in (3, 2)]
    counted = [MEANS.merge([MEANS.partial(scan, 0, g) for g in range(2)]) for scan in scans]
    kept = table.filter(pa.array([i != 18 for i in range(20)]))
    for (features, lists), rows in zip(counted, (table, kept), strict=True):
        np.testing.assert_allclose(features[1], rows["b"].to_numpy().mean() / 2, rtol=1e-6)
        np.testing.assert_allclose(lists, np.array(rows["l"].to_pylist()).mean(0), rtol=1e-5)


def test_a_source_without_a_clean_row(tmp_path: Path) -> None:
    table = dataset(0, 5).set_column(0, "a", pa.array([float("nan")] * 5))
    with pytest.raises(DataError, match="clean row"):
        MEANS.merge(all_partials([put(tmp_path, "0.parquet", table)], spec(), table.schema))


def test_means_are_stored_once_and_checked(place: tuple[Store, Uri]) -> None:
    store, root = place
    means = (np.array([1.0, 2.0]), np.arange(6.0).reshape(2, 3))
    uri = root.child("_ingest", "d", "mean.safetensors")
    record = write_arrays(store, uri, means)
    assert write_arrays(store, uri, means) == record
    found = read_arrays(store, store.parse(record.uri), record.sha256)
    assert all(np.array_equal(a, b) for a, b in zip(found, means, strict=True))
    with pytest.raises(IntegrityError, match="sha256"):
        write_arrays(store, uri, (np.array([1.0, 3.0]), means[1]))
    store.delete(uri)
    with pytest.raises(IntegrityError, match="no object"):
        read_arrays(store, uri, record.sha256)


def test_the_place_of_the_means_follows_what_can_change_them(tmp_path: Path) -> None:
    files = [put(tmp_path, "0.parquet", dataset(0, 5))]
    root = Uri("file", str(tmp_path))
    other = [put(tmp_path, "0.parquet", dataset(1, 5))]
    column, schema = spec(target={"kind": "column", "column": "y"}), dataset(0, 5).schema
    uris = {
        str(place_of(MEANS, root, scan_of(f, s, schema)))
        for f, s in [
            (files, spec()),
            (other, spec()),
            (files, column),
            (files, spec(compute={"precision": "float64"})),
            (files, spec(compute={"workers": 9})),
        ]
    }
    uris |= {
        str(place_of(MEANS, root, scan_of(files, column, schema, outputs))) for outputs in (2, 3)
    }
    assert len(uris) == 6
