"""CSV and JSON lines from strangers: no line, width or piece is read into memory beyond what is
allowed.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from integrand.schemas.errors import DataError
from integrand.schemas.specs.source import FormatName
from integrand.schemas.uris import Uri
from integrand.workers.data import cells, ingest
from integrand.workers.data.ingest import IngestTask, head, ingest_file
from integrand.workers.data.roles import Roles
from integrand.workers.storage.store import Access, Store

STORE = Store()
ROLES = Roles(numbers=("a",), row_id="id")
GOOD = {
    "csv": "id,a,note\n" + "".join(f'{i},{i / 7},"text {i}\nof two lines"\n' for i in range(3000)),
    "json_lines": "".join(
        f'{{"id": {i}, "a": {i / 7}, "note": "text {i}"}}\n' for i in range(3000)
    ),
}


def task(folder: Path, kind: FormatName, text: str, pieces: str = "pieces") -> IngestTask:
    place = folder / f"table.{kind}"
    place.write_text(text)
    return IngestTask(
        STORE.info(Uri("file", str(place))),
        place.name,
        kind,
        Uri("file", str(folder / pieces)),
        ROLES,
    )


def sampled(one: IngestTask) -> None:
    head(STORE, one.source, one.path, one.format, one.roles)


def split(one: IngestTask) -> None:
    ingest_file(STORE, one)


@pytest.mark.parametrize("verb", [sampled, split])
@pytest.mark.parametrize(
    ("kind", "start"), [("csv", "id,a\n"), ("csv", 'id,a\n1,"2\n'), ("json_lines", '{"id": 1}\n')]
)
def test_ten_gigabytes_without_a_line_end(
    tmp_path: Path, kind: FormatName, start: str, verb: Callable[[IngestTask], None]
):
    (tmp_path / "big").write_text(start)
    os.truncate(tmp_path / "big", 10 << 30)  # a hole: it takes no room on the disk
    one = IngestTask(
        STORE.info(Uri("file", str(tmp_path / "big"))),
        "big",
        kind,
        Uri("file", str(tmp_path / "p")),
        ROLES,
    )
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2"):
            verb(one)
        assert tracemalloc.get_traced_memory()[1] < 1 << 29
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("verb", [sampled, split])
@pytest.mark.parametrize("kind", ["csv", "json_lines"])
def test_an_absurd_number_of_columns(
    tmp_path: Path, kind: FormatName, verb: Callable[[IngestTask], None]
):
    names = ["id", "a", *(f"c{i}" for i in range(100_000))]
    text = ",".join(names) if kind == "csv" else "{" + ", ".join(f'"{n}": 0' for n in names) + "}"
    with pytest.raises(DataError, match=r"at most 100000 columns(.|\n)*100002"):
        verb(task(tmp_path, kind, text + "\n"))


@pytest.mark.parametrize("kind", GOOD)
def test_a_piece_that_is_too_large(tmp_path: Path, kind: FormatName):
    with pytest.raises(
        DataError, match=r"rows of which 50000 take at most 50000 bytes(.|\n)*decoded_bytes"
    ):
        ingest_file(Store(Access(decoded_bytes=50_000)), task(tmp_path, kind, GOOD[kind]))


@pytest.mark.parametrize("kind", GOOD)
def test_of_long_lines_few_are_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FormatName
):
    one = task(tmp_path, kind, GOOD[kind])
    whole = head(STORE, one.source, one.path, one.format, one.roles)
    monkeypatch.setattr(cells, "BATCH_CHARACTERS", 500)
    found = head(STORE, one.source, one.path, one.format, one.roles)
    assert 0 < found.num_rows < 30 < whole.num_rows == 64
    assert found.equals(whole.slice(0, found.num_rows))


@pytest.mark.parametrize("kind", GOOD)
def test_pieces_are_the_same_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FormatName
):
    whole = ingest_file(STORE, task(tmp_path, kind, GOOD[kind]))
    monkeypatch.setattr(cells, "BATCH_CHARACTERS", 5000)
    cut = ingest_file(STORE, task(tmp_path, kind, GOOD[kind], "others"))
    assert [p.fingerprint for p in whole] == [p.fingerprint for p in cut]
    assert sum(p.rows for p in cut) == 3000
    assert ingest.BATCH_ROWS < 3000
