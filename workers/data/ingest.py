"""Text formats, turned once into Parquet pieces under `<output>/_ingest/<digest>/`.

The columns that the job declares are typed by their role, all others are kept as strings. Rows in =
rows out: a row that cannot be parsed keeps its place, with nulls and the reason in `_bad`. Blank
lines are no rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from typing import BinaryIO, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import canonical_json, digest_json
from integrand.schemas.records import SourceFile
from integrand.schemas.specs.source import FormatName
from integrand.schemas.uris import Uri
from integrand.workers.data.cells import BATCH_ROWS, record_batch, record_batches, some
from integrand.workers.data.formats.base import Wanted
from integrand.workers.data.formats.table import identify, text_format
from integrand.workers.data.inspection import inspect_file
from integrand.workers.data.partitions import hive_values, partition_columns, with_partitions
from integrand.workers.data.reading import CONTENT
from integrand.workers.data.roles import Roles
from integrand.workers.data.signatures import HEAD
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Entry, Store

INGEST_VERSION = 3
"""Raised whenever the pieces of the same file may change."""
_PIECE_ROWS, _PIECE_VALUES = 50_000, 4 << 20
_GROUP_ROWS = 10_000
_SAMPLE_BYTES = 1 << 18

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class IngestTask:
    """One source file to split: its `path` below the source root, and the folder of its pieces."""

    source: Entry
    path: str
    format: FormatName
    folder: Uri
    roles: Roles
    integer_ids: bool = False


class Mapped(Protocol):
    """Maps a function over tasks, results in their order: `map`, or a pool of workers."""

    def __call__(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], /
    ) -> Iterable[Result]: ...


def ingest_digest(entries: Sequence[Entry], roles: Roles) -> str:
    """Names the folder of the pieces: changes with any file's place, size or version, and with the
    roles.
    """
    files = []
    for entry in entries:
        version = entry.etag or entry.mtime_ns
        files.append([str(entry.uri), entry.size, version])
    *named, texts = astuple(roles)
    declared = [*named, texts] if texts else named  # what had no texts keeps its digest
    digest = digest_json([INGEST_VERSION, files, declared])
    return digest[:32]


# --- the whole source --------------------------------------------------------------------------


def ingest(store: Store, tasks: Sequence[IngestTask], run: Mapped = map) -> tuple[SourceFile, ...]:
    """Split all files, or find that it was done before; the pieces in source order.

    Raises DataError for a file that is no such table, IntegrityError for one that changes
    meanwhile.
    """
    done = load_ingested(store, tasks[0].folder)
    if done is not None:
        return done
    if tasks[0].roles.row_id is not None:
        # The type of the ids is one for all files, so every id is seen before the first piece is
        # written.
        whole = all(list(run(partial(has_integer_ids, store), tasks)))
        tasks = [replace(task, integer_ids=whole) for task in tasks]
    of_files = run(partial(ingest_file, store), tasks)
    pieces: tuple[SourceFile, ...] = tuple(chain.from_iterable(of_files))
    finish_ingest(store, tasks[0].folder, pieces)
    return pieces


def finish_ingest(store: Store, folder: Uri, pieces: Sequence[SourceFile]) -> None:
    """Record that all pieces are there; created last."""
    files = [piece.model_dump() for piece in pieces]
    record = {"format_version": INGEST_VERSION, "files": files}
    with suppress(FileExistsError):
        store.create(_record(folder), canonical_json(record) + b"\n")


def load_ingested(store: Store, folder: Uri) -> tuple[SourceFile, ...] | None:
    """The pieces of a finished ingest, in source order and where the folder is now, or None."""
    try:
        stored = json.loads(store.read(_record(folder)))["files"]
        pieces = [SourceFile.model_validate(piece) for piece in stored]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            str(_record(folder)),
            expected="the pieces of a source",
            seen=str(error)[:200],
            next_step=f"remove the folder {folder} and plan again",
        ) from None
    return tuple(_moved(piece, folder) for piece in pieces)


def _moved(piece: SourceFile, folder: Uri) -> SourceFile:
    name = piece.uri.rpartition("/")[2]
    uri = folder.child(name)
    return piece.model_copy(update={"uri": str(uri)})


def _record(folder: Uri) -> Uri:
    return folder.child("_ingest.json")


# --- one file ----------------------------------------------------------------------------------


def ingest_file(store: Store, task: IngestTask) -> tuple[SourceFile, ...]:
    """Split one file into pieces of a fixed number of rows; a piece that is there already is not
    written again.
    """
    declared = task.roles.types(task.integer_ids)
    with _opened(store, task) as stream:
        found = text_format(task.format).table(stream, task.source.uri, _wanted(task))
        types = _types(found.names, declared)
        shapes = dict(task.roles.lists)
        batches = record_batches(found.lines, found.names, types, shapes)
        most = store.access.decoded_bytes
        rows = _piece_rows(task.roles)
        pieces: list[SourceFile] = []
        for table in _regrouped(batches, rows, most, task.source.uri):
            first_row = sum(piece.rows for piece in pieces)
            piece = write_piece(store, task.folder, task.path, table, len(pieces), first_row)
            pieces.append(piece)
    _check_unchanged(store, task)
    return tuple(pieces)


def has_integer_ids(store: Store, task: IngestTask) -> bool:
    """Whether every id of the file is a whole number."""
    row_id = task.roles.row_id
    form = text_format(task.format)
    alone = replace(task, roles=Roles(row_id=row_id))
    with _opened(store, alone) as stream:
        found = form.table(stream, task.source.uri, _wanted(alone))
        if row_id not in found.names:
            return True
        ids = (line.cells[0] for line in found.lines if line.cells is not None)
        return form.whole_numbers(ids)


def head(
    store: Store, entry: Entry, path: str, format: FormatName, roles: Roles, rows: int = 64
) -> pa.Table:
    """The first rows as ingest would store them, fewer of long ones, to plan with; columns without
    a role are strings.
    """
    task = IngestTask(entry, path, format, entry.uri, roles)
    form = text_format(format)
    with _opened(store, task) as stream:
        found = form.head(stream, entry.uri, _wanted(task), rows)
        taken = some(found.lines, rows)
    ids: list[object] = []
    if roles.row_id in found.names:
        place = found.names.index(roles.row_id)
        ids = [line.cells[place] for line in taken if line.cells is not None]
    declared = roles.types(form.whole_numbers(ids))
    types = _types(found.names, declared)
    batch = record_batch(taken, found.names, types, dict(roles.lists))
    table = pa.Table.from_batches([batch])
    return with_partitions(table, path, partition_columns([path]))


def _wanted(task: IngestTask) -> Wanted:
    columns = tuple(task.roles.types(False))
    partitions = frozenset(hive_values(task.path))
    return Wanted(columns, partitions)


def _types(names: Sequence[str], declared: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """A type for each column; one without a role stays as it was written."""
    text = pa.string()
    return {name: declared.get(name, text) for name in names}


def estimate_rows(store: Store, entry: Entry, format: FormatName) -> int:
    """Rows of a file, from the mean length of its first lines: exact for small files without quoted
    newlines.
    """
    with store.open(entry.uri, etag=entry.etag) as file:
        sample = io.BufferedReader(file).read(_SAMPLE_BYTES)
    lines = 0
    for line in sample.split(b"\n"):
        if line.strip():
            lines += 1
    headers = text_format(format).header_lines
    rows = max(0, lines - headers)
    if len(sample) >= entry.size:
        return rows
    scaled = round(rows * entry.size / len(sample))
    return max(1, scaled)


def _opened(store: Store, task: IngestTask) -> BinaryIO:
    """The file as bytes. Raises DataError for one that is no text."""
    stream = io.BufferedReader(store.open(task.source.uri, etag=task.source.etag), 1 << 20)
    seen = identify(stream.peek(HEAD)[:HEAD])
    if seen is not None:
        stream.close()
        raise DataError(
            str(task.source.uri),
            expected=f"{text_format(task.format).title} in UTF-8",
            seen=seen.name,
            next_step=seen.next_step,
        )
    return stream


def _piece_rows(roles: Roles) -> int:
    """Rows of a piece: fewer where rows are wide, and nothing but the roles decides."""
    scalars = len(roles.numbers) + len(roles.integers)
    in_lists = sum(prod(shape) for _, shape in roles.lists)
    width = scalars + in_lists + 1
    fitting = max(BATCH_ROWS, _PIECE_VALUES // width)
    return min(_PIECE_ROWS, fitting)


def _regrouped(
    batches: Iterator[pa.RecordBatch], rows: int, most: int, uri: Uri
) -> Iterator[pa.Table]:
    """Tables of exactly `rows` rows, and the rest. Raises DataError for rows that take more than
    `most` bytes.
    """
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        size = sum(b.nbytes for b in held)
        if size > most:
            raise DataError(
                str(uri),
                expected=f"rows of which {rows} take at most {most} bytes",
                seen=f"{size} bytes",
                next_step=(
                    "is this the right file? else a larger decoded_bytes in the operator's config"
                ),
            )
        while sum(b.num_rows for b in held) >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held = table.slice(rows).to_batches()
    if any(b.num_rows for b in held):
        yield pa.Table.from_batches(held)


def write_piece(
    store: Store, folder: Uri, path: str, table: pa.Table, index: int, first_row: int
) -> SourceFile:
    """Create the piece of this number of what lies at `path` below the source, or find it there.
    Raises IntegrityError for another one.
    """
    table = table.combine_chunks()
    content = _content(table)
    # The footer is what fingerprints a local piece, so it must change whenever a value does.
    table = table.replace_schema_metadata({CONTENT: content})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=_GROUP_ROWS, write_page_checksum=True)
    digest = hashlib.sha256(path.encode()).hexdigest()
    uri = folder.child(f"{digest[:16]}-{index:05d}.parquet")
    with suppress(FileExistsError):
        store.create(uri, sink.getvalue())
    reach("ingest.piece_written")
    piece, schema = inspect_file(store, store.info(uri), path)
    if (schema.metadata or {}).get(CONTENT) != content:
        raise IntegrityError(
            str(uri),
            expected=f"the piece from row {first_row} of {path}",
            seen="another one",
            next_step=f"remove the folder {folder} and plan again",
        )
    return piece.model_copy(update={"first_row": first_row})


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest().encode()


def _check_unchanged(store: Store, task: IngestTask) -> None:
    if store.info(task.source.uri) != task.source:
        raise IntegrityError(
            str(task.source.uri),
            expected="a file that stays as it was planned",
            seen="another size or version after it was read",
            next_step="plan again",
        )
