"""Row ids over the whole source: null and duplicate ones are reported before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from integrand.schemas.errors import DataError
from integrand.schemas.records import Slice, SourceFile
from integrand.workers.reading import BAD, read_slices, row_ids
from integrand.workers.store import Store

_NEXT = "drop source.row_id to identify rows by file and position, or mend the ids"


def check_row_ids(store: Store, files: Sequence[SourceFile], column: str) -> None:
    """Read that column alone. Raises DataError with places if ids are null, twice or no text.

    A line that could not be parsed has no id, and is no reason to stop: it is `bad_input` in the output.
    """
    slices = [Slice(file=i, start=0, stop=f.rows) for i, f in enumerate(files) if f.rows]
    if not slices:
        return
    table = read_slices(store, files, slices, [column, BAD])
    ids = table.column(column)
    if pa.types.is_dictionary(ids.type):  # Arrow counts distinct values of plain types alone
        ids = ids.cast(ids.type.value_type)
    parsed = pc.is_null(table.column(BAD)) if BAD in table.column_names else pa.scalar(True)
    null = pc.indices_nonzero(pc.and_(pc.is_null(ids), parsed))
    if len(null):
        raise DataError(f"source.row_id `{column}`", expected="an id in every row",
                        seen=f"{len(null)} null, the first at {_place(files, slices, null[0].as_py())}",
                        next_step=_NEXT)  # fmt: skip
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        _check_text(files, slices, ids, column)
    _check_unique(files, slices, ids, column)


def _check_text(files: Sequence[SourceFile], slices: Sequence[Slice], ids: pa.ChunkedArray, column: str) -> None:
    """Parquet does not enforce that strings are UTF-8, and a row with such an id could not be named anywhere."""
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        found = next(i for i, value in enumerate(ids.cast(pa.large_binary()).to_pylist()) if not _is_utf8(value))
        raise DataError(f"source.row_id `{column}`", expected="ids in UTF-8",
                        seen=f"other bytes at {_place(files, slices, found)}", next_step=_NEXT) from None  # fmt: skip


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_unique(files: Sequence[SourceFile], slices: Sequence[Slice], ids: pa.ChunkedArray, column: str) -> None:
    if pc.count_distinct(ids, mode="only_valid").as_py() == len(ids) - ids.null_count:
        return
    counts = pc.value_counts(ids.drop_null())
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    example = twice.field("values")[0]
    places = [_place(files, slices, i.as_py()) for i in pc.indices_nonzero(pc.equal(ids, example))[:2]]
    raise DataError(f"source.row_id `{column}`", expected="a different id in every row",
                    seen=f"{len(twice)} ids used more than once, for instance {example.as_py()!r} at "
                    f"{' and '.join(places)}", next_step=_NEXT)  # fmt: skip


def _place(files: Sequence[SourceFile], slices: Sequence[Slice], position: int) -> str:
    for rows in slices:
        if position < rows.rows:
            one = Slice(file=rows.file, start=rows.start + position, stop=rows.start + position + 1)
            return str(row_ids(files, [one], pa.table({}), None)[0].as_py())
        position -= rows.rows
    raise AssertionError("a position lies within the slices")
