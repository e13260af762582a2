"""Footers, column checks, and slices that are the rows they say, or an error that says why not."""

from __future__ import annotations

import io
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.records import InputShape, Slice, SourceFile
from integrand.schemas.specs.inputs import ColumnsInput, TensorInput
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.workers.data.columns import (
    check_column,
    declared_columns,
)
from integrand.workers.data.inputs.table import kind_of_input
from integrand.workers.data.inspection import inspect_file
from integrand.workers.data.merging import source_schema
from integrand.workers.data.partitions import hive_values, partition_columns
from integrand.workers.data.reading import CONTENT, read_slices, row_ids
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.storage.store import Store

STORE = Store()


def parquet_bytes(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True, **options)
    return sink.getvalue()


def put(root: Path, path: str, data: bytes) -> SourceFile:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)
    return inspect_file(STORE, STORE.info(Uri("file", str(root / path))), path)[0]


def numbered(rows: int, start: int = 0) -> pa.Table:
    values = np.arange(start, start + rows)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3 * rows, dtype=np.float32)), 3)
    return pa.table({"n": values, "x": values / 7, "l": lists, "s": [f"t{v}" for v in values]})


def spec(**fields: object) -> AttributeSpec:
    base = {
        "name": "t",
        "source": {"uri": "/data"},
        "model": {"kind": "factory", "entrypoint": "m:f"},
        "inputs": [{"name": "f", "columns": ["a", "b"]}],
        "output": {"uri": "/out"},
    }
    return parse_spec(base | fields)


def test_inspect_reads_rows_groups_and_a_fingerprint(place: tuple[Store, Uri]) -> None:
    store, root = place
    uri = root.child("t.parquet")
    store.create(uri, parquet_bytes(numbered(25), row_group_size=10))
    entry = store.info(uri)
    file, schema = inspect_file(store, entry, "t.parquet")
    assert (file.rows, file.row_groups, file.size) == (25, (10, 10, 5), entry.size)
    assert (
        file.fingerprint == f"etag:{entry.etag}"
        if entry.etag
        else file.fingerprint.startswith("footer:")
    )
    assert schema.names == ["n", "x", "l", "s"]
    rows = read_slices(store, [file], [Slice(file=0, start=8, stop=22)], ["x", "n"])
    assert rows.column_names == ["x", "n"]
    assert rows["n"].to_pylist() == list(range(8, 22))


def test_a_footer_longer_than_the_first_read(tmp_path: Path) -> None:
    wide = pa.table({f"column_{i:05d}": [float(i)] for i in range(3000)})
    file = put(tmp_path, "wide.parquet", parquet_bytes(wide))
    assert file.rows == 1
    rows = read_slices(STORE, [file], [Slice(file=0, start=0, stop=1)], ["column_02999"])
    assert rows["column_02999"].to_pylist() == [2999.0]


GOOD = parquet_bytes(numbered(20))


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"", "an empty file"),
        (b"a,b\n1,2\n", "other bytes than Parquet"),
        (GOOD[:-9], "a truncated file"),
        (GOOD[:6], "a truncated file"),
        (b"x" * 70_000, "other bytes than Parquet"),
        (GOOD[:-8] + (10**6).to_bytes(4, "little") + b"PAR1", "a footer of"),
        (GOOD[:-4] + b"PARE", "encrypted"),
        (b"PAR1" + b"\xff" * 100 + (100).to_bytes(4, "little") + b"PAR1", "thrift"),
    ],
    ids=["empty", "csv", "truncated", "stub", "long", "length", "encrypted", "garbage"],
)
def test_what_is_not_parquet_is_named(tmp_path: Path, data: bytes, seen: str) -> None:
    with pytest.raises(DataError, match=seen) as error:
        put(tmp_path, "broken.parquet", data)
    assert "broken.parquet" in error.value.where


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    group=st.integers(1, 15),
    data=st.data(),
)
def test_any_cut_gives_the_whole_table(counts: list[int], group: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = [numbered(rows, 1000 * i) for i, rows in enumerate(counts)]
        files = [
            put(Path(folder), f"{i}.parquet", parquet_bytes(t, row_group_size=group))
            for i, t in enumerate(tables)
        ]
        slices = []
        for i, rows in enumerate(counts):
            edges = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
            slices += [Slice(file=i, start=a, stop=b) for a, b in pairwise(edges)]
        if not slices:
            return
        slices = data.draw(st.permutations(slices))
        expected = pa.concat_tables([tables[s.file].slice(s.start, s.rows) for s in slices])
        found = read_slices(STORE, files, slices, None)
        assert found.equals(expected)
        ids = row_ids(files, slices, found, None).to_pylist()
        assert ids == [f"{s.file}.parquet#{r}" for s in slices for r in range(s.start, s.stop)]


def test_a_batch_boundary_within_a_row_group(tmp_path: Path) -> None:
    file = put(tmp_path, "long.parquet", parquet_bytes(numbered(50_000)))
    rows = read_slices(STORE, [file], [Slice(file=0, start=16_000, stop=40_000)], ["n"])
    assert rows["n"].to_numpy().tolist() == list(range(16_000, 40_000))


def test_parts_that_arrive_tick_before_anything_is_decoded(tmp_path: Path) -> None:
    """A row group that comes slowly is no stall."""
    file = put(tmp_path, "t.parquet", parquet_bytes(numbered(10)))
    seen: list[bool] = []
    read = Store.open

    def looked_at(*arguments, tick, **named):
        return read(*arguments, tick=lambda: (seen.append(True), tick()), **named)

    ticks: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "open", looked_at)
        read_slices(
            STORE, [file], [Slice(file=0, start=0, stop=10)], ["n"], lambda: ticks.append(True)
        )
    assert len(seen) > 1
    assert len(ticks) == len(seen) + 1, "one batch was decoded"


