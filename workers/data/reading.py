"""Parquet sources: what a file holds, which columns the job takes, and the rows of a shard.

Reads footers while planning and declared columns of touched row groups while running. Imports no
torch.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from integrand.schemas.errors import DataError, IntegrandError, IntegrityError
from integrand.schemas.records import Slice, SourceFile
from integrand.workers.data.columns import BAD, is_number
from integrand.workers.data.decoding import (
    Budget,
    decode,
    decode_parts,
    open_parquet,
    string_columns,
)
from integrand.workers.data.signatures import HEAD, identify_foreign
from integrand.workers.storage.store import Entry, Store

CONTENT = b"integrand.content"
"""Key in the schema of an ingested piece: digest of its values. Only files that have it tell of bad
rows.
"""
MAGIC = b"PAR1"
_TAIL = 1 << 16
_FOOTER_BYTES, _COLUMNS, _ROW_GROUPS = 64 << 20, 100_000, 100_000
"""A footer takes some 15 times its size once it is parsed."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?[0-9]{1,19}")


# --- files -------------------------------------------------------------------------------------


def inspect_file(store: Store, entry: Entry, path: str) -> tuple[SourceFile, pa.Schema]:
    """One Parquet file, `path` below the source root, from its footer alone. Raises DataError for
    any other file.
    """
    tail = _footer(store, entry)
    with _decoding(str(entry.uri)), open_parquet(pa.BufferReader(MAGIC + tail)) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
    if metadata.num_columns > _COLUMNS or metadata.num_row_groups > _ROW_GROUPS:
        raise _broken(
            entry,
            f"{metadata.num_columns} columns and {metadata.num_row_groups} row groups, above the "
            f"{_COLUMNS} and {_ROW_GROUPS} that are read",
        )
    groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise _broken(entry, f"{metadata.num_rows} rows in groups of {sum(groups)}")
    found = SourceFile(
        path=path,
        uri=str(entry.uri),
        rows=metadata.num_rows,
        size=entry.size,
        fingerprint=_fingerprint(entry, tail),
        row_groups=groups,
        first_row=0,
    )
    return found, schema


def fingerprint(store: Store, entry: Entry) -> str:
    """What pins a Parquet file: `etag:` of an object, `footer:` and the footer's sha256 of a local
    file.
    """
    return _fingerprint(entry, b"" if entry.etag else _footer(store, entry))


def _fingerprint(entry: Entry, footer: bytes) -> str:
    return (
        f"etag:{entry.etag}" if entry.etag else f"footer:{hashlib.sha256(footer[:-8]).hexdigest()}"
    )


def _footer(store: Store, entry: Entry) -> bytes:
    """The Thrift footer, its length and the closing magic, as they end the file."""
    if not entry.size:
        raise _broken(entry, "an empty file")
    tail = store.read_tail(entry.uri, entry.size, _TAIL)
    if tail[-4:] == b"PARE":
        raise _broken(entry, "an encrypted footer")
    if entry.size < 12 or tail[-4:] != MAGIC:
        head = (
            store.read_tail(entry.uri, entry.size, entry.size)
            if entry.size <= _TAIL
            else _head(store, entry)
        )
        known = None if head[:4] == MAGIC else identify_foreign(head[:HEAD])
        if known is not None:
            raise DataError(
                str(entry.uri),
                expected="a Parquet file",
                seen=known.name,
                next_step=known.next_step,
            )
        raise _broken(
            entry, "a truncated file" if head[:4] == MAGIC else "other bytes than Parquet"
        )
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length + 4 > entry.size:
        raise _broken(entry, f"a footer of {length} bytes in a file of {entry.size}")
    if length > _FOOTER_BYTES:
        raise _broken(entry, f"a footer of {length} bytes, above the {_FOOTER_BYTES} that are read")
    return tail[-length:] if length <= len(tail) else store.read_tail(entry.uri, entry.size, length)


def _head(store: Store, entry: Entry) -> bytes:
    with store.open(entry.uri) as file:
        return file.read(HEAD) or b""


def _broken(entry: Entry, seen: str) -> DataError:
    return DataError(
        str(entry.uri),
        expected="a Parquet file",
        seen=seen,
        next_step="fix or remove the file, or set source.format",
    )


# --- schema and partitions ---------------------------------------------------------------------


