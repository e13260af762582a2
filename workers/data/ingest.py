"""CSV and JSON lines, turned once into Parquet pieces under `<output>/_ingest/<digest>/`.

The columns that the job declares are typed by their role, all others are kept as strings. Rows in =
rows out: a row that cannot be parsed keeps its place, with nulls and the reason in `_bad`. Blank
lines are no rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import canonical_json, digest_json
from integrand.schemas.records import SourceFile
from integrand.schemas.specs.baselines import ColumnBaseline
from integrand.schemas.specs.inputs import ForwardArg, IdsInput, TensorInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.targets import ColumnTarget
from integrand.schemas.uris import Uri
from integrand.workers.data.cells import (
    BATCH_ROWS,
    Line,
    is_integer,
    is_utf8,
    record_batch,
    record_batches,
    shown,
    some,
)
from integrand.workers.data.columns import BAD, value_columns
from integrand.workers.data.reading import (
    CONTENT,
    hive_values,
    inspect_file,
    partition_columns,
    with_partitions,
)
from integrand.workers.data.signatures import HEAD, recognise, separator
from integrand.workers.failpoints import reach
from integrand.workers.storage.store import Entry, Store

INGEST_VERSION = 3
"""Raised whenever the pieces of the same file may change."""
_PIECE_ROWS, _PIECE_VALUES = 50_000, 4 << 20
_GROUP_ROWS = 10_000
_LINE_BYTES, _COLUMNS = 64 << 20, 100_000
_SAMPLE_BYTES = 1 << 18

Format = Literal["csv", "json_lines"]
Result = TypeVar("Result")


class JsonRow(NamedTuple):
    """One line: the object that it is, or the fault that left it without; `size` is what it took in
    the file.

    `text` is how a line without an object begins.
    """

    number: int
    found: dict[str, Any] | None
    fault: str | None
    size: int
    text: bytes = b""


@dataclass(frozen=True)
class Roles:
    """What each declared column is for, which decides its type in the pieces.

    numbers are float64, lists list<float64> (with the shape that nested ones must have, () if
    unknown), integers int64; the row id is int64 if every id of every file is a whole number, else
    string.
    """

    numbers: tuple[str, ...] = ()
    lists: tuple[tuple[str, tuple[int, ...]], ...] = ()
    integers: tuple[str, ...] = ()
    row_id: str | None = None

    def types(self, integer_ids: bool) -> dict[str, pa.DataType]:
        """Arrow type of every declared column; a feature keeps its type though it is also target or
        row id.
        """
        ids = (
            {} if self.row_id is None else {self.row_id: pa.int64() if integer_ids else pa.string()}
        )
        return (
            ids
            | dict.fromkeys(self.integers, pa.int64())
            | dict.fromkeys(self.numbers, pa.float64())
            | {name: pa.list_(pa.float64()) for name, _ in self.lists}
        )


@dataclass(frozen=True)
class IngestTask:
    """One source file to split: its `path` below the source root, and the folder of its pieces."""

    source: Entry
    path: str
    format: Format
    folder: Uri
    roles: Roles
    integer_ids: bool = False


class Mapped(Protocol):
    """Maps a function over tasks, results in their order: `map`, or a pool of workers."""

    def __call__(
        self, function: Callable[[IngestTask], Result], tasks: Sequence[IngestTask], /
    ) -> Iterable[Result]: ...


def roles_of(spec: AttributeSpec) -> Roles:
    """The roles that a spec gives to columns."""
    numbers: list[str] = []
    lists: dict[str, tuple[int, ...]] = {}
    integers = [spec.target.column] if isinstance(spec.target, ColumnTarget) else []
    for one, baseline in zip(spec.inputs, spec.baselines, strict=True):
        shape = one.shape if isinstance(one, TensorInput) else ()
        for part in [one, *([baseline] if isinstance(baseline, ColumnBaseline) else [])]:
            if isinstance(part, IdsInput) and part.pad is None:
                integers += value_columns(part)
            elif isinstance(part, TensorInput | IdsInput) or (
                isinstance(part, ColumnBaseline) and part.column is not None
            ):
                lists |= dict.fromkeys(value_columns(part), shape)
            else:
                numbers += value_columns(part)
    for arg in spec.forward_args:
        if arg.shape:
            lists |= dict.fromkeys(value_columns(arg), arg.shape)
        else:
            (integers if _whole(arg) else numbers).extend(value_columns(arg))
    return Roles(
        tuple(dict.fromkeys(numbers)),
        tuple(lists.items()),
        tuple(dict.fromkeys(integers)),
        spec.source.row_id,
    )


def _whole(arg: ForwardArg) -> bool:
    return arg.dtype == "int64"


def ingest_digest(entries: Sequence[Entry], roles: Roles) -> str:
    """Names the folder of the pieces: changes with any file's place, size or version, and with the
    roles.
    """
    files = [[str(e.uri), e.size, e.etag or e.mtime_ns] for e in entries]
    return digest_json([INGEST_VERSION, files, astuple(roles)])[:32]


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
    pieces: tuple[SourceFile, ...] = tuple(
        chain.from_iterable(run(partial(ingest_file, store), tasks))
    )
    finish_ingest(store, tasks[0].folder, pieces)
    return pieces


def finish_ingest(store: Store, folder: Uri, pieces: Sequence[SourceFile]) -> None:
    """Record that all pieces are there; created last."""
    record = {"format_version": INGEST_VERSION, "files": [piece.model_dump() for piece in pieces]}
    with suppress(FileExistsError):
        store.create(_record(folder), canonical_json(record) + b"\n")


def load_ingested(store: Store, folder: Uri) -> tuple[SourceFile, ...] | None:
    """The pieces of a finished ingest, in source order and where the folder is now, or None."""
    try:
        pieces = [
            SourceFile.model_validate(piece)
            for piece in json.loads(store.read(_record(folder)))["files"]
        ]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            str(_record(folder)),
            expected="the pieces of a source",
            seen=str(error)[:200],
            next_step=f"remove the folder {folder} and plan again",
        ) from None
    return tuple(
        p.model_copy(update={"uri": str(folder.child(p.uri.rpartition("/")[2]))}) for p in pieces
    )


def _record(folder: Uri) -> Uri:
    return folder.child("_ingest.json")


# --- one file ----------------------------------------------------------------------------------


def ingest_file(store: Store, task: IngestTask) -> tuple[SourceFile, ...]:
    """Split one file into pieces of a fixed number of rows; a piece that is there already is not
    written again.
    """
    with _opened(store, task) as stream:
        names, lines = _table(stream, task)
        types = dict.fromkeys(names, pa.string())  # a column without a role stays as it was written
        types |= {
            name: kind for name, kind in task.roles.types(task.integer_ids).items() if name in names
        }
        batches = record_batches(lines, names, types, dict(task.roles.lists))
        pieces: list[SourceFile] = []
        for table in _regrouped(
            batches, _piece_rows(task.roles), store.access.decoded_bytes, task.source.uri
        ):
            pieces.append(
                _write_piece(store, task, table, len(pieces), sum(p.rows for p in pieces))
            )
    _check_unchanged(store, task)
    return tuple(pieces)


def has_integer_ids(store: Store, task: IngestTask) -> bool:
    """Whether every id of the file is a whole number, written as an int64 would be (`007`
    is not).
    """
    row_id = task.roles.row_id
    with _opened(store, task) as stream:
        names, lines = _table(stream, replace(task, roles=Roles(row_id=row_id)))
        if row_id not in names:
            return True
        return _integer_ids(
            task.format, (line.cells[0] for line in lines if line.cells is not None)
        )


def head(
    store: Store, entry: Entry, path: str, format: Format, roles: Roles, rows: int = 64
) -> pa.Table:
    """The first rows as ingest would store them, fewer of long ones, to plan with; columns without
    a role are strings.
    """
    task = IngestTask(entry, path, format, entry.uri, roles)
    with _opened(store, task) as stream:
        if format == "csv":
            names, lines = _csv_table(stream, entry.uri, dict.fromkeys(roles.types(False), True))
            lacking = [
                name
                for name in roles.types(False)
                if name not in names and name not in hive_values(path)
            ]
            if lacking and len(names) == 1 and separator(names[0]):
                raise _wrong_header(entry.uri, names, f"`{lacking[0]}`")
        else:
            found = some(_json_objects(stream, entry.uri), rows)
            _check_objects(found[0] if found else None, list(roles.types(False)), entry.uri)
            keys = (k for row in found if row.found is not None for k in row.found)
            names = [k for k in dict.fromkeys(keys) if k != BAD and is_utf8(k)]
            _check_width(names, entry.uri)
            lines = _picked(iter(found), names)
        taken = some(lines, rows)
    ids = [
        line.cells[names.index(roles.row_id)]
        for line in taken
        if roles.row_id in names and line.cells is not None
    ]
    whole = _integer_ids(format, ids)
    types = dict.fromkeys(names, pa.string()) | {
        k: t for k, t in roles.types(whole).items() if k in names
    }
    table = pa.Table.from_batches([record_batch(taken, names, types, dict(roles.lists))])
    return with_partitions(table, path, partition_columns([path]))


def estimate_rows(store: Store, entry: Entry, format: Format) -> int:
    """Rows of a file, from the mean length of its first lines: exact for small files without quoted
    newlines.
    """
    with store.open(entry.uri, etag=entry.etag) as file:
        sample = io.BufferedReader(file).read(_SAMPLE_BYTES)
    lines = sum(1 for line in sample.split(b"\n") if line.strip())
    rows = max(0, lines - (format == "csv"))
    return rows if len(sample) >= entry.size else max(1, round(rows * entry.size / len(sample)))


def _integer_ids(format: Format, cells: Iterable[Any]) -> bool:
    # JSON tells "7" from 7, and so do those who join on it
    kinds = (str, int) if format == "csv" else (int,)
    return all(
        cell in (None, "") or (isinstance(cell, kinds) and is_integer(cell)) for cell in cells
    )


def _opened(store: Store, task: IngestTask) -> io.BufferedReader:
    """The file as bytes. Raises DataError for one that is no text."""
    stream = io.BufferedReader(store.open(task.source.uri, etag=task.source.etag), 1 << 20)
    known = recognise(stream.peek(HEAD)[:HEAD])
    if known is not None:
        stream.close()
        named = "CSV" if task.format == "csv" else "JSON lines"
        raise DataError(
            str(task.source.uri), expected=f"{named} in UTF-8", seen=known[0], next_step=known[1]
        )
    return stream


def _piece_rows(roles: Roles) -> int:
    """Rows of a piece: fewer where rows are wide, and nothing but the roles decides."""
    width = (
        len(roles.numbers) + len(roles.integers) + sum(prod(shape) for _, shape in roles.lists) + 1
    )
    return min(_PIECE_ROWS, max(BATCH_ROWS, _PIECE_VALUES // width))


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


def _write_piece(
    store: Store, task: IngestTask, table: pa.Table, index: int, first_row: int
) -> SourceFile:
    table = table.combine_chunks()
    content = _content(table)
    # The footer is what fingerprints a local piece, so it must change whenever a value does.
    table = table.replace_schema_metadata({CONTENT: content})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=_GROUP_ROWS, write_page_checksum=True)
    uri = task.folder.child(
        f"{hashlib.sha256(task.path.encode()).hexdigest()[:16]}-{index:05d}.parquet"
    )
    with suppress(FileExistsError):
        store.create(uri, sink.getvalue())
    reach("ingest.piece_written")
    piece, schema = inspect_file(store, store.info(uri), task.path)
    if (schema.metadata or {}).get(CONTENT) != content:
        raise IntegrityError(
            str(uri),
            expected=f"the piece from row {first_row} of {task.path}",
            seen="another one",
            next_step=f"remove the folder {task.folder} and plan again",
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


# --- lines -------------------------------------------------------------------------------------


def _table(stream: io.BufferedReader, task: IngestTask) -> tuple[list[str], Iterator[Line]]:
    """The declared columns that the file itself holds (not the partitions of its path), then its
    others, and its rows.

    The other keys of JSON lines are those of the first object.
    """
    partitions = hive_values(task.path)
    wanted = list(task.roles.types(False))
    if task.format == "json_lines":
        objects = _json_objects(stream, task.source.uri)
        first = next(objects, None)
        keys = first.found or {} if first else {}
        _check_objects(first, wanted, task.source.uri)
        _check_width(keys, task.source.uri)
        others = [
            k for k in keys if k not in wanted and k not in partitions and k != BAD and is_utf8(k)
        ]
        names = [name for name in wanted if name not in partitions] + others
        return names, _picked(chain([first] if first else [], objects), names)
    return _csv_table(stream, task.source.uri, {name: name in partitions for name in wanted})


def _csv_table(
    stream: io.BufferedReader, uri: Uri, wanted: dict[str, bool]
) -> tuple[list[str], Iterator[Line]]:
    """Names and rows of a CSV file with a header; `wanted` maps a column to whether it may be
    missing.
    """
    # Lists of numbers in a cell outgrow the default of 128 KiB. The setting is the csv module's own
    # and global.
    csv.field_size_limit(_LINE_BYTES)
    # Bytes that are not UTF-8 come through as lone surrogates, so that only their row is lost.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = _CsvRows(text, uri)
    header = next(rows, Line(1, None, "an empty file"))
    if header.cells is None:
        raise DataError(
            str(uri),
            expected="CSV with a header line",
            seen=header.fault or "",
            next_step="add one; where semicolons or tabs stand between the names, write commas",
        )
    columns = list(header.cells)
    if not is_utf8("".join(columns)):
        raise DataError(
            str(uri),
            expected="a header in UTF-8",
            seen=ascii(",".join(columns))[:200],
            next_step="write the file as UTF-8",
        )
    _check_width(columns, uri)
    places = {name: k for k, name in enumerate(columns)}
    counts = Counter(columns)
    # what nobody reads may be there twice
    twice = sorted(name for name in wanted if counts[name] > 1)
    lacking = [c for c, optional in wanted.items() if c not in places and not optional]
    if twice or lacking:
        raise _wrong_header(uri, columns, f"`{lacking[0]}`" if lacking else f"`{twice[0]}` once")
    names = [c for c in dict.fromkeys([*wanted, *columns]) if c in places and c != BAD]
    return names, _csv_lines(rows, len(columns), [places[c] for c in names])


def _wrong_header(uri: Uri, columns: Sequence[str], expected: str) -> DataError:
    header = ",".join(columns)
    mark = separator(header) if len(columns) == 1 else None
    if mark is None:
        return DataError(
            str(uri),
            expected=f"column {expected}",
            seen=f"the header {header[:200]}",
            next_step="fix the header",
        )
    named = {"\t": "tabs", ";": "semicolons", "|": "bars"}[mark]
    return DataError(
        str(uri),
        expected=f"CSV with commas, and column {expected}",
        seen=f"a header with {named}: {header[:200]!r}",
        next_step=(
            f"write it with commas: pandas.read_csv(..., sep={mark!r}).to_csv(..., index=False), or"
            " Parquet"
        ),
    )


def _check_objects(first: JsonRow | None, wanted: Sequence[str], uri: Uri) -> None:
    """Raises DataError for a JSON document that is no lines of objects, and for columns that lie
    within an object.
    """
    if first is None:
        return
    begins = first.text.strip()
    array = begins[:1] == b"[" and begins[1:].lstrip()[:1] in (b"", b"{", b"[")
    if first.found is None and (array or begins == b"{"):
        raise DataError(
            str(uri),
            expected="JSON lines: one object in each line",
            seen=f"a JSON document: {'an array' if array else 'an object over several lines'}",
            next_step="write lines: jq -c '.[]', or df.to_json(..., orient='records', lines=True)",
        )
    nested = next((name for name in wanted if _within(first.found or {}, name)), None)
    if nested is not None:
        raise DataError(
            str(uri),
            expected=f"column `{nested}` as a key of its own",
            seen=f"a field of the object `{nested.split('.')[0]}`",
            next_step=(
                "flatten the objects: pandas.json_normalize(...).to_json(..., orient='records',"
                " lines=True)"
            ),
        )


def _within(found: dict[str, Any], name: str) -> bool:
    """Whether a dotted name leads into objects, and is no key itself."""
    value: Any = found
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return name not in found and "." in name and value is not None


def _check_width(columns: Collection[str], uri: Uri) -> None:
    if len(columns) > _COLUMNS:
        raise DataError(
            str(uri),
            expected=f"at most {_COLUMNS} columns",
            seen=f"{len(columns)}",
            next_step="keep wide rows as lists of numbers in one column",
        )


def _csv_lines(rows: Iterator[Line], width: int, picks: list[int]) -> Iterator[Line]:
    for line in rows:
        if line.cells is None:
            yield line
        elif len(line.cells) != width:
            yield Line(line.number, None, f"{len(line.cells)} fields, expected {width}", line.size)
        elif not is_utf8("".join(line.cells)):
            yield Line(line.number, None, "not UTF-8", line.size)
        else:
            yield Line(line.number, [line.cells[k] for k in picks], None, line.size)


class _CsvRows:
    """Rows of a CSV text that are not blank. Raises DataError for one without end, as after a quote
    that never closes.
    """

    def __init__(self, text: io.TextIOWrapper, uri: Uri) -> None:
        self._text, self._uri, self._number, self._size = text, uri, 1, 0
        self._reader = csv.reader(self._lines(), strict=True)

    def __iter__(self) -> _CsvRows:
        return self

    def __next__(self) -> Line:
        while True:
            self._number, self._size = self._reader.line_num + 1, 0
            try:
                cells = next(self._reader)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    # what it swallowed is unknown
                    raise self._endless("the end of the file") from None
                return Line(self._number, None, str(error), self._size)
            if cells:
                return Line(self._number, cells, None, self._size)

    def _lines(self) -> Iterator[str]:
        for line in iter(lambda: self._text.readline(_LINE_BYTES), ""):
            self._size += len(line)
            if self._size >= _LINE_BYTES:
                raise self._endless(f"{_LINE_BYTES} characters without an end")
            yield line

    def _endless(self, seen: str) -> DataError:
        return DataError(
            f"{self._uri} line {self._number}",
            expected="the end of the row, a closing quote before it",
            seen=seen,
            next_step="fix the line",
        )


def _json_objects(stream: io.BufferedReader, uri: Uri) -> Iterator[JsonRow]:
    """(line number, object, fault, size) of every line that is not blank."""
    for number, line in enumerate(iter(lambda: stream.readline(_LINE_BYTES), b""), 1):
        if len(line) == _LINE_BYTES:
            raise DataError(
                f"{uri} line {number}",
                expected=f"lines below {_LINE_BYTES} bytes",
                seen="a longer one",
                next_step="is this JSON lines? set source.format",
            )
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            found, fault = _json_object(text)
            yield JsonRow(number, found, fault, len(line), b"" if fault is None else text[:HEAD])


def _told_apart(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys is there twice: only the last value would be left."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(
            f"key {shown(next(key for key in counts if counts[key] > 1))} is given twice"
        )
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_told_apart)


def _json_object(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        found = _JSON.decode(line.decode())
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {error}"[:200]
    return (
        (found, None)
        if isinstance(found, dict)
        else (None, f"expected an object, seen {shown(found)}")
    )


def _picked(objects: Iterator[JsonRow], names: list[str]) -> Iterator[Line]:
    for row in objects:
        cells = None if row.found is None else [row.found.get(name) for name in names]
        yield Line(row.number, cells, row.fault, row.size)
