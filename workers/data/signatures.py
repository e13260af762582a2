"""What a file is by its first bytes, where it is no source of rows as it lies."""

from __future__ import annotations

from typing import NamedTuple

HEAD = 64
"""Bytes that are enough to tell."""


class Known(NamedTuple):
    """What a file is, in words, and what to do with it."""

    name: str
    next_step: str


_COMPRESSES = "write Parquet, which compresses by itself"
_UTF_16 = Known("text in UTF-16", "write it as UTF-8: iconv -f UTF-16 -t UTF-8")
_SIGNATURES = {
    b"\x1f\x8b": Known("a gzip-compressed file", f"decompress it (gunzip), or {_COMPRESSES}"),
    b"BZh": Known("a bzip2-compressed file", f"decompress it, or {_COMPRESSES}"),
    b"\x28\xb5\x2f\xfd": Known("a zstd-compressed file", f"decompress it, or {_COMPRESSES}"),
    b"\xfd7zXZ": Known("an xz-compressed file", f"decompress it, or {_COMPRESSES}"),
    b"PK\x03\x04": Known(
        "a zip archive or an Excel workbook", "unpack it, or export the sheet as CSV"
    ),
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"ARROW1": Known(
        "an Arrow IPC (Feather) file",
        "write Parquet: pyarrow.parquet.write_table(pyarrow.feather.read_table(...), ...)",
    ),
    b"\x89HDF": Known("an HDF5 file", "write Parquet: pandas.read_hdf(...).to_parquet(...)"),
    b"SQLite format 3": Known("an SQLite database", "export the table as Parquet or CSV"),
}


def identify_foreign(head: bytes) -> Known | None:
    """What these first bytes are of; None for plain text, for formats that are read, and for what
    is not known.
    """
    for signature, known in _SIGNATURES.items():
        if head.startswith(signature):
            return known
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _alternates(head[:8]) or _alternates(head[:8][::-1]):
        return _UTF_16
    if plain.startswith((b"<!DOCTYPE", b"<html", b"<?xml")):
        return Known("HTML or XML", "is this the page that leads to the file? name the file itself")
    return None


def _alternates(some: bytes) -> bool:
    """Whether every second byte is zero and no other: letters of UTF-16, whose mark was
    left out.
    """
    if len(some) != 8:
        return False
    letters, zeros = some[::2], some[1::2]
    return all(letters) and not any(zeros)


def separator(header: str) -> str | None:
    """What separates the names of a header line that holds no comma; None where nothing does."""
    for mark in ("\t", ";", "|"):
        if mark in header:
            return mark
    return None
