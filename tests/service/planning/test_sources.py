"""What a source names, on every kind of storage: files, folders, globs and lists, each file with
its path.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.source import Source
from integrand.schemas.uris import Uri
from integrand.service.planning.sources import entry_format, list_source, read_footers
from integrand.workers.storage.store import Store

Place = tuple[Store, Uri]


def parquet(rows: int, **columns: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": range(rows), **columns}), sink, row_group_size=4)
    return bytes(sink.getvalue().to_pybytes())


def fill(place: Place, *names: str, rows: int = 6) -> None:
    store, root = place
    for name in names:
        store.create(root.child(name), parquet(rows))


def paths(place: Place, *uris: str, **options: str) -> list[str]:
    store, root = place
    source = Source.model_validate(
        {"uri": tuple(f"{root}/{u}" if u else str(root) for u in uris), **options}
    )
    return [path for _, path in list_source(store, source, "/").files]


def test_a_folder_is_read_through_without_hidden_names(place: Place):
    fill(
        place,
        "b.parquet",
        "a/c.parquet",
        "_SUCCESS.parquet",
        "_tmp/d.parquet",
        ".crc/e.parquet",
        "a/f.pq",
    )
    place[0].create(place[1].child("README.md"), b"notes")
    assert paths(place, "") == ["a/c.parquet", "a/f.pq", "b.parquet"]
    assert paths(place, "a") == ["c.parquet", "f.pq"]
    assert paths(place, "a/") == ["c.parquet", "f.pq"]


def test_globs_keep_the_path_below_their_fixed_part(place: Place):
    fill(place, "y=1/m=1/a.parquet", "y=1/m=2/a.parquet", "y=2/m=1/b.parquet")
    assert paths(place, "y=*/m=1/*.parquet") == ["y=1/m=1/a.parquet", "y=2/m=1/b.parquet"]
    assert paths(place, "y=1/**/*.parquet") == ["m=1/a.parquet", "m=2/a.parquet"]
    assert paths(place, "y=[2]/m=?/*") == ["y=2/m=1/b.parquet"]


def test_a_list_keeps_its_order_and_names_each_file_once(place: Place):
    fill(place, "z/a.parquet", "y/a.parquet", "y/b.parquet")
    assert paths(place, "z", "y") == ["z/a.parquet", "y/a.parquet", "y/b.parquet"]
    assert paths(place, "y/b.parquet", "y") == ["b.parquet", "a.parquet"]
    assert paths(place, "y/a.parquet") == ["a.parquet"]


def test_a_folder_whose_name_looks_like_a_glob_is_itself(tmp_path: Path):
    """Above the source too; below it, a glob is one."""
    place = (Store(), Uri("file", str(tmp_path / "runs [2026] *?")))
    fill(place, "a.parquet", "x/b.parquet", "x[1]/c.parquet")
    assert paths(place, "") == ["a.parquet", "x/b.parquet", "x[1]/c.parquet"]
    assert paths(place, "*/?.parquet") == ["x/b.parquet", "x[1]/c.parquet"]
    assert paths(place, "x[1]/*.parquet") == ["c.parquet"]


@pytest.mark.parametrize("again", ["x/../a.parquet", "link.parquet", "linked/a.parquet"])
def test_one_file_under_two_names_is_refused(tmp_path: Path, again: str):
    """Its rows would be in the result twice."""
    for name in ("a.parquet", "x/b.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(parquet(1))
    (tmp_path / "link.parquet").symlink_to(tmp_path / "a.parquet")
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"each file once[\s\S]*the same file as"):
        list_source(Store(), Source(uri=("a.parquet", again)), str(tmp_path))


def test_a_name_with_a_bracket_is_itself(place: Place):
    fill(place, "a[1].parquet", "a1.parquet")
    assert paths(place, "a[1].parquet") == ["a[1].parquet"]


@pytest.mark.parametrize("uri", ["none", "none/", "none/*.parquet", "*.csv"])
def test_nothing_there_is_an_error(place: Place, uri: str):
    fill(place, "a.parquet")
    with pytest.raises(DataError, match=r"no files|nothing there"):
        paths(place, uri)


def test_one_format_at_a_time(place: Place):
    fill(place, "a.parquet")
    place[0].create(place[1].child("b.csv"), b"x\n1\n")
    with pytest.raises(DataError, match="csv, parquet"):
        paths(place, "")
    assert paths(place, "*.parquet") == ["a.parquet"]


def test_the_format_may_be_named(place: Place):
    place[0].create(place[1].child("data.txt"), b"x\n1\n")
    with pytest.raises(DataError, match="1 other files"):
        paths(place, "")
    assert paths(place, "", format="csv") == ["data.txt"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.csv", "csv"),
        ("a.jsonl", "json_lines"),
        ("a.ndjson", "json_lines"),
        ("a.json", None),
        ("parquet", None),
        ("a.parquet.gz", None),
    ],
)
def test_formats_go_by_the_extension(name: str, kind: str | None):
    found = entry_format(Source(uri="x"), Uri("file", f"/d/{name}"))
    assert (found and found.name) == kind


def test_footers_tell_rows_groups_and_schema_in_order(place: Place):
    store, root = place
    for number in range(40):
        store.create(root.child(f"{number:02d}.parquet"), parquet(number))
    files, schemas = read_footers(store, list_source(store, Source(uri=str(root)), "/"))
    assert [f.rows for f in files] == list(range(40))
    assert files[6].row_groups == (4, 2)
    assert len({f.fingerprint for f in files}) == 40
    assert {s.names[0] for s in schemas} == {"x"}
    assert all(f.size == store.info(store.parse(f.uri)).size for f in files)


def test_a_source_without_a_row_is_an_error(place: Place):
    fill(place, "a.parquet", "b.parquet", rows=0)
    store, root = place
    with pytest.raises(DataError, match="no rows"):
        read_footers(store, list_source(store, Source(uri=str(root)), "/"))


def test_hostile_uris_are_refused(place: Place):
    with pytest.raises(SpecError, match="plain path"):
        list_source(place[0], Source(uri="zip://x::s3://bucket/x"), "/")
