"""Rows of Parquet sources: the declared columns of touched row groups. Imports no torch."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.records import Slice, SourceFile
from integrand.workers.data.columns import BAD
from integrand.workers.data.decoding import (
    Budget,
    decode,
    decode_parts,
    open_parquet,
    readable,
    string_columns,
)
from integrand.workers.data.inspection import fingerprint
from integrand.workers.data.merging import join_parts
from integrand.workers.data.partitions import hive_values, partition_columns, with_partitions
from integrand.workers.storage.store import Entry, Store

CONTENT = b"integrand.content"
"""Key in the schema of an ingested piece: digest of its values. Only files that have it tell of bad
rows.
"""


def read_slices(
    store: Store,
    files: Sequence[SourceFile],
    slices: Sequence[Slice],
    columns: Sequence[str] | None,
    tick: Callable[[], None] = lambda: None,
) -> pa.Table:
    """The rows of the slices, in their order, with the columns asked for (None: all); ticks as
    parts arrive and are decoded.

    Partition columns come from the path; `_bad` is left out where no file has it. Raises
    IntegrityError if a file is not what was planned, DataError if it cannot be decoded or lacks a
    column.
    """
    partitions = partition_columns(file.path for file in files)
    parts: dict[int, pa.Table] = {}
    left = store.access.decoded_bytes
    for number, places in _by_file(slices).items():
        file = files[number]
        with _opened(store, file, columns, tick) as opened:
            for k in places:
                rows = slices[k]
                where = f"{file.uri} rows [{rows.start}, {rows.stop})"
                budget = Budget(where, left, tick)
                parts[k] = _read_slice(opened, rows, columns, partitions, budget)
                left -= parts[k].nbytes
    uris = sorted({files[rows.file].uri for rows in slices})
    in_order = [parts[k] for k in range(len(slices))]
    with readable(", ".join(uris[:3])):
        table = join_parts(in_order, lenient=columns is None)
    if columns is None:
        return table
    held = [name for name in columns if name in table.column_names]
    return table.select(held)


def _by_file(slices: Sequence[Slice]) -> dict[int, list[int]]:
    """The places of the slices by their files, so that each file is opened once."""
    places: dict[int, list[int]] = {}
    for k, rows in enumerate(slices):
        places.setdefault(rows.file, []).append(k)
    return places


def read_parts(
    store: Store, files: Sequence[SourceFile], columns: Sequence[str]
) -> Iterator[tuple[Slice, pa.Table]]:
    """All rows in their order, a few at a time as they are decoded: each part, not their sum, fits
    `decoded_bytes`.

    Raises what `read_slices` raises.
    """
    partitions = partition_columns(f.path for f in files)
    for i, file in enumerate(files):
        if not file.rows:
            continue
        start = 0
        budget = Budget(file.uri, store.access.decoded_bytes, lambda: None)
        with _opened(store, file, columns, budget.tick) as opened, readable(file.uri):
            schema, added = _wanted(opened, columns, partitions)
            for part in decode_parts(opened.parquet, file.row_groups, schema, budget):
                rows = Slice(file=i, start=start, stop=start + part.num_rows)
                yield rows, with_partitions(part, file.path, added)
                start = rows.stop


def row_ids(
    files: Sequence[SourceFile], slices: Sequence[Slice], table: pa.Table, row_id: str | None
) -> pa.Array:
    """The rows' ids: their `row_id` column, or `<path>#<row>` with rows counted from 0 in the
    original file.
    """
    if row_id is not None:
        ids = table.column(row_id).combine_chunks()
        if pa.types.is_dictionary(ids.type):
            return ids.dictionary_decode()
        return ids
    positions = [_positions(files[rows.file], rows) for rows in slices]
    return pa.concat_arrays(positions)


def _positions(file: SourceFile, rows: Slice) -> pa.Array:
    start = file.first_row + rows.start
    stop = file.first_row + rows.stop
    numbers = pa.array(range(start, stop), pa.int64())
    texts = numbers.cast(pa.string())
    return pc.binary_join_element_wise(file.path, texts, "#")


@dataclass(frozen=True, eq=False)
class _Opened:
    """A source file that is being read; `schema` has strings as such, `parquet` yields them as
    dictionaries.
    """

    file: SourceFile
    parquet: pq.ParquetFile
    schema: pa.Schema


@contextmanager
def _opened(
    store: Store, file: SourceFile, columns: Sequence[str] | None, tick: Callable[[], None]
) -> Iterator[_Opened]:
    """A planned file, open for reading, once its size and fingerprint are seen to be the planned
    ones.
    """
    try:
        entry = store.info(store.parse(file.uri))
    except FileNotFoundError:
        raise _changed(file, "the file", "no file") from None
    if entry.size != file.size:
        raise _changed(file, f"{file.size} bytes", f"{entry.size} bytes")
    with _unchanged_meanwhile(store, file, entry):
        seen = fingerprint(store, entry)
        if seen != file.fingerprint:
            raise _changed(file, file.fingerprint, seen)
        ahead = entry.uri.scheme != "file"
        with (
            store.open(entry.uri, etag=entry.etag, tick=tick) as source,
            _parquet(file, source, columns, ahead) as opened,
        ):
            yield opened


@contextmanager
def _parquet(
    file: SourceFile, source: io.RawIOBase, columns: Sequence[str] | None, ahead: bool
) -> Iterator[_Opened]:
    with readable(file.uri):
        footer = open_parquet(source)
        schema = _data_columns(footer.schema_arrow)
        once = [c for c in columns or schema.names if len(schema.get_all_field_indices(c)) == 1]
        texts = string_columns(schema, once)
        parquet = open_parquet(source, metadata=footer.metadata, read_dictionary=texts, ahead=ahead)
    with parquet:
        yield _Opened(file, parquet, schema)


def _data_columns(schema: pa.Schema) -> pa.Schema:
    """A file's columns without a `_bad` that ingest did not write: nobody checked its type, and it
    marks no rows.
    """
    there = schema.get_all_field_indices(BAD)
    types = [schema.field(place).type for place in there]
    if CONTENT in (schema.metadata or {}) and types == [pa.string()]:
        return schema
    kept = [field for field in schema if field.name != BAD]
    return pa.schema(kept)


@contextmanager
def _unchanged_meanwhile(store: Store, file: SourceFile, entry: Entry) -> Iterator[None]:
    """IntegrityError for a file that is written to while it is read, which may also be why it
    cannot be decoded.

    Reads of objects are pinned to their ETag; of a local file, size and time of change have to tell
    afterwards.
    """
    try:
        yield
    except (DataError, FileNotFoundError):
        _check_unchanged(store, file, entry)
        raise
    _check_unchanged(store, file, entry)


def _check_unchanged(store: Store, file: SourceFile, entry: Entry) -> None:
    if entry.etag is not None:
        return
    try:
        now = store.info(entry.uri)
    except FileNotFoundError:
        raise _changed(file, "the file", "no file") from None
    if now != entry:
        raise _changed(
            file,
            f"{entry.size} bytes, not written to since it was opened",
            f"{now.size} bytes, written to while it was read",
        )


def _changed(file: SourceFile, expected: str, seen: str) -> IntegrityError:
    return IntegrityError(
        file.uri,
        expected=f"{expected}, as planned",
        seen=seen,
        next_step="plan again: a changed input is another run",
    )


def _read_slice(
    opened: _Opened,
    rows: Slice,
    columns: Sequence[str] | None,
    partitions: dict[str, pa.DataType],
    budget: Budget,
) -> pa.Table:
    schema, added = _wanted(opened, columns, partitions)
    with readable(budget.where):
        table = decode(opened.parquet, opened.file.row_groups, rows, schema, budget)
    return with_partitions(table, opened.file.path, added)


def _wanted(
    opened: _Opened, columns: Sequence[str] | None, partitions: dict[str, pa.DataType]
) -> tuple[pa.Schema, dict[str, pa.DataType]]:
    """Those of the columns (None: all) that the file holds, and those that its path tells."""
    file, stored = opened.file, opened.schema.names
    # what is there twice has no name of its own
    once = [name for name, times in Counter(stored).items() if times == 1]
    everything = dict.fromkeys([*once, *hive_values(file.path)])
    wanted = list(everything if columns is None else columns)
    lacking = [c for c in wanted if c not in stored and c not in partitions and c != BAD]
    if lacking:
        raise DataError(
            file.uri,
            expected=f"column `{lacking[0]}`",
            seen=f"columns {', '.join(stored[:8])}",
            next_step="plan again",
        )
    fields = [opened.schema.field(name) for name in wanted if name in stored]
    from_path = {name: partitions[name] for name in wanted if name in partitions}
    return pa.schema(fields), from_path
