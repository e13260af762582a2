"""What a Parquet file holds, from its footer alone, and what pins it. Imports no torch."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from integrand.schemas.errors import DataError
from integrand.schemas.records import SourceFile
from integrand.workers.data.decoding import open_parquet, readable
from integrand.workers.data.signatures import HEAD, identify_foreign
from integrand.workers.storage.store import Entry, Store

MAGIC = b"PAR1"
_TAIL = 1 << 16
_FOOTER_BYTES, _COLUMNS, _ROW_GROUPS = 64 << 20, 100_000, 100_000
"""A footer takes some 15 times its size once it is parsed."""


def inspect_file(store: Store, entry: Entry, path: str) -> tuple[SourceFile, pa.Schema]:
    """One Parquet file, `path` below the source root, from its footer alone. Raises DataError for
    any other file.
    """
    tail = _footer(store, entry)
    with readable(str(entry.uri)), open_parquet(pa.BufferReader(MAGIC + tail)) as parquet:
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
    footer = b"" if entry.etag else _footer(store, entry)
    return _fingerprint(entry, footer)


def _fingerprint(entry: Entry, footer: bytes) -> str:
    if entry.etag:
        return f"etag:{entry.etag}"
    digest = hashlib.sha256(footer[:-8]).hexdigest()
    return f"footer:{digest}"


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
