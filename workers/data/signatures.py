"""What a file is, told from its first bytes, where it is not what a source should be."""

from __future__ import annotations

HEAD = 64
"""Bytes that are enough to tell."""
_SIGNATURES = (
    (
        b"\x1f\x8b",
        "a gzip-compressed file",
        "decompress it (gunzip), or write Parquet, which compresses by itself",
    ),
    (
        b"BZh",
        "a bzip2-compressed file",
        "decompress it, or write Parquet, which compresses by itself",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "a zstd-compressed file",
        "decompress it, or write Parquet, which compresses by itself",
    ),
    (
        b"\xfd7zXZ",
        "an xz-compressed file",
        "decompress it, or write Parquet, which compresses by itself",
    ),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or export the sheet as CSV"),
    (b"\xff\xfe", "text in UTF-16", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (
        b"ARROW1",
        "an Arrow IPC (Feather) file",
        "write Parquet: pyarrow.parquet.write_table(pyarrow.feather.read_table(...), ...)",
    ),
    (b"\x89HDF", "an HDF5 file", "write Parquet: pandas.read_hdf(...).to_parquet(...)"),
    (b"SQLite format 3", "an SQLite database", "export the table as Parquet or CSV"),
    (b"PAR1", "a Parquet file", "name it .parquet, or set source.format: parquet"),
)


def recognise(head: bytes) -> tuple[str, str] | None:
    """What these first bytes of a file are, and what to do with it; None for plain text and what is
    not known.
    """
    for signature, name, step in _SIGNATURES:
        if head.startswith(signature):
            return name, step
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _alternates(head[:8]) or _alternates(head[:8][::-1]):
        return "text in UTF-16", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"
    if plain.startswith((b"<!DOCTYPE", b"<html", b"<?xml")):
        return "HTML or XML", "is this the page that leads to the file? name the file itself"
    return None


def _alternates(some: bytes) -> bool:
    """Whether every second byte is zero and no other: letters of UTF-16, whose mark was
    left out.
    """
    return len(some) == 8 and not any(some[1::2]) and all(some[::2])


def separator(header: str) -> str | None:
    """What separates the names of a header line that holds no comma; None where nothing does."""
    return next((mark for mark in ("\t", ";", "|") if mark in header), None)
