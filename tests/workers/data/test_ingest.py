"""CSV and JSON lines become pieces with as many rows, typed by role, and the reason where a row is
broken.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.records import Slice, SourceFile
from integrand.schemas.specs.job import parse_spec
from integrand.schemas.specs.source import FormatName
from integrand.schemas.uris import Uri
from integrand.workers.data import ingest as ingesting
from integrand.workers.data.formats import json_lines
from integrand.workers.data.ingest import (
    IngestTask,
    estimate_rows,
    head,
    ingest,
    ingest_digest,
    ingest_file,
    load_ingested,
)
from integrand.workers.data.partitions import partition_columns
from integrand.workers.data.reading import read_slices, row_ids
from integrand.workers.data.roles import Roles, roles_of
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows
from integrand.workers.storage.store import Store

STORE = Store()
ROLES = Roles(numbers=("age", "income"), integers=("y",), row_id="id")


def task(folder: Path, name: str, data: str | bytes, roles: Roles = ROLES) -> IngestTask:
    place = folder / "source" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data.encode() if isinstance(data, str) else data)
    kind: FormatName = "csv" if name.endswith(".csv") else "json_lines"
    return IngestTask(
        STORE.info(Uri("file", str(place))), name, kind, Uri("file", str(folder / "pieces")), roles
    )


def table(pieces: Sequence[SourceFile], columns: list[str] | None = None) -> pa.Table:
    return read_slices(
        STORE, pieces, [Slice(file=i, start=0, stop=p.rows) for i, p in enumerate(pieces)], columns
    )


def rows(pieces: Sequence[SourceFile]) -> list[dict[str, Any]]:
    return list(table(pieces).to_pylist()) if pieces else []


def test_csv_is_typed_by_role(tmp_path: Path) -> None:
    data = '\ufeffid,age,note,income,y\r\n7,1.5,"a\nb",,1\r\n\r\n8,true,x,-2e3,2.0\r\n'
    pieces = ingest(STORE, [task(tmp_path, "a.csv", data)])
    assert table(pieces).schema.remove_metadata() == pa.schema(
        [
            ("id", pa.int64()),
            ("y", pa.int64()),
            ("age", pa.float64()),
            ("income", pa.float64()),
            ("note", pa.string()),
            ("_bad", pa.string()),
        ]
    )
    assert rows(pieces) == [
        {"id": 7, "age": 1.5, "income": None, "y": 1, "note": "a\nb", "_bad": None},
        {"id": 8, "age": 1.0, "income": -2000.0, "y": 2, "note": "x", "_bad": None},
    ]
    assert pieces[0].path == "a.csv"


def test_broken_csv_rows_keep_their_place(tmp_path: Path) -> None:
    data = (
        b'id,age,income,y\n1,abc,2,0\n2,3\n3,1,1,0.5\nx,1_0,1,0\n\xff,1,1,0\n5,1,2,"0"0\n6,1,nan,\n'
    )
    pieces = ingest(STORE, [task(tmp_path, "a.csv", data)])
    found = rows(pieces)
    assert [r["_bad"] for r in found] == [
        "line 2: column age: 'abc' is not a number",
        "line 3: 2 fields, expected 4",
        "line 4: column y: '0.5' is not an integer",
        "line 5: column age: '1_0' is not a number",
        "line 6: not UTF-8",
        "line 7: ',' expected after '\"'",
        None,
    ]
    assert [r["id"] for r in found] == ["1", None, "3", "x", None, None, "6"]
    assert (found[0]["age"], found[0]["income"], found[6]["y"]) == (None, 2.0, None)


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"id": 1, "age": 2, "income": 1e3, "y": 0, "other": [1]}',
        "",
        '{"id": 2, "age": ',
        "[1, 2]",
        '{"id": 3, "age": {"a": 1}, "y": true}',
        '{"id": 4, "age": "12", "income": NaN, "y": 1.0}',
        "[" * 100_000,
    ]
    found = rows(ingest(STORE, [task(tmp_path, "a.jsonl", "\n".join(lines))]))
    assert [r["id"] for r in found] == [1, None, None, 3, 4, None]
    assert found[0] == {"id": 1, "y": 0, "age": 2.0, "income": 1000.0, "other": "[1]", "_bad": None}
    assert found[1]["_bad"].startswith("line 3: broken JSON: Expecting value")
    assert found[2]["_bad"] == "line 4: expected an object, seen [1, 2]"
    assert found[3]["_bad"] == "line 5: column age: {'a': 1} is not a number"
    assert found[4]["age"] == 12.0
    assert found[4]["income"] != found[4]["income"]
    assert found[5]["_bad"].startswith("line 7: broken JSON")


@pytest.mark.parametrize(
    "twice", ['{"id": 2, "age": 1, "id": 3}', '{"id": 2, "other": [{"id": 1, "id": 1}]}']
)
def test_of_a_key_given_twice_no_value_is_chosen(tmp_path: Path, twice: str) -> None:
    lines = '{"id": 1, "age": 1, "other": {"id": 1}}\n' + twice + "\n"
    one = task(tmp_path, "a.jsonl", lines, Roles(numbers=("age",), row_id="id"))
    found = rows(ingest(STORE, [one]))
    assert [(r["id"], r["_bad"]) for r in found] == [
        (1, None),
        (None, "line 2: broken JSON: key 'id' is given twice"),
    ]
    assert head(STORE, one.source, one.path, one.format, one.roles)["_bad"].to_pylist() == [
        r["_bad"] for r in found
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_lists(tmp_path: Path, name: str) -> None:
    values = [[1, 2.5, None, 4], None, [[1, 2], [3, 4]], [[1, 2, 3], [4]], "x", [1, "two"]]
    if name == "a.csv":
        cells = ["" if v is None else v if v == "x" else json.dumps(v) for v in values]
        data = "p\n" + "".join('"' + cell.replace('"', '""') + '"\n' for cell in cells)
    else:
        data = "".join(json.dumps({"p": v}) + "\n" for v in values)
    roles = Roles(lists=(("p", (2, 2)),))
    found = rows(ingest_file(STORE, task(tmp_path, name, data, roles)))
    assert [r["p"] for r in found] == [[1, 2.5, None, 4], None, [1, 2, 3, 4], None, None, None]
    assert [r["_bad"] is None for r in found] == [True, True, True, False, False, False]
    assert found[3]["_bad"].endswith("column p: expected a list of 2, seen [1, 2, 3]")
    assert found[4]["_bad"].startswith(
        f"line {6 if name == 'a.csv' else 5}: column p: 'x' is not a"
    )
    assert found[5]["_bad"].endswith("column p: 'two' is not a number")


def test_ids_are_integers_only_if_all_files_agree(tmp_path: Path) -> None:
    def kinds(*texts: str) -> str:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            tasks = [
                task(Path(folder), f"{i}.csv", f"id\n{t}\n", Roles(row_id="id"))
                for i, t in enumerate(texts)
            ]
            return str(table(ingest(STORE, tasks))["id"].type)

    assert kinds("1\n-20", "30") == "int64"
    assert kinds("1", "a") == "string"
    assert kinds("007") == "string"
    assert kinds(str(2**63)) == "string"


def test_json_string_ids_stay_strings(tmp_path: Path) -> None:
    def found(text: str) -> list[Any]:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            return [
                r["id"]
                for r in rows(
                    ingest(STORE, [task(Path(folder), "a.jsonl", text, Roles(row_id="id"))])
                )
            ]

    assert found('{"id": 5}\n{"id": null}') == [5, None]
    assert found('{"id": "5"}') == ["5"]


def test_pieces_continue_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "_PIECE_ROWS", 10)
    monkeypatch.setattr(ingesting, "BATCH_ROWS", 4)  # the least that a piece holds
    monkeypatch.setattr("integrand.workers.data.cells.BATCH_ROWS", 4)  # what is parsed at a time
    data = "x\n" + "".join(f"{i}\n" for i in range(23))
    pieces = ingest(STORE, [task(tmp_path, "t.csv", data, Roles(numbers=("x",)))])
    assert [(p.rows, p.first_row) for p in pieces] == [(10, 0), (10, 10), (3, 20)]
    slices = [Slice(file=1, start=8, stop=10), Slice(file=2, start=0, stop=1)]
    found = read_slices(STORE, pieces, slices, ["x"])
    assert found["x"].to_pylist() == [18, 19, 20]
    assert row_ids(pieces, slices, found, None).to_pylist() == ["t.csv#18", "t.csv#19", "t.csv#20"]


def test_a_second_ingest_reads_the_record(place: tuple[Store, Uri], tmp_path: Path) -> None:
    store, root = place
    source = root.child("in", "a.csv")
    store.create(source, b"id,age,income,y\n1,2,3,4\n")
    one = IngestTask(store.info(source), "a.csv", "csv", root.child("_ingest", "d"), ROLES)
    assert load_ingested(store, one.folder) is None
    first = ingest(store, [one])
    assert load_ingested(store, one.folder) == first

    def refuse(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
        raise AssertionError("nothing is left to do")

    assert ingest(store, [one], refuse) == first
    assert ingest_file(store, replace(one, integer_ids=True)) == first
    assert pickle.loads(pickle.dumps(one)) == one
    assert read_slices(store, first, [Slice(file=0, start=0, stop=1)], ["y"])["y"].to_pylist() == [
        4
    ]


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        ingest(STORE, [task(tmp_path / name, "a.csv", "id,age,income,y\n1,2,3,4\nx,y,3,4\n")])
        written.append(
            {p.name: p.read_bytes() for p in (tmp_path / name / "pieces").glob("*.parquet")}
        )
    assert len(written[0]) == 1
    assert written[0] == written[1]


def test_a_changed_value_changes_the_fingerprint(tmp_path: Path) -> None:
    """Also one between the column's extremes, in a file as long: that leaves Parquet's own
    statistics alone.
    """
    prints = set()
    for value in (5, 6):
        data = f"id,age,income,y\n1,0,0,0\n2,9,0,0\n3,{value},0,0\n"
        prints.add(ingest(STORE, [task(tmp_path / str(value), "a.csv", data)])[0].fingerprint)
    assert len(prints) == 2


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    ingest_file(STORE, task(tmp_path, "a.csv", "id,age,income,y\n1,2,3,4\n"))
    with pytest.raises(IntegrityError, match="another one"):
        ingest_file(STORE, task(tmp_path, "a.csv", "id,age,income,y\n1,2,3,5\n"))


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    one = task(tmp_path, "a.csv", "id,age,income,y\n1,2,3,4\n")
    os.utime(one.source.uri.path, ns=(1, 1))
    with pytest.raises(IntegrityError, match="plan again"):
        ingest_file(STORE, one)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "header"),
        ("id,age,age,income,y\n", "`age` once"),
        ("id,income,y\n1,2,3\n", "column `age`"),
        ('id,age,income,y\n1,"2,3,4\n5,6,7,8\n', "line 2"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        ingest(STORE, [task(tmp_path, "bad.csv", data)])
    assert "bad.csv" in error.value.where


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LINE_BYTES", 1000)
    with pytest.raises(DataError, match="line 2"):
        ingest(STORE, [task(tmp_path, "a.jsonl", "{}\n" + " " * 2000)])


def test_a_partition_stands_in_for_a_column(tmp_path: Path) -> None:
    roles = Roles(numbers=("age", "year"))
    tasks = [
        task(tmp_path, f"year={y}/a.{kind}", text, roles)
        for y, kind, text in ((2024, "csv", "age\n1\n"), (2025, "jsonl", '{"age": 2}\n'))
    ]
    pieces = ingest(STORE, tasks)
    assert partition_columns(p.path for p in pieces) == {"year": pa.int64()}
    assert table(pieces, ["age", "year"]).to_pylist() == [
        {"age": 1.0, "year": 2024},
        {"age": 2.0, "year": 2025},
    ]
    for one, expected in zip(tasks, ([1.0, 2024], [2.0, 2025]), strict=True):
        sample = head(STORE, one.source, one.path, one.format, roles)
        assert list(sample.select(["age", "year"]).to_pylist()[0].values()) == expected


def test_an_empty_table_has_no_pieces(tmp_path: Path) -> None:
    assert ingest(STORE, [task(tmp_path, "a.csv", "id,age,income,y\n")]) == ()
    assert load_ingested(STORE, Uri("file", str(tmp_path / "pieces"))) == ()


def test_the_digest_follows_files_and_roles(tmp_path: Path) -> None:
    one = task(tmp_path, "a.csv", "id,age,income,y\n1,2,3,4\n")
    digests = {
        ingest_digest([one.source], ROLES),
        ingest_digest([one.source], Roles(numbers=("age",))),
        ingest_digest([replace(one.source, size=1)], ROLES),
        ingest_digest([replace(one.source, mtime_ns=1)], ROLES),
        ingest_digest([one.source] * 2, ROLES),
    }
    assert len(digests) == 5


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_head_shows_what_ingest_would_store(tmp_path: Path, name: str) -> None:
    values = [{"id": i, "age": i / 2, "income": 1, "y": i % 2, "name": f"n{i}"} for i in range(100)]
    text = "".join(json.dumps(v) + "\n" for v in values) if name == "a.jsonl" else _csv(values)
    one = task(tmp_path, name, text)
    found = head(STORE, one.source, name, one.format, ROLES, rows=10)
    assert found.num_rows == 10
    whole = table(ingest(STORE, [one]))
    assert found.select(whole.column_names).equals(whole.slice(0, 10).replace_schema_metadata())
    assert found["name"].to_pylist()[:2] == ["n0", "n1"]
    assert estimate_rows(STORE, one.source, one.format) == 100


def test_estimate_of_a_long_file(tmp_path: Path) -> None:
    one = task(tmp_path, "a.csv", "age\n" + "1.2345\n" * 200_000)
    assert abs(estimate_rows(STORE, one.source, "csv") - 200_000) < 2000


def test_roles_follow_the_spec_and_the_pieces_fit_it(tmp_path: Path) -> None:
    spec = parse_spec(
        {
            "name": "t",
            "source": {"uri": "/d", "row_id": "id"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "inputs": [
                {
                    "name": "f",
                    "columns": ["a", "b"],
                    "baseline": {"kind": "column", "columns": ["a", "c"]},
                },
                {
                    "name": "p",
                    "column": "pixels",
                    "shape": [1, 2],
                    "baseline": {"kind": "column", "column": "dark"},
                },
            ],
            "forward_args": [
                {"name": "m", "column": "mask", "shape": [3]},
                {"name": "n", "column": "n", "dtype": "int64"},
            ],
            "target": {"kind": "column", "column": "y"},
            "output": {"uri": "/o"},
        }
    )
    roles = roles_of(spec)
    assert roles == Roles(
        ("a", "b", "c"), (("pixels", (1, 2)), ("dark", (1, 2)), ("mask", (3,))), ("y", "n"), "id"
    )
    good = {
        "id": 1,
        "a": 1,
        "b": 2,
        "c": 3,
        "pixels": [1, 2],
        "dark": [0, 0],
        "mask": [1, 1, 1],
        "n": 2**60 + 1,
        "y": 0,
    }
    bad = [good | {"b": "x"}, good | {"pixels": [1]}, good | {"y": None}, good | {"c": None}]
    text = "".join(json.dumps(v) + "\n" for v in [good, *bad])
    found = table(ingest(STORE, [task(tmp_path, "a.jsonl", text, roles)]))
    converted = to_rows(found, spec, resolve_columns(found.schema, spec))
    assert converted.reasons == [
        None,
        "line 2: column b: 'x' is not a number",
        "pixels has 1 values, expected 2",
        "y is null",
        "c is null",
    ]
    assert converted.forward_args[1].tolist()[0] == 2**60 + 1


CELL = st.one_of(st.none(), st.floats(allow_nan=False), st.integers(-(10**6), 10**6))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda t: t != "")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, CELL, CELL, st.integers(0, 9)), max_size=30), st.booleans())
def test_round_trip(values: list[tuple[Any, ...]], as_csv: bool) -> None:
    records = [dict(zip(("id", "age", "income", "y"), v, strict=True)) for v in values]
    with tempfile.TemporaryDirectory() as folder:
        text = _csv(records) if as_csv else "".join(json.dumps(r) + "\n" for r in records)
        found = rows(ingest(STORE, [task(Path(folder), "a.csv" if as_csv else "a.jsonl", text)]))
    assert len(found) == len(records)
    for row, record in zip(found, records, strict=True):
        assert row["_bad"] is None
        assert str(row["id"]) == record["id"]
        assert (row["age"], row["income"], row["y"]) == (
            record["age"],
            record["income"],
            record["y"],
        )


def _csv(records: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(records[0]) if records else ["id", "age", "income", "y"])
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue()
