"""A few clean rows are found wherever they are; where there is none, the first bad one is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.service.planning import sample
from tests.plugins.jobs import COLUMNS, JobFolder

ROWS = 4000


def sparse(job: JobFolder, clean: list[int], files: int = 1) -> None:
    """Rows with null in column `a`, but for the clean ones."""
    values = np.random.default_rng(0).normal(size=(ROWS, 3))
    wanted = np.isin(np.arange(ROWS), clean)
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "a": pa.array(values[:, 0], mask=~wanted),
            "b": values[:, 1],
            "c": values[:, 2],
        }
    )
    (job.path / "data" / "rows.parquet").unlink(missing_ok=True)
    for part in range(files):
        job.write_table(
            f"{part}.parquet", table.slice(part * ROWS // files, ROWS // files), row_group_size=300
        )


@pytest.mark.parametrize("files", [1, 8])
@pytest.mark.parametrize(
    "clean",
    [
        list(range(3000, 4000)),
        [3999],
        [0],
        [1234],
        list(range(700, ROWS, 997)),
    ],
    ids=["came late", "the last one", "the first one", "one in between", "rarely complete"],
)
def test_rows_that_are_rarely_complete_are_no_reason_to_refuse_a_job(
    job: JobFolder, clean: list[int], files: int
) -> None:
    sparse(job, clean, files)
    manifest = job.run(compute={})
    assert manifest.complete
    assert manifest.statuses == {"bad_input": ROWS - len(clean), "unchecked": len(clean)}


def test_a_single_clean_row_is_tried_like_others(job: JobFolder) -> None:
    """Twice, since no step batch has one row: a squeezed output, or a program for two rows or more,
    is none of its fault.
    """
    sparse(job, [17])
    job.write_model(
        "if len(x) < 2:\n    raise RuntimeError('two at least')\nreturn self.logits(x).squeeze()"
    )
    assert job.run(compute={}).statuses == {"bad_input": ROWS - 1, "unchecked": 1}


def test_without_a_clean_row_the_first_bad_one_is_told_and_all_are_counted(job: JobFolder) -> None:
    sparse(job, [], files=4)
    with pytest.raises(
        DataError, match=r"4,000 bad rows, and no other; the first: 0\.parquet#0: a is null"
    ):
        job.plan()


def test_no_more_rows_are_looked_at_than_is_sensible(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_LOOKED_AT", 500)
    sparse(job, [3999])
    with pytest.raises(DataError, match=r"600 bad rows, and no other"):
        job.plan()


@pytest.mark.parametrize("ingest", [True, False])
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["1,2,3,", "4,5,6,"], r"2 bad rows, and no other; the first: line 2: 4 fields"),
        (["1,2,x", "1,y,3"], r"2 bad rows, and no other; the first: line 2: column c"),
        ([",2,3"] * 3000, r"3,000 bad rows, and no other; the first: .*a is null"),
    ],
    ids=["commas at the end", "no numbers", "nulls"],
)
def test_the_first_bad_line_is_the_first(
    job: JobFolder, lines: list[str], told: str, ingest: bool
) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    (job.path / "data" / "rows.csv").write_text("\n".join(["a,b,c", *lines]) + "\n")
    with pytest.raises(DataError, match=told):
        job.plan(source={"uri": "data"}, ingest=ingest)


@pytest.mark.parametrize("ingest", [True, False])
def test_a_text_file_is_read_on_where_its_head_has_no_clean_row(
    job: JobFolder, ingest: bool
) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    (job.path / "data" / "rows.csv").write_text("a,b,c\n" + ",2,3\n" * 500 + "1,2,3\n")
    assert job.plan(source={"uri": "data"}, ingest=ingest).numerics.outputs == 2


@pytest.mark.parametrize("ingest", [True, False])
def test_other_text_files_are_looked_into(job: JobFolder, ingest: bool) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    for part in range(5):
        (job.path / "data" / f"{part}.csv").write_text(
            "a,b,c\n" + (",2,3\n" * 50 if part < 4 else "1,2,3\n")
        )
    assert job.plan(source={"uri": "data"}, ingest=ingest).numerics.outputs == 2


# --- text that is no text of ours --------------------------------------------------------------

TEXTS: dict[str, tuple[str, bytes, str]] = {
    "semicolons": ("a.csv", b"a;b;c\n1;2;3\n", r"commas(.|\n)*semicolons: 'a;b;c'"),
    "semicolons between quotes": (
        "a.csv",
        b'"a";"b";"c"\n1;2;3\n',
        r"header(.|\n)*semicolons or tabs",
    ),
    "tabs": ("a.csv", b"a\tb\tc\n1\t2\t3\n", r"commas(.|\n)*tabs"),
    "bars": ("a.csv", b"a|b|c\n1|2|3\n", r"commas(.|\n)*bars"),
    "a .tsv": ("a.tsv", b"a\tb\tc\n1\t2\t3\n", r"a\.tsv(.|\n)*CSV with commas"),
    "gzip": ("a.csv", b"\x1f\x8b\x08\x00abc", r"gzip-compressed(.|\n)*gunzip"),
    "a .gz": ("a.csv.gz", b"\x1f\x8b\x08\x00abc", r"a\.csv\.gz(.|\n)*decompress"),
    "zip": ("a.csv", b"PK\x03\x04abc", r"zip archive or an Excel workbook"),
    "UTF-16": ("a.csv", "a,b,c\n1,2,3\n".encode("utf-16"), r"UTF-16(.|\n)*UTF-8"),
    "UTF-16 without a mark": ("a.csv", "a,b,c\n1,2,3\n".encode("utf-16-le"), r"UTF-16(.|\n)*UTF-8"),
    "a JSON array": (
        "a.jsonl",
        b'[{"a": 1, "b": 2, "c": 3}]',
        r"a JSON document: an array(.|\n)*jq -c",
    ),
    "a JSON array over lines": (
        "a.jsonl",
        b'[\n {"a": 1,\n "b": 2}]',
        r"a JSON document: an array",
    ),
    "an object over lines": (
        "a.jsonl",
        b'{\n "a": 1,\n "b": 2,\n "c": 3\n}',
        r"an object over several lines",
    ),
    "a .json": ("a.json", b'{"a": 1, "b": 2, "c": 3}', r"a\.json(.|\n)*json_lines"),
    "HTML": ("a.csv", b"<!DOCTYPE html><html>", r"HTML or XML"),
    "Feather": ("a.parquet", b"ARROW1\0\0" + b"\0" * 100, r"Arrow IPC"),
    "CSV by another name": ("a.parquet", b"a,b,c\n1,2,3\n4,5,6\n", r"other bytes than Parquet"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("ingest", [True, False])
def test_a_file_that_is_something_else_is_named(job: JobFolder, case: str, ingest: bool) -> None:
    name, content, message = TEXTS[case]
    (job.path / "data" / "rows.parquet").unlink()
    (job.path / "data" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        job.plan(source={"uri": "data"}, ingest=ingest)


@pytest.mark.parametrize(
    "first", [b'{"a": 1, "b"', b"[1, 2]", b"not JSON"], ids=["cut off", "a list", "no JSON"]
)
def test_a_broken_first_line_is_a_bad_row_and_no_reason_to_stop(
    job: JobFolder, first: bytes
) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    (job.path / "data" / "rows.jsonl").write_bytes(
        first + b"\n" + b'{"a": 1, "b": 2, "c": 3}\n' * 3
    )
    assert job.run(source={"uri": "data"}).statuses == {"bad_input": 1, "unchecked": 3}


def test_fields_of_an_object_are_told_apart_from_columns(job: JobFolder) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    inputs = [{"name": "features", "columns": ["s.a", "b", "c"]}]
    (job.path / "data" / "rows.jsonl").write_text('{"s": {"a": 1}, "b": 2, "c": 3}\n')
    with pytest.raises(DataError, match=r"`s\.a` as a key of its own(.|\n)*json_normalize"):
        job.plan(source={"uri": "data"}, inputs=inputs, ingest=True)
    (job.path / "data" / "rows.jsonl").unlink()
    job.write_table("rows.parquet", pa.table({"s": [{"a": 1.0}], "b": [2.0], "c": [3.0]}))
    for columns in (["s.a", "b", "c"], ["s", "b", "c"]):
        with pytest.raises(SpecError, match=r"struct(.|\n)*flatten"):
            job.plan(source={"uri": "data"}, inputs=[{"name": "features", "columns": columns}])


# --- columns that nobody reads -----------------------------------------------------------------

UNREAD: dict[str, tuple[Any, Any]] = {
    "int64 and string": (pa.array([1, 2]), pa.array(["x", "y"])),
    "string and list": (pa.array(["x", "y"]), pa.array([[1], [2]])),
    "struct and date": (pa.array([{"k": 1}] * 2), pa.array([0, 1], pa.date32())),
    "bytes and bool": (pa.array([b"x", b"y"]), pa.array([True, False])),
    "zones": (pa.array([0, 1], pa.timestamp("us", "UTC")), pa.array([0, 1], pa.timestamp("ns"))),
}


def two_files(job: JobFolder, one: dict[str, Any], other: dict[str, Any]) -> None:
    (job.path / "data" / "rows.parquet").unlink(missing_ok=True)
    features = {name: [1.0, 2.0] for name in COLUMNS}
    job.write_table("a.parquet", pa.table(features | one))
    job.write_table("b.parquet", pa.table(features | other))


@pytest.mark.parametrize("case", UNREAD)
def test_what_a_job_does_not_read_may_be_of_any_type(job: JobFolder, case: str) -> None:
    one, other = UNREAD[case]
    two_files(job, {"note": one}, {"note": other})
    manifest = job.run(source={"uri": "data"}, compute={"shard_rows": 4})
    assert manifest.statuses == {"unchecked": 4}


def test_what_a_job_does_not_read_may_be_there_twice_or_be_lacking(job: JobFolder) -> None:
    two_files(job, {}, {"more": [1, 2]})
    twice = pa.table([[1.0, 2.0]] * 5, names=["a", "z", "b", "z", "c"])
    job.write_table("c.parquet", twice)
    assert job.run(source={"uri": "data"}).statuses == {"unchecked": 6}
    with pytest.raises(SpecError, match="column `z`"):
        job.plan(source={"uri": "data/c.parquet"}, inputs=[{"name": "x", "columns": ["a", "z"]}])


@pytest.mark.parametrize("ingest", [True, False])
def test_a_text_column_that_nobody_reads_may_be_there_twice(job: JobFolder, ingest: bool) -> None:
    (job.path / "data" / "rows.parquet").unlink()
    (job.path / "data" / "rows.csv").write_text("a,z,b,z,c\n1,x,2,y,3\n")
    assert job.plan(source={"uri": "data"}, ingest=ingest).numerics.outputs == 2
    with pytest.raises((DataError, SpecError), match="`z`"):
        job.plan(
            source={"uri": "data"}, inputs=[{"name": "x", "columns": ["a", "z"]}], ingest=ingest
        )


@pytest.mark.parametrize(
    "kinds",
    [
        (pa.string(), pa.dictionary(pa.int8(), pa.string())),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.large_string()),
        (pa.int32(), pa.int64()),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string())),
        (pa.binary(), pa.large_binary()),
    ],
    ids=str,
)
@pytest.mark.parametrize("shard_rows", [1, 4])
def test_row_ids_may_be_encoded_otherwise_in_each_file(
    job: JobFolder, kinds: tuple[pa.DataType, pa.DataType], shard_rows: int
) -> None:
    number = pa.types.is_integer(kinds[0])
    ids = [[1, 2], [3, 4]] if number else [["x", "y"], ["p", "q"]]
    one, other = (
        (
            pa.array(values).cast(kind)
            if not pa.types.is_dictionary(kind)
            else pa.array(values).dictionary_encode().cast(kind)
        )
        for values, kind in zip(ids, kinds, strict=True)
    )
    two_files(job, {"id": one}, {"id": other})
    rows = job.rows(job.run(compute={"shard_rows": shard_rows}))
    seen = [v.decode() if isinstance(v, bytes) else v for v in rows["row_id"]]
    assert sorted(seen) == sorted(ids[0] + ids[1])


@pytest.mark.parametrize(
    "kinds",
    [
        (pa.float64(), pa.float32()),
        (pa.int64(), pa.float32()),
        (pa.bool_(), pa.int64()),
        (pa.decimal128(25, 2), pa.float64()),
    ],
    ids=str,
)
def test_numbers_of_several_types_are_numbers(
    job: JobFolder, kinds: tuple[pa.DataType, pa.DataType]
) -> None:
    one, other = (pa.array([0, 1]).cast(kind) for kind in kinds)
    two_files(job, {"a": one}, {"a": other})
    assert job.run(source={"uri": "data"}, compute={"shard_rows": 4}).statuses == {"unchecked": 4}


def test_a_read_column_of_unlike_types_names_column_types_and_file(job: JobFolder) -> None:
    two_files(job, {"a": ["x", "y"]}, {})
    with pytest.raises(DataError, match=r"b\.parquet(.|\n)*column `a` as string(.|\n)*double"):
        job.plan(source={"uri": "data"})


def test_inputs_are_put_beside_results_whatever_their_types(job: JobFolder) -> None:
    from integrand.service import open_run

    two_files(job, {"note": [1, 2]}, {"note": ["x", "y"]})
    manifest = job.run(source={"uri": "data"}, compute={"shard_rows": 4})
    frame = open_run(job.path / "out" / manifest.run_id).to_pandas(inputs=True)
    assert frame["note"].tolist() == ["1", "2", "x", "y"]
