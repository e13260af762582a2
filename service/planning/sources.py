"""What a source names: its files, their format, and their footers read in parallel."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from integrand.schemas.errors import DataError
from integrand.schemas.records import SourceFile
from integrand.schemas.specs.source import Source
from integrand.schemas.uris import Uri
from integrand.workers.data.formats.base import SourceFormat
from integrand.workers.data.formats.images import Images
from integrand.workers.data.formats.table import FORMATS, format_by_extension
from integrand.workers.data.inspection import inspect_file
from integrand.workers.storage.store import Entry, Store, split_glob

READERS = 32
"""Footers read at once: they cost latency, not bandwidth."""
_COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".zip")


@dataclass(frozen=True)
class Listing:
    """The files of a source in order, each with its path below the source root."""

    format: SourceFormat
    files: tuple[tuple[Entry, str], ...]


def list_source(store: Store, source: Source, base: str) -> Listing:
    """Expand every URI. Raises DataError for an empty source or files of more than one format."""
    roots = [store.parse(text, base) for text in source.uris]
    found = {str(entry.uri): entry for root in roots for entry in _expand(store, root)}
    formats = {entry: entry_format(source, entry.uri) for entry in found.values()}
    readable = [entry for entry, form in formats.items() if form is not None]
    known = {form.name: form for form in formats.values() if form is not None}
    if not readable:
        raise _no_data(source, list(found.values()))
    if len(known) > 1:
        raise DataError(
            "source",
            expected="files of one format",
            seen=", ".join(sorted(known)),
            next_step="narrow source.uri with a glob such as table/*.parquet",
        )
    _check_distinct(readable)
    top = _root(roots, readable)
    (form,) = known.values()
    paths = [entry.uri.path.removeprefix(top).lstrip("/") for entry in readable]
    return Listing(form, tuple(zip(readable, paths, strict=True)))


def _no_data(source: Source, others: Sequence[Entry]) -> DataError:
    names = sorted(entry.uri.name for entry in others)
    if source.format == "images":
        return _no_pictures(source)
    titles = [form.title for form in FORMATS.values() if form.extensions]
    seen = f"{len(names)} other files, such as {names[0]}" if names else "no files"
    return DataError(
        f"source {', '.join(source.uris)}",
        expected=f"{', '.join(titles[:-1])} or {titles[-1]} files",
        seen=seen,
        next_step=_step_for(names),
    )


def _no_pictures(source: Source) -> DataError:
    return DataError(
        f"source {', '.join(source.uris)}",
        expected=f"files that end in {', '.join(Images.endings)}",
        seen="none",
        next_step="check source.uri; other pictures must be converted first",
    )


def _step_for(names: Sequence[str]) -> str:
    """What to do about files none of which is data, by their names."""
    if any(name.endswith(_COMPRESSED) for name in names):
        return "decompress them, or write Parquet, which compresses by itself"
    for form in FORMATS.values():
        for extension, step in form.near.items():
            if any(name.endswith(extension) for name in names):
                return step
    return "check source.uri, or set source.format"


def _check_distinct(entries: Sequence[Entry]) -> None:
    """DataError where two paths lead to one local file: its rows would be in the result twice."""
    seen: dict[str, str] = {}
    for path in (e.uri.path for e in entries if e.uri.scheme == "file"):
        other = seen.setdefault(os.path.realpath(path), path)
        if other != path:
            raise DataError(
                f"source {path}",
                expected="each file once",
                seen=f"the same file as {other}",
                next_step="name it once in source.uri, and leave out links to it",
            )


def _expand(store: Store, root: Uri) -> Sequence[Entry]:
    try:
        return store.expand(root)
    except FileNotFoundError:
        raise DataError(
            f"source {root}",
            expected="a file, folder or glob with something in it",
            seen="nothing there",
            next_step="check source.uri; relative paths start at the spec's folder",
        ) from None


def entry_format(source: Source, uri: Uri) -> SourceFormat | None:
    """A file's format by the spec, else by its extension; None for a file that is not data."""
    ending = os.path.splitext(uri.name)[1].lower()
    if source.format == "auto":
        return format_by_extension(ending)
    form = FORMATS[source.format]
    if isinstance(form, Images) and ending not in form.endings:
        return None
    return form


def _root(roots: Sequence[Uri], entries: Sequence[Entry]) -> str:
    """Longest folder that holds the whole source: a single folder or glob keeps its own root."""

    def folder(root: Uri) -> str:
        if any(e.uri.path == root.path for e in entries):
            return os.path.dirname(root.path)
        return split_glob(root)[0].path

    return os.path.commonpath([folder(r) or "/" for r in roots])


def read_footers(
    store: Store, listing: Listing
) -> tuple[tuple[SourceFile, ...], tuple[pa.Schema, ...]]:
    """Rows, row groups, fingerprint and schema of every Parquet file. Raises DataError without a
    single row.
    """
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(lambda one: inspect_file(store, *one), listing.files))
    if not sum(file.rows for file, _ in found):
        raise DataError(
            f"source of {len(found)} files",
            expected="at least one row",
            seen="no rows",
            next_step="check source.uri",
        )
    return tuple(f for f, _ in found), tuple(s for _, s in found)
