"""Dataset means over clean rows, the same whatever order they are counted in; and ids that are one
of a kind.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.records import SourceFile
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.workers.data import row_ids as identity
from integrand.workers.data.inspection import inspect_file
from integrand.workers.data.prepasses import base
from integrand.workers.data.prepasses.base import Scan, place_of, read_arrays, write_arrays
from integrand.workers.data.prepasses.means import Means, Partial
from integrand.workers.data.reading import CONTENT
from integrand.workers.data.row_ids import check_row_ids, hash_ids
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.storage.store import Access, Store

STORE, MEANS = Store(), Means()


def put(root: Path, path: str, table: pa.Table, group: int = 10) -> SourceFile:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    (root / path).write_bytes(sink.getvalue())
    return inspect_file(STORE, STORE.info(Uri("file", str(root / path))), path)[0]


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
    return Scan(store=STORE, files=tuple(files), spec=job, shapes=shapes, outputs=outputs)


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


def test_row_ids_that_are_null_or_twice(tmp_path: Path) -> None:
    files = [
        put(tmp_path, "0.parquet", pa.table({"id": list(range(25))})),
        put(tmp_path, "1.parquet", pa.table({"id": list(range(25, 40))})),
    ]
    check_row_ids(STORE, files, "id")
    twice = [*files, put(tmp_path, "2.parquet", pa.table({"id": [100, 27, 3, 101]}))]
    with pytest.raises(
        DataError,
        match=r"2 ids .* (27 at 1.parquet#2 and 2.parquet#1|3 at 0.parquet#3 and 2.parquet#2)",
    ):
        check_row_ids(STORE, twice, "id")
    null = [*files, put(tmp_path, "3.parquet", pa.table({"id": [200, None, None]}))]
    with pytest.raises(DataError, match=r"2 null, the first at 3.parquet#1") as error:
        check_row_ids(STORE, null, "id")
    assert "drop source.row_id" in error.value.next_step
    nan = [put(tmp_path, "4.parquet", pa.table({"id": [0.5, float("nan")]}))]
    with pytest.raises(DataError, match=r"no NaN[\s\S]*1 null, the first at 4.parquet#1"):
        check_row_ids(STORE, nan, "id")


def test_a_line_without_an_id_is_excused(tmp_path: Path) -> None:
    table = pa.table(
        {"id": pa.array(["a", None, None]), "_bad": [None, "line 3: broken", "line 4: broken"]},
        metadata={CONTENT: b"a piece"},
    )
    check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")
    table = table.set_column(1, "_bad", pa.array([None, "line 3: broken", None]))
    with pytest.raises(DataError, match="1 null"):
        check_row_ids(STORE, [put(tmp_path, "0.parquet", table)], "id")


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.string(), pa.binary(9), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_more_ids_than_a_shard_may_take(tmp_path: Path, kind: pa.DataType) -> None:
    """40 kB of ids or more, by the kilobyte."""
    tight, names = Store(Access(decoded_bytes=1000)), [f"{i:09d}" for i in range(5000)]
    ids = (
        pa.array(range(5000))
        if kind == pa.int64()
        else pa.array(names).cast(pa.binary()).cast(kind)
    )
    files = [put(tmp_path, "0.parquet", pa.table({"id": ids}), 1500)]
    check_row_ids(tight, files, "id")
    files.append(put(tmp_path, "1.parquet", pa.table({"id": ids[4321:4322]})))
    with pytest.raises(
        DataError,
        match=r"1 ids .*4321' at 0.parquet#4321 and 1.parquet#0|1 ids .* 4321 at 0.parquet#4321",
    ):
        check_row_ids(tight, files, "id")


def test_one_id_that_is_larger_than_a_shard_may_be(tmp_path: Path) -> None:
    file = put(tmp_path, "0.parquet", pa.table({"id": ["a", "b" * 2000, "c"]}))
    with pytest.raises(DataError, match="at most 1000 bytes"):
        check_row_ids(Store(Access(decoded_bytes=1000)), [file], "id")


def test_an_id_is_the_same_in_files_of_unlike_types(tmp_path: Path) -> None:
    kinds = pa.int32(), pa.int64(), pa.float64()
    files = [
        put(tmp_path, f"{k}.parquet", pa.table({"id": pa.array([k, -7 - k], kind)}))
        for k, kind in enumerate(kinds)
    ]
    check_row_ids(STORE, files, "id")
    for kind in kinds:
        again = put(tmp_path, "9.parquet", pa.table({"id": pa.array([50, -7], kind)}))
        with pytest.raises(DataError, match=r"1 ids .* -7(.0)? at 0.parquet#1 and 9.parquet#1"):
            check_row_ids(STORE, [*files, again], "id")


def test_ids_are_one_of_a_kind_whatever_they_hash_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two hashes for all ids, each of them is compared."""
    monkeypatch.setattr(identity, "hash_ids", lambda ids: hash_ids(ids) % np.uint64(2))
    files = [put(tmp_path, "0.parquet", pa.table({"id": [f"id {i}" for i in range(25)]}))]
    check_row_ids(STORE, files, "id")
    files.append(put(tmp_path, "1.parquet", pa.table({"id": ["id 99", "id 24"]})))
    with pytest.raises(DataError, match=r"'id 24' at 0.parquet#24 and 1.parquet#1"):
        check_row_ids(STORE, files, "id")


IDS = (
    [
        pa.array([1, -1, None, 1], kind)
        for kind in (
            pa.int8(),
            pa.float16(),
            pa.float64(),
            pa.decimal32(5, 2),
            pa.decimal128(9, 2),
            pa.decimal256(50),
            pa.date32(),
            pa.timestamp("us", "UTC"),
            pa.time64("us"),
            pa.duration("s"),
        )
    ]
    + [
        pa.array([b"abc", b"\xff\x00c", None, b"abc"], kind)
        for kind in (pa.binary(), pa.large_binary(), pa.binary(3))
    ]
    + [
        pa.array([True, False, None, True]),
        pa.array(["a", "", None, "a"]),
        pa.array([2**62, -(2**62), None, 2**62], pa.timestamp("s")),
    ]
)


@pytest.mark.parametrize("ids", IDS, ids=lambda ids: str(ids.type))
def test_every_type_of_id_has_hashes(ids: pa.Array) -> None:
    one, other, again = hash_ids(ids)
    assert (one == again, one == other) == (True, False)
    assert hash_ids(ids[1:]).tolist() == [other, again]
