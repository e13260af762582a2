"""Dataset means over clean rows, the same whatever order they are counted in; and ids that are one of a kind."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.records import SourceFile
from integrand.schemas.specs import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.workers import statistics
from integrand.workers.identity import check_row_ids
from integrand.workers.reading import inspect_file, resolve_columns
from integrand.workers.statistics import Partial, fold_means, means_uri, partial_sums, read_means, write_means
from integrand.workers.store import Store

STORE = Store()


def put(root: Path, path: str, table: pa.Table, group: int = 10) -> SourceFile:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    (root / path).write_bytes(sink.getvalue())
    return inspect_file(STORE, STORE.info(Uri("file", str(root / path))), path)[0]


def spec(**fields: Any) -> AttributeSpec:
    return parse_spec({
        "name": "t", "source": {"uri": "/data"}, "model": {"kind": "factory", "entrypoint": "m:f"},
        "baseline": {"kind": "mean"},
        "inputs": [{"name": "f", "columns": ["a", "b"], "divide": 2, "mean": [1, 0]}, {"name": "p", "column": "l"}],
        "output": {"uri": "/out"},
    } | fields)  # fmt: skip


def dataset(seed: int, rows: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=3 * rows)), 3)
    return pa.table({"a": draw.normal(size=rows) * 1e6, "b": draw.normal(size=rows), "l": lists,
                     "y": draw.integers(0, 2, rows)})  # fmt: skip


def all_partials(files: list[SourceFile], job: AttributeSpec, schema: pa.Schema) -> list[Partial]:
    shapes = resolve_columns(schema, job)
    return [
        partial_sums(STORE, files, i, g, job, shapes) for i, f in enumerate(files) for g in range(len(f.row_groups))
    ]


def test_means_of_clean_rows_in_model_units(tmp_path: Path) -> None:
    table = dataset(0, 37)
    dirty = table.set_column(
        1, "b", pa.array([None if i in (3, 30) else v for i, v in enumerate(table["b"].to_pylist())])
    )
    files = [put(tmp_path, "0.parquet", dirty), put(tmp_path, "1.parquet", dataset(1, 5))]
    partials = all_partials(files, spec(), table.schema)
    assert [p.count for p in partials] == [9, 10, 10, 6, 5]
    features, lists = fold_means(partials)
    clean = pa.concat_tables([dirty.filter(pa.array([i not in (3, 30) for i in range(37)])), dataset(1, 5)])
    assert np.allclose(features, [clean["a"].to_numpy().mean() / 2 - 1, clean["b"].to_numpy().mean() / 2], rtol=1e-6)
    assert np.allclose(lists, np.array(clean["l"].to_pylist()).mean(0), rtol=1e-5)
    assert (features.dtype, lists.shape) == (np.float64, (3,))


def test_blocks_do_not_lose_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataset(0, 40)
    files = [put(tmp_path, "0.parquet", table, group=40)]
    whole = fold_means(all_partials(files, spec(), table.schema))
    monkeypatch.setattr(statistics, "_BLOCK_ROWS", 7)
    blocks = fold_means(all_partials(files, spec(), table.schema))
    assert all(np.allclose(a, b, rtol=1e-12) for a, b in zip(whole, blocks, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_computation_changes_no_bit(values: list[float], shuffle: random.Random) -> None:
    partials = [Partial(i // 4, i % 4, i + 1, (np.array([v]),)) for i, v in enumerate(values)]
    expected = fold_means(partials)[0].tobytes()
    shuffle.shuffle(partials)
    assert fold_means(partials)[0].tobytes() == expected


def test_a_source_without_a_clean_row(tmp_path: Path) -> None:
    table = dataset(0, 5).set_column(0, "a", pa.array([float("nan")] * 5))
    with pytest.raises(DataError, match="clean row"):
        fold_means(all_partials([put(tmp_path, "0.parquet", table)], spec(), table.schema))


def test_means_are_stored_once_and_checked(place: tuple[Store, Uri]) -> None:
    store, root = place
    means = (np.array([1.0, 2.0]), np.arange(6.0).reshape(2, 3))
    uri = root.child("_ingest", "d", "mean.safetensors")
    record = write_means(store, uri, means)
    assert write_means(store, uri, means) == record
    found = read_means(store, store.parse(record.uri), record.sha256)
    assert all(np.array_equal(a, b) for a, b in zip(found, means, strict=True))
    with pytest.raises(IntegrityError, match="sha256"):
        write_means(store, uri, (np.array([1.0, 3.0]), means[1]))
    store.delete(uri)
    with pytest.raises(IntegrityError, match="no object"):
        read_means(store, uri, record.sha256)


def test_the_place_of_the_means_follows_what_can_change_them(tmp_path: Path) -> None:
    files = [put(tmp_path, "0.parquet", dataset(0, 5))]
    root = Uri("file", str(tmp_path))
    other = [put(tmp_path, "0.parquet", dataset(1, 5))]
    column = spec(target={"kind": "column", "column": "y"})
    uris = {str(means_uri(root, f, s)) for f, s in [(files, spec()), (other, spec()), (files, column),
            (files, spec(compute={"precision": "float64"})), (files, spec(compute={"workers": 9}))]}  # fmt: skip
    assert len(uris) == 4


def test_row_ids_that_are_null_or_twice(tmp_path: Path) -> None:
    files = [put(tmp_path, "0.parquet", pa.table({"id": list(range(25))})),
             put(tmp_path, "1.parquet", pa.table({"id": list(range(25, 40))}))]  # fmt: skip
    check_row_ids(STORE, files, "id")
    twice = [*files, put(tmp_path, "2.parquet", pa.table({"id": [100, 27, 3, 101]}))]
    with pytest.raises(
        DataError, match=r"2 ids .* (27 at 1.parquet#2 and 2.parquet#1|3 at 0.parquet#3 and 2.parquet#2)"
    ):
        check_row_ids(STORE, twice, "id")
    null = [*files, put(tmp_path, "3.parquet", pa.table({"id": [200, None, None]}))]
    with pytest.raises(DataError, match=r"2 null, the first at 3.parquet#1") as error:
        check_row_ids(STORE, null, "id")
    assert "drop source.row_id" in error.value.next_step


def test_a_line_without_an_id_is_excused(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a", None, None]), "_bad": [None, "line 3: broken", "line 4: broken"]})
    check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")
    table = table.set_column(1, "_bad", pa.array([None, "line 3: broken", None]))
    with pytest.raises(DataError, match="1 null"):
        check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")