def hive_values(path: str) -> dict[str, str | None]:
    """Keys and percent-decoded values of the `key=value` folders in a relative path."""
    pairs = (folder.split("=", 1) for folder in path.split("/")[:-1] if "=" in folder[1:])
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def partition_columns(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """Columns that the folders spell out, `_bad` apart: int64 if every file's value is an integer,
    else string.
    """
    seen: dict[str, list[str]] = {}
    for values in map(hive_values, {p.rsplit("/", 1)[0] + "/" for p in paths if "/" in p}):
        for key, value in values.items():
            seen.setdefault(key, []).extend([] if value is None else [value])
    seen.pop(BAD, None)
    return {
        k: pa.int64() if v and all(map(_is_int64, v)) else pa.string()
        for k, v in sorted(seen.items())
    }


def with_partitions(table: pa.Table, path: str, types: dict[str, pa.DataType]) -> pa.Table:
    """The table with the partition columns that it does not hold itself, one value throughout."""
    values = hive_values(path)
    for name in [name for name in types if name not in table.column_names]:
        value = pa.array([values.get(name)], pa.string()).cast(types[name])[0]
        table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table


def source_schema(
    files: Sequence[SourceFile], schemas: Sequence[pa.Schema], columns: Sequence[str]
) -> pa.Schema:
    """All columns: those of `columns` in one type for all files, others as the first file has them,
    partition columns last.

    Raises DataError where one of `columns` is of unlike types, or is in some files and not in
    others. What a job does not read may be of any type, and there any number of times.
    """
    taken = set(columns) - {BAD}
    fields = [field for schema in schemas for field in schema.remove_metadata()]
    first = {field.name: field for field in reversed(fields)}
    names = list(dict.fromkeys(field.name for field in fields))
    merged: list[pa.Field] = []
    for name in names:
        if name in taken:
            _check_everywhere(files, schemas, name)
            times = max(len(schema.get_all_field_indices(name)) for schema in schemas)
            merged += [_common_field(files, schemas, name)] * times
        else:
            merged.append(first[name])
    extra = [
        pa.field(k, t)
        for k, t in partition_columns(f.path for f in files).items()
        if k not in names
    ]
    return pa.schema([*merged, *extra])


def _check_everywhere(files: Sequence[SourceFile], schemas: Sequence[pa.Schema], name: str) -> None:
    lacking = [
        f
        for f, s in zip(files, schemas, strict=True)
        if name not in s.names and name not in hive_values(f.path)
    ]
    if lacking:
        raise DataError(
            lacking[0].uri,
            expected=f"column `{name}`, as in the other files",
            seen=f"no such column here ({len(lacking)} of {len(files)} files lack it)",
            next_step="write all files with one schema",
        )


def _common_field(files: Sequence[SourceFile], schemas: Sequence[pa.Schema], name: str) -> pa.Field:
    """A column in the type that holds what every file has in it."""
    found: pa.DataType | None = None
    for file, schema in zip(files, schemas, strict=True):
        for place in schema.get_all_field_indices(name):
            kind = schema.field(place).type
            try:
                found = kind if found is None else common_type(found, kind)
            except pa.ArrowException:
                raise DataError(
                    file.uri,
                    expected=f"column `{name}` as {found}, its type in {files[0].uri}",
                    seen=str(kind),
                    next_step="write all files with one schema",
                ) from None
    return pa.field(name, found)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of two, whatever their encoding. Raises ArrowTypeError for
    unlike ones.
    """
    if one == other:
        return one
    kinds = [_plain(one), _plain(other)]
    numbers = all(map(is_number, kinds))
    if numbers:  # a boolean beside other numbers is 0 or 1, in their own type
        kinds = [pa.int8() if pa.types.is_boolean(kind) else kind for kind in kinds]
        if [pa.types.is_decimal(kind) for kind in kinds].count(True) == 1:
            return pa.float64()
    schemas = [pa.schema([("x", kind)]) for kind in kinds]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without the choices of whoever wrote it: dictionaries, 64-bit offsets, views."""
    t = pa.types
    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    return pa.list_(_plain(kind.value_type)) if t.is_large_list(kind) else kind


def _is_int64(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


# --- rows --------------------------------------------------------------------------------------


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
    partitions, parts = partition_columns(f.path for f in files), dict[int, pa.Table]()
    left = store.access.decoded_bytes
    for i in dict.fromkeys(s.file for s in slices):
        with _opened(store, files[i], columns, tick) as opened:
            for k in [k for k, s in enumerate(slices) if s.file == i]:
                where = f"{files[i].uri} rows [{slices[k].start}, {slices[k].stop})"
                parts[k] = _read_slice(
                    opened, slices[k], columns, partitions, Budget(where, left, tick)
                )
                left -= parts[k].nbytes
    with _decoding(", ".join(sorted({files[s.file].uri for s in slices})[:3])):
        table = _joined([parts[k] for k in range(len(slices))], lenient=columns is None)
    return (
        table if columns is None else table.select([c for c in columns if c in table.column_names])
    )


def _joined(parts: Sequence[pa.Table], *, lenient: bool) -> pa.Table:
    """Tables below each other, columns of unlike encodings in their common type; of unlike types as
    text, if `lenient`.
    """
    names = dict.fromkeys(name for part in parts for name in part.column_names)
    kinds = {
        name: [part.schema.field(name).type for part in parts if name in part.column_names]
        for name in names
    }
    unlike = {
        name: _type_of_all(found, lenient=lenient)
        for name, found in kinds.items()
        if len(set(found)) > 1
    }
    cast = (
        [
            part.cast(
                pa.schema(
                    [field.with_type(unlike.get(field.name, field.type)) for field in part.schema]
                )
            )
            for part in parts
        ]
        if unlike
        else parts
    )
    return pa.concat_tables(cast, promote_options="permissive")


def _type_of_all(kinds: Sequence[pa.DataType], *, lenient: bool) -> pa.DataType:
    try:
        return reduce(common_type, kinds)
    except pa.ArrowException:
        if lenient:
            return pa.string()
        raise


def read_parts(
    store: Store, files: Sequence[SourceFile], columns: Sequence[str]
) -> Iterator[tuple[Slice, pa.Table]]:
    """All rows in their order, a few at a time as they are decoded: each part, not their sum, fits
    `decoded_bytes`.

    Raises what `read_slices` raises.
    """
    partitions = partition_columns(f.path for f in files)
    for i, file in [(i, f) for i, f in enumerate(files) if f.rows]:
        start, budget = 0, Budget(file.uri, store.access.decoded_bytes, lambda: None)
        with _opened(store, file, columns, budget.tick) as opened, _decoding(file.uri):
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
        return ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
    return pa.concat_arrays([_positions(files[s.file], s) for s in slices])


def _positions(file: SourceFile, rows: Slice) -> pa.Array:
    numbers = pa.array(
        range(file.first_row + rows.start, file.first_row + rows.stop), pa.int64()
    ).cast(pa.string())
    return pc.binary_join_element_wise(file.path, numbers, "#")


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
    with _decoding(file.uri):
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
    ours = CONTENT in (schema.metadata or {}) and [schema.field(i).type for i in there] == [
        pa.string()
    ]
    return schema if ours else pa.schema([field for field in schema if field.name != BAD])


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
    with _decoding(budget.where):
        table = decode(opened.parquet, opened.file.row_groups, rows, schema, budget)
    return with_partitions(table, opened.file.path, added)


def _wanted(
    opened: _Opened, columns: Sequence[str] | None, partitions: dict[str, pa.DataType]
) -> tuple[pa.Schema, dict[str, pa.DataType]]:
    """Those of the columns (None: all) that the file holds, and those that its path tells."""
    file, stored = opened.file, opened.schema.names
    # what is there twice has no name of its own
    once = [name for name, times in Counter(stored).items() if times == 1]
    wanted = (
        list(dict.fromkeys([*once, *hive_values(file.path)])) if columns is None else list(columns)
    )
    lacking = [c for c in wanted if c not in stored and c not in partitions and c != BAD]
    if lacking:
        raise DataError(
            file.uri,
            expected=f"column `{lacking[0]}`",
            seen=f"columns {', '.join(stored[:8])}",
            next_step="plan again",
        )
    schema = pa.schema([opened.schema.field(c) for c in wanted if c in stored])
    return schema, {c: partitions[c] for c in wanted if c in partitions}


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """What pyarrow cannot decode is the file's fault; the store's own errors have been told apart
    before.
    """
    try:
        yield
    except (IntegrandError, MemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            where,
            expected="readable Parquet",
            seen=str(error).split("\n", 1)[0],
            next_step="write the file again, or take it out of the source",
        ) from error
