"""CSV with a header line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import BinaryIO

from integrand.schemas.errors import DataError
from integrand.schemas.uris import Uri
from integrand.workers.data.cells import Line, is_utf8
from integrand.workers.data.columns import BAD
from integrand.workers.data.formats.base import (
    LINE_BYTES,
    TextFormat,
    TextTable,
    Wanted,
    check_width,
)
from integrand.workers.data.signatures import separator


class Csv(TextFormat):
    """Commas between cells, quotes around those that hold one; every cell is text."""

    name = "csv"
    title = "CSV"
    extensions = (".csv",)
    near = MappingProxyType(
        dict.fromkeys(
            (".tsv", ".tab"),
            "write CSV with commas, or Parquet: pandas.read_csv(..., sep='\\t').to_parquet(...)",
        )
    )
    header_lines = 1
    id_types = (str, int)

    def table(self, stream: BinaryIO, uri: Uri, wanted: Wanted) -> TextTable:
        optional = {name: name in wanted.partitions for name in wanted.columns}
        return _table(stream, uri, optional)

    def head(self, stream: BinaryIO, uri: Uri, wanted: Wanted, rows: int) -> TextTable:
        optional = dict.fromkeys(wanted.columns, True)
        found = _table(stream, uri, optional)
        held = {*found.names, *wanted.partitions}
        lacking = [name for name in wanted.columns if name not in held]
        if lacking and len(found.names) == 1 and separator(found.names[0]):
            raise _wrong_header(uri, found.names, f"`{lacking[0]}`")
        return found


def _table(stream: BinaryIO, uri: Uri, wanted: dict[str, bool]) -> TextTable:
    """Names and rows of a file with a header; `wanted` maps a column to whether it may be
    missing.
    """
    # Lists of numbers in a cell outgrow the default of 128 KiB. The setting is the csv module's own
    # and global.
    csv.field_size_limit(LINE_BYTES)
    # Bytes that are not UTF-8 come through as lone surrogates, so that only their row is lost.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = _Rows(text, uri)
    columns = _header(rows, uri)
    places = {name: k for k, name in enumerate(columns)}
    counts = Counter(columns)
    # what nobody reads may be there twice
    repeated = sorted(name for name in wanted if counts[name] > 1)
    lacking = [c for c, optional in wanted.items() if c not in places and not optional]
    if lacking:
        raise _wrong_header(uri, columns, f"`{lacking[0]}`")
    if repeated:
        raise _wrong_header(uri, columns, f"`{repeated[0]}` once")
    names = [c for c in dict.fromkeys([*wanted, *columns]) if c in places and c != BAD]
    picks = [places[name] for name in names]
    return TextTable(names, _lines(rows, len(columns), picks))


def _header(rows: Iterator[Line], uri: Uri) -> list[str]:
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
    check_width(columns, uri)
    return columns


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


def _lines(rows: Iterator[Line], width: int, picks: list[int]) -> Iterator[Line]:
    for line in rows:
        if line.cells is None:
            yield line
        elif len(line.cells) != width:
            yield Line(line.number, None, f"{len(line.cells)} fields, expected {width}", line.size)
        elif not is_utf8("".join(line.cells)):
            yield Line(line.number, None, "not UTF-8", line.size)
        else:
            yield Line(line.number, [line.cells[k] for k in picks], None, line.size)


class _Rows:
    """Rows of a CSV text that are not blank. Raises DataError for one without end, as after a quote
    that never closes.
    """

    def __init__(self, text: io.TextIOWrapper, uri: Uri) -> None:
        self._text = text
        self._uri = uri
        self._number = 1
        self._size = 0
        self._reader = csv.reader(self._lines(), strict=True)

    def __iter__(self) -> _Rows:
        return self

    def __next__(self) -> Line:
        while True:
            self._number = self._reader.line_num + 1
            self._size = 0
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
        for line in iter(lambda: self._text.readline(LINE_BYTES), ""):
            self._size += len(line)
            if self._size >= LINE_BYTES:
                raise self._endless(f"{LINE_BYTES} characters without an end")
            yield line

    def _endless(self, seen: str) -> DataError:
        return DataError(
            f"{self._uri} line {self._number}",
            expected="the end of the row, a closing quote before it",
            seen=seen,
            next_step="fix the line",
        )
