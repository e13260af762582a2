"""Rows of a Parquet file, decoded batch by batch within a budget: a file of 463 bytes may stand for
gigabytes.

What a footer says of bytes is what they are encoded to. What they decode to follows from its counts
of values where these have a width; strings come as dictionaries and are measured before they are
spelt out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from math import ceil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from integrand.schemas.errors import DataError, IntegrandError
from integrand.schemas.records import Slice

BATCH_BYTES, BATCH_ROWS = 64 << 20, 1 << 14
"""A batch is decoded whole, so it is cut to what its row group's rows take on average."""
_UNMEASURED_ROWS = 64
"""Rows of a batch in which values of any length come as they are, and are measured only once they
are there.
"""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_EXTENSIONS = (
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
    "ray.data.arrow_pickled_object",
)


@dataclass(frozen=True)
class Budget:
    """What one read may take: `most` bytes of decoded columns, for rows at `where`; `tick` is
    called per batch.
    """

    where: str
    most: int
    tick: Callable[[], None]


def forget_extensions() -> None:
    """Take Ray Data's Arrow types out of the registry: the file's own bytes go to their
    deserializers when it is opened.

    `arrow_extensions_enabled=False` does not keep pyarrow from calling them (CVE-2026-41486 ran
    pickles that way).
    """
    for name in _EXTENSIONS:
        try:
            pa.unregister_extension_type(name)
        except pa.ArrowKeyError:
            continue  # nobody imported ray.data here


def open_parquet(
    source: RawIOBase | pa.NativeFile,
    *,
    metadata: pq.FileMetaData | None = None,
    read_dictionary: Sequence[str] = (),
    ahead: bool = False,
) -> pq.ParquetFile:
    """Parquet of anyone's, a run folder's objects included, with Ray Data's types forgotten and
    checksums compared.

    ahead  get the columns of a row group in few requests before they are decoded, as pays for
           objects. Threads of Arrow's do that, and one that still holds our bytes when Python ends
           aborts the process (apache/arrow#34314).
    """
    forget_extensions()
    return pq.ParquetFile(
        source,
        metadata=metadata,
        read_dictionary=list(read_dictionary),
        pre_buffer=ahead,
        page_checksum_verification=True,
    )


