"""What a format of source files says of itself, and how one that is text gives its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar

from integrand.schemas.errors import DataError
from integrand.schemas.specs.source import FormatName
from integrand.schemas.uris import Uri
from integrand.workers.data.cells import Line, is_integer

LINE_BYTES = 64 << 20
"""A longer line is no row."""
_COLUMNS = 100_000


class SourceFormat(ABC):
    """One format of source files: Parquet, which is read as it lies, or a `TextFormat`."""

    name: ClassVar[FormatName]
    """As `source.format` names it."""
    title: ClassVar[str]
    """As messages name it."""
    extensions: ClassVar[tuple[str, ...]]
    """What its files' names end in, in lower case, the usual one first."""
    signature: ClassVar[bytes] = b""
    """What its files begin with, where they all do."""
    near: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Extensions of files that are nearly of this format, with what to do about them."""


@dataclass(frozen=True)
class Wanted:
    """What a text file is read for.

    columns     the declared ones, in order
    partitions  columns whose value the file's path tells
    """

    columns: tuple[str, ...]
    partitions: frozenset[str]


@dataclass(frozen=True, eq=False)
class TextTable:
    """A file's columns by name, and its rows with a cell for each of them."""

    names: list[str]
    lines: Iterator[Line]


class TextFormat(SourceFormat):
    """A format that is split into Parquet pieces before anything is planned over it.

    An extender overrides `table` and `head`, and says how many lines of a file are no rows.
    """

    header_lines: ClassVar[int] = 0
    id_types: ClassVar[tuple[type, ...]] = (int,)
    """Python types of the cells that may be whole numbers, as the ids of all rows together."""

    @abstractmethod
    def table(self, stream: BinaryIO, uri: Uri, wanted: Wanted) -> TextTable:
        """The wanted columns that the file itself holds, then its others, and every row.

        Raises DataError for a file that is no such table, or that lacks a column.
        """

    @abstractmethod
    def head(self, stream: BinaryIO, uri: Uri, wanted: Wanted, rows: int) -> TextTable:
        """Like `table`, to plan with: of the first rows, and whatever columns they lack."""

    def whole_numbers(self, cells: Iterable[Any]) -> bool:
        """Whether ids are whole numbers all, written as an int64 would be (`007` is not)."""
        return all(
            cell in (None, "") or (isinstance(cell, self.id_types) and is_integer(cell))
            for cell in cells
        )


def check_width(columns: Collection[str], uri: Uri) -> None:
    if len(columns) > _COLUMNS:
        raise DataError(
            str(uri),
            expected=f"at most {_COLUMNS} columns",
            seen=f"{len(columns)}",
            next_step="keep wide rows as lists of numbers in one column",
        )
