"""Folders of pictures as sources: a row for each file, named by its path, labelled by its folder or
a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from integrand.schemas.errors import IntegrandError, SpecError
from tests.plugins.jobs import JobFolder
from tests.plugins.pictures import encoded, noise
from tests.service.running.test_images import CONVOLUTION, IMAGE

SOURCE = {"uri": "pictures", "format": "images"}
ALL: dict[str, Any] = {
    "source": SOURCE,
    "inputs": [IMAGE],
    "target": {"kind": "column", "column": "class"},
}


@pytest.fixture
def folder(job: JobFolder) -> JobFolder:
    (job.path / f"{job.module}.py").write_text(CONVOLUTION)
    for k, name in enumerate(["cat/1.png", "cat/2.webp", "dog/1.png", "dog/deep/2.PNG"]):
        place = job.path / "pictures" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(noise(seed=k), Path(name).suffix[1:].upper(), lossless=True))
    (job.path / "pictures" / "dog" / "bad.jpg").write_bytes(b"junk")
    (job.path / "pictures" / "notes.txt").write_text("no picture")
    return job


def rows(job: JobFolder, **changes: Any) -> pd.DataFrame:
    return job.rows(job.run(**ALL | changes)).set_index("row_id").sort_index()


def test_rows_are_named_by_path_and_classed_by_folder(folder: JobFolder) -> None:
    found = rows(folder)
    paths = ["cat/1.png", "cat/2.webp", "dog/1.png", "dog/bad.jpg", "dog/deep/2.PNG"]
    assert found.index.tolist() == paths
    assert found.status.tolist() == ["unchecked"] * 3 + ["bad_input", "unchecked"]
    assert found.target.dropna().tolist()[:3] == [0, 0, 1]
    assert found.reason["dog/bad.jpg"] == "image is no PNG, JPEG or WebP"


def test_labels_come_from_a_table_and_name_the_run(folder: JobFolder) -> None:
    (folder.path / "labels.csv").write_text("path,label\ncat/1.png,1\ndog/1.png,0\ncat/2.webp,1\n")
    found = rows(folder, source=SOURCE | {"labels": "labels.csv"})
    assert found.target[["cat/1.png", "cat/2.webp", "dog/1.png"]].tolist() == [1, 1, 0]
    assert found.reason["dog/deep/2.PNG"] == "class is null"
    own = folder.plan(**ALL).run_id
    assert folder.plan(**ALL | {"source": SOURCE | {"labels": "labels.csv"}}).run_id != own


def test_it_is_split_once_and_a_changed_picture_is_another_run(folder: JobFolder) -> None:
    estimated = folder.plan(**ALL)
    assert estimated.projection.estimated
    first = folder.run(**ALL)
    assert first.run_id == estimated.run_id
    pieces = sorted((folder.path / "out" / "_ingest").rglob("*.parquet"))
    stamps = [piece.stat().st_mtime_ns for piece in pieces]
    assert len(pieces) == 1
    assert folder.run(**ALL).run_id == first.run_id
    assert [piece.stat().st_mtime_ns for piece in pieces] == stamps
    (folder.path / "pictures" / "cat" / "1.png").write_bytes(encoded(noise(seed=9)))
    assert folder.plan(**ALL).run_id != first.run_id


def test_pieces_change_no_bit(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(folder)
    monkeypatch.setattr("integrand.workers.data.picture_files._PIECE_ROWS", 2)
    cut = _cut(folder)
    for name in whole[whole.status != "bad_input"].index:
        assert np.array_equal(whole["attr.image"][name], cut["attr.image"][name])


def _cut(folder: JobFolder) -> pd.DataFrame:
    manifest = folder.run(**ALL | {"output": {"uri": "cut"}})
    assert len(list((folder.path / "cut" / "_ingest").rglob("*.parquet"))) == 3
    return folder.rows(manifest, "cut").set_index("row_id")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n", "the first line path,label"),
        ("path,label\ncat/9.png,1\n", "cat/9.png,1 as row 2"),
        ("path,label\ncat/1.png,1\ncat/1.png,1\n", "as row 3"),
        ("", "not enough values"),
    ],
)
def test_bad_labels_are_refused(folder: JobFolder, text: str, message: str) -> None:
    (folder.path / "labels.csv").write_text(text)
    with pytest.raises(IntegrandError, match=message):
        folder.plan(**ALL | {"source": SOURCE | {"labels": "labels.csv"}})


def test_what_is_no_folder_of_pictures_is_refused(folder: JobFolder) -> None:
    with pytest.raises(SpecError, match="`labels` are for pictures"):
        folder.plan(source={"uri": "data", "labels": "labels.csv"})
    with pytest.raises(IntegrandError, match=r"source\.format: images"):
        folder.plan(**ALL | {"source": {"uri": "pictures"}})
    (folder.path / "none").mkdir()
    (folder.path / "none" / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(IntegrandError, match=r"files that end in \.png"):
        folder.plan(**ALL | {"source": {"uri": "none", "format": "images"}})
