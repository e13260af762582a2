"""Folders of pictures, turned once into Parquet pieces under `<output>/_ingest/<digest>/`.

Rows in = files in: `path` below the source, `image` (the file's bytes), `label` and `class`. A file
too large to be read keeps its place, with the reason in `_bad`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import digest_json
from integrand.schemas.records import SourceFile
from integrand.schemas.uris import Uri
from integrand.workers.data.columns import BAD
from integrand.workers.data.ingest import (
    Mapped,
    finish_ingest,
    load_ingested,
    write_piece,
)
from integrand.workers.storage.store import Entry, Store

PICTURES_VERSION = 1
"""Raised whenever the pieces of the same files may change."""
MOST_BYTES = 256 << 20
"""Of one file."""
_PIECE_ROWS, _PIECE_BYTES = 1_000, 64 << 20
HEAD_ROWS = 16
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("image", pa.binary()),
        ("label", pa.string()),
        ("class", pa.int64()),
        (BAD, pa.string()),
    ]
)


@dataclass(frozen=True)
class Picture:
    """A file, its path below the source, its label and the number of its class; None without."""

    entry: Entry
    path: str
    label: str | None
    number: int | None


@dataclass(frozen=True)
class PictureTask:
    """Consecutive pictures that become the piece of this number."""

    pictures: tuple[Picture, ...]
    folder: Uri
    index: int


# --- labels --------------------------------------------------------------------------------------


def labelled(
    files: Sequence[tuple[Entry, str]], labels: Mapping[str, str] | None
) -> tuple[Picture, ...]:
    """Each file with its label: from a table by path, else the first folder of its path. Its class
    is the label where all are whole numbers, else the label's place among all in order.
    """
    names = [_folder_of(path) if labels is None else labels.get(path) for _, path in files]
    places = _classes({name for name in names if name is not None})
    return tuple(
        Picture(entry, path, name, None if name is None else places[name])
        for (entry, path), name in zip(files, names, strict=True)
    )


def _folder_of(path: str) -> str | None:
    return path.partition("/")[0] if "/" in path else None


def _classes(names: set[str]) -> dict[str, int]:
    if all(name.isascii() and name.isdigit() for name in names):
        return {name: int(name) for name in names}
    return {name: place for place, name in enumerate(sorted(names))}


def read_labels(store: Store, place: Uri, paths: Sequence[str]) -> dict[str, str]:
    """A CSV file whose first line is `path,label`. Raises DataError for any other, and for a path
    that no picture has, or that stands there twice.
    """
    where = f"source.labels {place}"
    known = set(paths)
    try:
        text = store.read(place).decode("utf-8-sig")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (FileNotFoundError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(where, expected="CSV: path,label", seen=str(error)[:200]) from None
    if header != ["path", "label"]:
        seen = ",".join(header)
        raise DataError(where, expected="the first line path,label", seen=seen[:200])
    found: dict[str, str] = {}
    for number, row in enumerate(filter(None, rows), 2):
        if len(row) != 2 or row[0] not in known or row[0] in found:
            raise DataError(
                where,
                expected="each picture's path below source.uri once, and its label",
                seen=f"{','.join(row)[:200]} as row {number}",
            )
        found[row[0]] = row[1]
    return found


# --- pieces --------------------------------------------------------------------------------------


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """Names the folder of the pieces: changes with any file's place, size or version, and with the
    labels.
    """
    places = [str(picture.entry.uri) for picture in pictures]
    return digest_json([PICTURES_VERSION, content_digest(pictures), places])[:32]


def content_digest(pictures: Sequence[Picture]) -> str:
    """The same wherever the folder lies, for the same paths, sizes, versions and labels."""
    files = []
    for p in pictures:
        version = p.entry.etag or p.entry.mtime_ns
        files.append([p.path, p.entry.size, version, p.label, p.number])
    return digest_json(files)


def ingest_pictures(
    store: Store, pictures: Sequence[Picture], folder: Uri, run: Mapped = map
) -> tuple[SourceFile, ...]:
    """Write all pieces, or find that it was done before. Raises IntegrityError for a file that
    changes meanwhile.
    """
    done = load_ingested(store, folder)
    if done is not None:
        return done
    tasks = [PictureTask(some, folder, i) for i, some in enumerate(_cut(pictures))]
    pieces = tuple(run(partial(_ingest, store), tasks))
    finish_ingest(store, folder, pieces)
    return pieces


def _cut(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, ...]]:
    """Pieces of whole pictures, which nothing but the files decides."""
    held: list[Picture] = []
    size = 0
    for picture in pictures:
        if held and (len(held) == _PIECE_ROWS or size + picture.entry.size > _PIECE_BYTES):
            yield tuple(held)
            held, size = [], 0
        held.append(picture)
        size += picture.entry.size
    yield tuple(held)


def _ingest(store: Store, task: PictureTask) -> SourceFile:
    table = table_of(store, task.pictures)
    return write_piece(store, task.folder, f"pictures-{task.index:05d}", table, 0, 0)


def table_of(store: Store, pictures: Sequence[Picture]) -> pa.Table:
    """The rows of these pictures."""
    rows = [_row(store, picture) for picture in pictures]
    return pa.Table.from_pylist(rows, SCHEMA)


def _row(store: Store, picture: Picture) -> dict[str, str | bytes | int | None]:
    entry = picture.entry
    too_large = entry.size > MOST_BYTES
    fault = f"image has {entry.size} bytes, above {MOST_BYTES}" if too_large else None
    return {
        "path": picture.path,
        "image": None if too_large else _bytes(store, entry),
        "label": picture.label,
        "class": picture.number,
        BAD: fault,
    }


def _bytes(store: Store, entry: Entry) -> bytes:
    with suppress(FileNotFoundError), store.open(entry.uri, etag=entry.etag) as file:
        found = file.readall()
        if store.info(entry.uri) == entry:
            return bytes(found)
    raise IntegrityError(
        str(entry.uri),
        expected="a file that stays as it was listed",
        seen="another one, or none, as it was read",
        next_step="plan again",
    )
