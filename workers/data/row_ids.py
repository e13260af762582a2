"""Row ids over the whole source: null, NaN and duplicate ones are reported before any work
is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.errors import DataError
from integrand.schemas.records import Slice, SourceFile
from integrand.workers.data.columns import BAD
from integrand.workers.data.merging import common_type
from integrand.workers.data.reading import read_parts, row_ids
from integrand.workers.data.values import plain_value
from integrand.workers.storage.store import Store

_NEXT = "drop source.row_id to identify rows by file and position, or fix the ids"
_SUSPECTS = 1024
"""Ids that are held in full at once, to see whether they are the same or only their hashes are."""
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class _Column:
    """The ids of a source, which are never all in memory; of one type where the files' types
    differ.
    """

    store: Store
    files: Sequence[SourceFile]
    name: str
    kind: pa.DataType | None = None

    def parts(self) -> Iterator[tuple[Slice, pa.Array, pa.Array]]:
        """Where some rows lie, their ids, and which of the rows could be parsed."""
        for rows, table in read_parts(self.store, self.files, [self.name, BAD]):
            ids = row_ids(self.files, [rows], table, self.name)
            if self.kind:
                ids = ids.cast(self.kind, safe=False)
            bad = pa.nulls(rows.rows)
            if BAD in table.column_names:
                bad = table.column(BAD).combine_chunks()
            yield rows, ids, bad.is_null()

    def place(self, rows: Slice, position: int) -> str:
        start = rows.start + position
        one = Slice(file=rows.file, start=start, stop=start + 1)
        ids = row_ids(self.files, [one], pa.table({}), None)
        return str(ids[0].as_py())

    def wrong(self, expected: str, seen: str) -> DataError:
        return DataError(
            f"source.row_id `{self.name}`", expected=expected, seen=seen, next_step=_NEXT
        )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of some rows: 8 bytes for each id, and the places of the first ids that are
    none.
    """

    kind: pa.DataType
    hashes: Hashes
    nulls: int
    null: str | None
    garbled: str | None


def check_row_ids(store: Store, files: Sequence[SourceFile], column: str) -> None:
    """Read that column alone. Raises DataError with places if ids are null, twice or no text.

    A line that could not be parsed has no id, and is no reason to stop: it is `bad_input` in the
    output.
    """
    ids = _Column(store, files, column)
    seen = [_look(ids, rows, values, there) for rows, values, there in ids.parts()]
    _check_known(ids, seen)
    kinds = {s.kind for s in seen if len(s.hashes)}
    hashes = [s.hashes for s in seen]
    if len(kinds) > 1:  # 7 is 7 whether as int32 or as int64, but hashes differ
        kind = _common(kinds)
        ids = _Column(store, files, column, kind)
        hashes = [hash_ids(values) for _, values, _ in ids.parts()]
    none = np.empty(0, np.uint64)
    _check_unique(ids, np.concatenate([none, *hashes]))


def _check_known(ids: _Column, seen: Sequence[_Seen]) -> None:
    nulls = sum(s.nulls for s in seen)
    if nulls:
        first = next(s.null for s in seen if s.null)
        expected = "an id in every row, which no null and no NaN is"
        raise ids.wrong(expected, f"{nulls} null, the first at {first}")
    garbled = [s.garbled for s in seen if s.garbled]
    if garbled:
        raise ids.wrong("ids in UTF-8", f"other bytes at {garbled[0]}")


def _look(ids: _Column, rows: Slice, values: pa.Array, there: pa.Array) -> _Seen:
    null = pc.indices_nonzero(pc.and_(values.is_null(nan_is_null=True), there))
    garbled = _first_garbled(values)
    return _Seen(
        kind=values.type,
        hashes=hash_ids(values),
        nulls=len(null),
        null=ids.place(rows, null[0].as_py()) if len(null) else None,
        garbled=None if garbled is None else ids.place(rows, garbled),
    )


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """The type that the planner gives to a column of these types."""
    return reduce(common_type, sorted(kinds, key=str))


def hash_ids(ids: pa.Array) -> Hashes:
    """64 bits of each id, nulls left out: of its bytes as Arrow stores them, which ids of one type
    share if equal.
    """
    # 40 MB, which drivers and workers do without where no column names the rows
    import pandas as pd

    known = ids.drop_null()
    if pa.types.is_boolean(known.type):
        known = known.cast(pa.uint8())
    if not len(known):
        return np.empty(0, np.uint64)
    if pa.types.is_primitive(known.type) and known.type.bit_width <= 64:
        return pd.util.hash_array(known.view(f"uint{known.type.bit_width}").to_numpy())
    if pa.types.is_decimal(known.type):
        known = known.view(pa.binary(known.type.bit_width // 8))
    values = known.cast(pa.large_binary()).to_numpy(zero_copy_only=False)
    return pd.util.hash_array(values, categorize=False)


def _first_garbled(ids: pa.Array) -> int | None:
    """Parquet does not enforce that strings are UTF-8, and a row with such an id could not be named
    anywhere.
    """
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        return None
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        values = ids.cast(pa.large_binary()).to_pylist()
        return next(i for i, value in enumerate(values) if not _is_utf8(value))
    return None


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_unique(ids: _Column, hashes: Hashes) -> None:
    """Two ids may share a hash: what is said to be there twice has been read again and compared."""
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    for first in range(0, len(twice), _SUSPECTS):
        suspects = twice[first : first + _SUSPECTS]
        example = _example(ids, suspects)
        if example is not None:
            seen = f"{len(twice)} ids used more than once, for instance {example}"
            raise ids.wrong("a different id in every row", seen)


def _example(ids: _Column, suspects: Hashes) -> str | None:
    """The first id with one of these hashes that comes a second time, and both places."""
    places: dict[str, str] = {}
    for rows, values, _ in ids.parts():
        there = np.flatnonzero(values.is_valid())
        for i in there[np.isin(hash_ids(values), suspects)].tolist():
            value = repr(plain_value(values[i]))  # NaN differs from itself, its text does not
            place = ids.place(rows, i)
            if value in places:
                return f"{value[:200]} at {places[value]} and {place}"
            places[value] = place
    return None