def test_row_ids_of_ingested_pieces_and_of_a_column(tmp_path: Path) -> None:
    file = put(tmp_path, "a/p.parquet", parquet_bytes(numbered(5))).model_copy(
        update={"first_row": 100}
    )
    slices = [Slice(file=0, start=2, stop=4)]
    table = read_slices(STORE, [file], slices, ["s"])
    assert row_ids([file], slices, table, None).to_pylist() == [
        "a/p.parquet#102",
        "a/p.parquet#103",
    ]
    assert row_ids([file], slices, table, "s").to_pylist() == ["t2", "t3"]


def test_a_changed_file_is_another_run(place: tuple[Store, Uri]) -> None:
    store, root = place
    uri = root.child("t.parquet")
    store.create(uri, parquet_bytes(numbered(10)))
    file, _ = inspect_file(store, store.info(uri), "t.parquet")
    store.replace(uri, parquet_bytes(numbered(10, start=5)))
    with pytest.raises(IntegrityError, match="plan again"):
        read_slices(store, [file], [Slice(file=0, start=0, stop=3)], ["n"])
    store.delete(uri)
    with pytest.raises(IntegrityError, match="no file"):
        read_slices(store, [file], [Slice(file=0, start=0, stop=3)], ["n"])


@pytest.mark.parametrize("how", ["longer", "rewritten", "gone"])
def test_a_local_file_written_to_while_it_is_read_is_another_run(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the planned one when it was looked at; that it cannot be decoded after that is
    nobody's fault.
    """
    data = parquet_bytes(numbered(10))
    file, path = put(tmp_path, "t.parquet", data), tmp_path / "t.parquet"
    os.utime(path, (1, 1))
    change = {
        "longer": lambda: path.write_bytes(data + b"x"),
        "rewritten": lambda: path.write_bytes(data),
        "gone": path.unlink,
    }[how]
    opened = Store.open

    def open_late(*arguments, **named):
        change()
        return opened(*arguments, **named)

    monkeypatch.setattr(Store, "open", open_late)
    with pytest.raises(
        IntegrityError, match="no file" if how == "gone" else "written to while it was read"
    ):
        read_slices(STORE, [file], [Slice(file=0, start=0, stop=3)], ["n"])


def test_a_flipped_bit_in_a_page_is_caught_and_the_rows_named(tmp_path: Path) -> None:
    data = bytearray(
        parquet_bytes(
            pa.table({"x": np.random.default_rng(0).normal(size=500)}),
            use_dictionary=False,
            compression="none",
        )
    )
    data[1000] ^= 1
    file = put(tmp_path, "flipped.parquet", bytes(data))
    with pytest.raises(DataError, match=r"flipped.parquet rows \[10, 20\)"):
        read_slices(STORE, [file], [Slice(file=0, start=10, stop=20)], ["x"])


def test_a_lost_connection_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from integrand.schemas.errors import TransientError
    from integrand.workers.storage import store as storage

    file = put(tmp_path, "t.parquet", parquet_bytes(numbered(10)))

    class Cut(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("cut")

    monkeypatch.setattr(storage._Files, "open", lambda self, uri: (Cut(uri.path), None))
    with pytest.raises(TransientError, match="cut"):
        read_slices(STORE, [file], [Slice(file=0, start=0, stop=3)], ["n"])


def test_partitions_become_columns(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, 2.0]})
    paths = [
        "year=2024/place=a%20b/0.parquet",
        "year=2025/place=7/0.parquet",
        "year=__HIVE_DEFAULT_PARTITION__/place=c/0.parquet",
    ]
    files = [put(tmp_path, p, parquet_bytes(table)) for p in paths]
    assert partition_columns(paths) == {"place": pa.string(), "year": pa.int64()}
    slices = [Slice(file=i, start=0, stop=2) for i in range(3)]
    rows = read_slices(STORE, files, slices, ["place", "x", "year"])
    assert rows.column_names == ["place", "x", "year"]
    assert rows["year"].to_pylist() == [2024, 2024, 2025, 2025, None, None]
    assert rows["place"].to_pylist() == ["a b", "a b", "7", "7", "c", "c"]
    assert read_slices(STORE, files, slices[:1], ["year"])["year"].to_pylist() == [2024, 2024]
    schema = source_schema(files, [table.schema] * 3, ["x", "year"])
    assert schema == pa.schema([("x", pa.float64()), ("place", pa.string()), ("year", pa.int64())])


@pytest.mark.parametrize("value", ["+5", "\u0661", "5 ", "1_0", "0x5", "9223372036854775808"])
def test_a_folder_that_is_not_quite_an_integer_is_text(tmp_path: Path, value: str) -> None:
    """What Python takes for digits, Arrow does not."""
    file = put(tmp_path, f"delta={value}/0.parquet", parquet_bytes(pa.table({"x": [1.0]})))
    assert read_slices(STORE, [file], [Slice(file=0, start=0, stop=1)], ["delta"])[
        "delta"
    ].to_pylist() == [value]
    assert partition_columns(["delta=-5/a", "delta=007/a"]) == {"delta": pa.int64()}


def test_only_pieces_that_ingest_wrote_tell_of_bad_rows(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0], "_bad": ["a note of the user's"]})
    rows = [Slice(file=0, start=0, stop=1)]
    own = put(tmp_path, "_bad=x/0.parquet", parquet_bytes(table))
    folder = put(tmp_path, "_bad=x/1.parquet", parquet_bytes(table.drop_columns("_bad")))
    odd = table.set_column(1, "_bad", pa.array([["a", "b"]]))
    posing = put(
        tmp_path,
        "2.parquet",
        parquet_bytes(odd.replace_schema_metadata({CONTENT: b"not a digest"})),
    )
    for file in (own, folder, posing):
        assert read_slices(STORE, [file], rows, ["x", "_bad"]).column_names == ["x"]
        assert read_slices(STORE, [file], rows, None).column_names == ["x"]
    piece = put(
        tmp_path, "3.parquet", parquet_bytes(table.replace_schema_metadata({CONTENT: b"digest"}))
    )
    assert read_slices(STORE, [piece], rows, ["x", "_bad"]) == table


def test_the_column_that_tells_of_bad_rows_is_no_feature() -> None:
    with pytest.raises(SpecError, match="rename the column"):
        check_column(pa.schema([("_bad", pa.float64())]), "_bad")


def test_a_column_in_the_file_wins_over_its_folder(tmp_path: Path) -> None:
    file = put(tmp_path, "n=9/0.parquet", parquet_bytes(numbered(2)))
    assert read_slices(STORE, [file], [Slice(file=0, start=0, stop=2)], ["n"])["n"].to_pylist() == [
        0,
        1,
    ]
    assert hive_values("a=b=c/=d/e/f=g.parquet") == {"a": "b=c"}


def test_files_must_agree_on_declared_columns(tmp_path: Path) -> None:
    tables = [pa.table({"a": [1], "b": [1.0]}), pa.table({"a": [1.5]})]
    files = [put(tmp_path, f"{i}.parquet", parquet_bytes(t)) for i, t in enumerate(tables)]
    schemas = [t.schema for t in tables]
    assert source_schema(files, schemas, ["a"]).field("a").type == pa.float64()
    with pytest.raises(DataError, match="1 of 2 files lack it"):
        source_schema(files, schemas, ["a", "b"])
    with pytest.raises(DataError, match="one schema"):
        source_schema(files, [schemas[0], pa.schema([("a", pa.string())])], ["a"])
    with pytest.raises(DataError, match="column `b`"):
        read_slices(STORE, files, [Slice(file=1, start=0, stop=1)], ["b"])


def test_names_that_are_prefixes_of_each_other(tmp_path: Path) -> None:
    file = put(tmp_path, "t.parquet", parquet_bytes(pa.table({"a": [1], "a.b": [2], "a b": [3]})))
    rows = read_slices(STORE, [file], [Slice(file=0, start=0, stop=1)], ["a.b", "a"])
    assert rows.to_pylist() == [{"a.b": 2, "a": 1}]


SCHEMA = pa.schema(
    [
        ("age", pa.int32()),
        ("paid", pa.decimal128(9, 2)),
        ("ok", pa.bool_()),
        ("city", pa.string()),
        ("kind", pa.dictionary(pa.int8(), pa.float64())),
        ("flat", pa.list_(pa.uint8())),
        ("fixed", pa.list_(pa.float32(), 6)),
        ("nested", pa.large_list(pa.list_(pa.float64(), 3))),
        ("words", pa.list_(pa.string())),
        ("tensor", pa.fixed_shape_tensor(pa.float32(), (2, 3))),
        ("turned", pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])),
    ]
)


def resolve_input(schema: pa.Schema, part: ColumnsInput | TensorInput) -> InputShape:
    return kind_of_input(part).resolve(schema, part)


def test_columns_inputs() -> None:
    found = resolve_input(SCHEMA, ColumnsInput(name="f", columns=("age", "paid", "ok")))
    assert found == InputShape(name="f", columns=("age", "paid", "ok"), shape=(3,), named=True)
    with pytest.raises(SpecError, match="did you mean `age`"):
        resolve_input(SCHEMA, ColumnsInput(name="f", columns=("ages",)))
    for name, seen in (("city", "string"), ("kind", "dictionary"), ("fixed", "shape")):
        with pytest.raises(SpecError, match=seen):
            resolve_input(SCHEMA, ColumnsInput(name="f", columns=(name,)))
    with pytest.raises(SpecError, match=r"inputs.f.mean"):
        resolve_input(
            SCHEMA, ColumnsInput(name="f", columns=("age", "paid", "ok"), mean=(1.0, 2.0))
        )
    with pytest.raises(SpecError, match="2 of them"):
        check_column(pa.schema([("a", pa.int8()), ("a", pa.int8())]), "a")


@pytest.mark.parametrize(
    ("column", "shape", "expected"),
    [
        ("flat", (2, 3), (2, 3)),
        ("fixed", (), (6,)),
        ("fixed", (3, 2), (3, 2)),
        ("nested", (2, 3), (2, 3)),
        ("tensor", (), (2, 3)),
        ("tensor", (1, 6), (1, 6)),
    ],
)
def test_tensor_inputs(column: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = resolve_input(SCHEMA, TensorInput(name="i", column=column, shape=shape))
    assert (found.shape, found.named) == (expected, False)


@pytest.mark.parametrize(
    ("column", "shape", "message"),
    [
        ("flat", (), "give the input's `shape`"),
        ("nested", (), "give the input's `shape`"),
        ("fixed", (5,), "5 values"),
        ("nested", (3, 2), "nested"),
        ("nested", (1, 2, 3), "nested"),
        ("tensor", (7,), "7 values"),
        ("words", (3,), "string"),
        ("age", (1,), r"columns: \[age\]"),
        ("turned", (), "row-major"),
        ("city", (), "lists of numbers"),
    ],
)
def test_tensor_inputs_that_cannot_work(column: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_input(SCHEMA, TensorInput(name="i", column=column, shape=shape))


def test_every_column_of_a_spec_is_checked() -> None:
    schema = pa.schema(
        [
            ("a", pa.int8()),
            ("b", pa.int8()),
            ("c", pa.int8()),
            ("y", pa.int64()),
            ("id", pa.string()),
            ("mask", pa.list_(pa.int8(), 2)),
        ]
    )
    good = spec(
        source={"uri": "/data", "row_id": "id"},
        target={"kind": "column", "column": "y"},
        baseline={"kind": "column", "columns": ["b", "c"]},
        forward_args=[{"name": "m", "column": "mask"}],
    )
    assert declared_columns(good) == ("id", "a", "b", "c", "mask", "y", "_bad")
    assert resolve_columns(schema, good)[0].shape == (2,)
    for fields, message in [
        ({"baseline": {"kind": "column", "columns": ["b"]}}, "2 columns"),
        ({"baseline": {"kind": "column", "column": "mask"}}, "one per feature"),
        ({"target": {"kind": "column", "column": "id"}}, "numeric column"),
        ({"forward_args": [{"name": "m", "column": "masc"}]}, "did you mean `mask`"),
        ({"forward_args": [{"name": "m", "columns": ["mask"]}]}, "numeric"),
        ({"source": {"uri": "/data", "row_id": "mask"}}, "one plain value"),
    ]:
        with pytest.raises(SpecError, match=message):
            resolve_columns(schema, spec(**fields))