def string_columns(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Those of the columns that hold plain strings or bytes."""
    return [name for name in columns if _is_text(schema.field(name).type)]


def _is_text(kind: pa.DataType) -> bool:
    t = pa.types
    text = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    data = t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind)
    return bool(text or data)


def decode(
    parquet: pq.ParquetFile,
    row_groups: Sequence[int],
    rows: Slice,
    schema: pa.Schema,
    budget: Budget,
) -> pa.Table:
    """Rows [start, stop) of the columns of `schema`, from the row groups that hold them;
    `row_groups` counts their rows.

    `parquet` was opened with `read_dictionary` for the string columns. Raises DataError for rows
    above the budget, or fewer of them than asked for.
    """
    touched, skip = _touched(row_groups, rows)
    widths = _row_widths(parquet, touched, schema.names)
    sizes = [width * held for width, (_, held) in zip(widths, touched, strict=True)]
    foreseen = ceil(sum(sizes))
    if foreseen > budget.most:
        raise _above(budget, rows.rows, foreseen)
    groups = [group for group, _ in touched]
    kept: list[pa.RecordBatch] = []
    wanted = rows.rows
    taken = 0
    for batch in _batches(parquet, groups, widths, schema.names):
        budget.tick()
        part = batch.slice(skip, wanted)
        skip = max(0, skip - batch.num_rows)
        wanted -= part.num_rows
        taken += _batch_bytes(part, schema.names)
        if taken > budget.most:
            raise _above(budget, rows.rows - wanted, taken)
        if part.num_rows:
            kept.append(_spelt_out(part, schema))
        if not wanted:
            return pa.Table.from_batches(kept, None if kept else schema)
    raise _fewer(budget, rows.rows, wanted)


def decode_parts(
    parquet: pq.ParquetFile, row_groups: Sequence[int], schema: pa.Schema, budget: Budget
) -> Iterator[pa.Table]:
    """All rows as `decode` gives them, some at a time. Raises DataError for one row that is above
    the budget.
    """
    touched = [(group, held) for group, held in enumerate(row_groups) if held]
    groups = [group for group, _ in touched]
    lacking = sum(row_groups)
    widths = _row_widths(parquet, touched, schema.names)
    for batch in _batches(parquet, groups, widths, schema.names):
        budget.tick()
        lacking -= batch.num_rows
        for part in _fitting(batch, schema.names, budget):
            yield pa.Table.from_batches([_spelt_out(part, schema)])
    if lacking:
        raise _fewer(budget, sum(row_groups), lacking)


def _fitting(
    batch: pa.RecordBatch, columns: Sequence[str], budget: Budget
) -> Iterator[pa.RecordBatch]:
    """The batch, halved until each part is no larger than a batch should be."""
    size = _batch_bytes(batch, columns)
    if batch.num_rows == 1 and size > budget.most:
        raise _above(budget, 1, size)
    if batch.num_rows == 1 or size <= min(BATCH_BYTES, budget.most):
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _fitting(batch.slice(0, half), columns, budget)
        yield from _fitting(batch.slice(half), columns, budget)


def _touched(row_groups: Sequence[int], rows: Slice) -> tuple[list[tuple[int, int]], int]:
    """Row groups that overlap the slice with how many of its rows they hold, and how many rows come
    before it.
    """
    groups: list[tuple[int, int]] = []
    skip = first = 0
    for i, count in enumerate(row_groups):
        held = min(rows.stop, first + count) - max(rows.start, first)
        if held > 0:
            skip = skip if groups else max(0, rows.start - first)
            groups.append((i, held))
        first += count
    return groups, skip


def _batches(
    parquet: pq.ParquetFile, groups: Sequence[int], widths: Sequence[float], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    most = _UNMEASURED_ROWS if _any_length(parquet, columns) else BATCH_ROWS
    for group, width in zip(groups, widths, strict=True):
        size = max(1, min(most, int(BATCH_BYTES // max(1.0, width))))
        # One thread: a worker was given its CPUs for the model, and its neighbours have theirs.
        yield from parquet.iter_batches(
            size, row_groups=[group], columns=columns, use_threads=False
        )


def _any_length(parquet: pq.ParquetFile, columns: Sequence[str]) -> bool:
    """Whether a column holds values of no known width that are not read as a dictionary: nested
    strings, some decimals.
    """
    schema = parquet.schema_arrow
    rest = tuple(
        f"{name}." for name in columns if not pa.types.is_dictionary(schema.field(name).type)
    )
    leaves = (parquet.schema.column(i) for i in range(len(parquet.schema)))
    return any(
        leaf.physical_type == "BYTE_ARRAY" and f"{leaf.path}.".startswith(rest) for leaf in leaves
    )


def _row_widths(
    parquet: pq.ParquetFile, touched: Sequence[tuple[int, int]], columns: Sequence[str]
) -> list[float]:
    """Bytes that a row of each touched group decodes to on average; of a string only its place in a
    dictionary.
    """
    wanted = tuple(f"{name}." for name in columns)
    flat = 0
    nested: list[tuple[int, int]] = []
    for i in range(len(parquet.schema)):
        leaf = parquet.schema.column(i)
        if not f"{leaf.path}.".startswith(wanted):
            continue
        width = _WIDTHS.get(leaf.physical_type) or max(4, leaf.length)
        if leaf.max_repetition_level:
            nested.append((i, width))
        else:
            flat += width
    widths = []
    for number, _ in touched:
        group = parquet.metadata.row_group(number)
        in_lists = sum(group.column(i).num_values * width for i, width in nested)
        widths.append(flat + in_lists / max(1, group.num_rows))
    return widths


def _batch_bytes(batch: pa.RecordBatch, columns: Sequence[str]) -> int:
    return sum(_decoded_bytes(batch.column(name)) for name in columns)


def _decoded_bytes(column: pa.Array) -> int:
    """What the rows of a column take, dictionaries spelt out."""
    kind = column.type
    if not pa.types.is_dictionary(kind) or not _is_text(kind.value_type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    characters = pc.sum(lengths, min_count=0).as_py()
    offsets = 4 * len(column)
    return int(characters) + offsets


def _spelt_out(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch's columns in the types of the schema, from which strings differ that were read as
    dictionaries.
    """
    batch = batch.select(schema.names)
    for i, field in enumerate(schema):
        column = batch.column(i)
        if column.type != field.type:
            spelt_out = column.dictionary_decode().cast(field.type)
            batch = batch.set_column(i, field, spelt_out)
    return batch


def _fewer(budget: Budget, rows: int, lacking: int) -> DataError:
    return DataError(
        budget.where, expected=f"{rows} rows", seen=f"{rows - lacking}", next_step="fix the file"
    )


def _above(budget: Budget, rows: int, size: int) -> DataError:
    return DataError(
        budget.where,
        expected=f"at most {budget.most} bytes of decoded columns at once",
        seen=f"{rows} rows × {size // max(1, rows)} bytes",
        next_step=(
            "if the data is meant to be so: smaller shards (compute.shard_rows), or a larger "
            "decoded_bytes in the operator's config"
        ),
    )


@contextmanager
def readable(where: str) -> Iterator[None]:
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
