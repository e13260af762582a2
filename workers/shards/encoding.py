"""From a shard's results to the bytes of its one Parquet object, its footer included."""

from __future__ import annotations

import hashlib
import io
import math
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from integrand.schemas.ids import CHECKSUM_KEY, FOOTER_KEY, digest_rows
from integrand.schemas.records import (
    InputShape,
    Plan,
    Quantiles,
    Shard,
    ShardFooter,
    histogram_quantiles,
)
from integrand.schemas.tables import (
    COLUMNS,
    WITHOUT_ATTRIBUTION,
    RowStatus,
    feature_fields,
    list_field,
    output_schema,
    tensor_field,
)
from integrand.workers.data.values import plain_values

ROW_GROUP_BYTES = 32 << 20
ARROW_TYPES = {"float32": pa.float32(), "float64": pa.float64()}
Floats = NDArray[np.float64]
NUMBERS = ("f_input", "f_baseline", "gap", "error_estimate", "evaluations")


@dataclass(frozen=True, eq=False)
class Results:
    """Everything known of a shard's output rows, in order; float arrays hold NaN where there is no
    value.

    `lengths` tells, for inputs of varying length, how much of a row's attributions is the row's
    own; None for others.
    """

    row_id: pa.Array
    target: pa.Array
    status: list[RowStatus]
    reason: list[str | None]
    f_input: Floats
    f_baseline: Floats
    gap: Floats
    error_estimate: Floats
    evaluations: NDArray[np.int32]
    attributions: tuple[NDArray[np.floating], ...]
    lengths: tuple[NDArray[np.int64] | None, ...] = ()
    padded: int = 0
    duplicates: int = 0
    halved: int | None = None

    @property
    def attributed(self) -> NDArray[np.bool_]:
        return np.array([s not in WITHOUT_ATTRIBUTION for s in self.status], bool)

    def values(self, row: int) -> list[NDArray[np.floating]]:
        """Each input's attributions of one row, flat and without padding."""
        flat = [a[row].reshape(-1) for a in self.attributions]
        return [a if n is None else a[: n[row]] for a, n in zip_longest(flat, self.lengths)]


def merge(parts: Sequence[tuple[NDArray[np.int64], Results]]) -> Results:
    """Results of parts of a shard as one, given the numbers of each part's output rows."""
    if len(parts) == 1:
        return parts[0][1]
    found = [results for _, results in parts]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))

    def ordered(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(r, name) for r in found])[order]

    status, reason = (
        [value for r in found for value in getattr(r, name)] for name in ("status", "reason")
    )
    return Results(
        pa.concat_arrays([r.row_id for r in found]).take(order),
        pa.concat_arrays([r.target for r in found]).take(order),
        [status[i] for i in order],
        [reason[i] for i in order],
        *map(ordered, NUMBERS),
        tuple(
            _widened(list(same))[order]
            for same in zip(*(r.attributions for r in found), strict=True)
        ),
        tuple(
            None if same[0] is None else np.concatenate(same)[order]
            for same in zip(*(r.lengths for r in found), strict=True)
        ),
        sum(r.padded for r in found),
        sum(r.duplicates for r in found),
        min((r.halved for r in found if r.halved is not None), default=None),
    )


def _widened(parts: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    """The rows of all parts, zeros behind those of shorter ones."""
    widest = tuple(np.max([p.shape[1:] for p in parts], axis=0))
    made = np.zeros((sum(len(p) for p in parts), *widest), parts[0].dtype)
    start = 0
    for part in parts:
        made[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return made


def attribution_fields(plan: Plan) -> list[pa.Field]:
    """Output fields of every input, in order."""
    value = ARROW_TYPES[plan.numerics.precision]
    fields: list[pa.Field] = []
    for shape in plan.inputs:
        if shape.named:
            fields += feature_fields(shape.columns, value)
        else:
            fields.append(
                list_field(shape.name, value)
                if shape.varying
                else tensor_field(shape.name, shape.shape, value)
            )
    return fields


def results_table(plan: Plan, results: Results) -> pa.Table:
    """The output table of a shard, columns as documented in `schemas.tables`."""
    there = results.attributed
    total = np.sum(
        [_sums(a, n) for a, n in zip_longest(results.attributions, results.lengths)], axis=0
    )
    columns = [
        results.row_id,
        results.target,
        pa.array([str(s) for s in results.status]),
        pa.array(results.reason, pa.string()),
        _nullable(results.f_input),
        _nullable(results.f_baseline),
        _nullable(total),
        _nullable(results.gap),
        _nullable(results.error_estimate),
        pa.array(results.evaluations, pa.int32()),
    ]
    for shape, values, lengths in zip_longest(plan.inputs, results.attributions, results.lengths):
        if shape.named:
            columns += _features(values, there)
        else:
            columns.append(
                _tensors(values, there) if lengths is None else _lists(values, lengths, there)
            )
    schema = output_schema(results.row_id.type, results.target.type, attribution_fields(plan))
    return pa.Table.from_arrays(columns, schema=schema)


def _sums(values: NDArray[np.floating], lengths: NDArray[np.int64] | None) -> Floats:
    """Σ attributions of each row, in float64. Of varying rows the exact sum: numpy's rounds by the
    width of all.
    """
    if lengths is None:
        return np.asarray(values.reshape(len(values), -1).astype(np.float64).sum(1))
    return np.array(
        [math.fsum(row[:n]) if n else np.nan for row, n in zip(values, lengths, strict=True)],
        np.float64,
    )


def _nullable(values: Floats) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _features(values: NDArray[np.floating], there: NDArray[np.bool_]) -> list[pa.Array]:
    return [
        pa.array(np.ascontiguousarray(values[:, i]), mask=~there) for i in range(values.shape[1])
    ]


def _tensors(values: NDArray[np.floating], there: NDArray[np.bool_]) -> pa.Array:
    flat = values.reshape(len(there), -1)
    filled = np.where(there[:, None], flat, 0).astype(flat.dtype)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(filled.reshape(-1)), flat.shape[1], mask=pa.array(~there)
    )


def _lists(
    values: NDArray[np.floating], lengths: NDArray[np.int64], there: NDArray[np.bool_]
) -> pa.Array:
    kept = np.where(there, lengths, 0)
    flat = values[np.arange(values.shape[1]) < kept[:, None]]
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=pa.array(~there))


def results_of(plan: Plan, table: pa.Table) -> Results:
    """The results that `results_table` made this table of, as far as it holds them; the table has
    its schema.
    """
    columns = iter([column.combine_chunks() for column in table.columns])
    row_id, target, status, reason, f_input, f_baseline, _, *others = (
        next(columns) for _ in COLUMNS
    )
    values = [_values(shape, columns) for shape in plan.inputs]
    return Results(
        row_id,
        target,
        [RowStatus(s) for s in status.to_pylist()],
        reason.to_pylist(),
        *map(_numpy, (f_input, f_baseline, *others)),
        tuple(v for v, _ in values),
        tuple(n for _, n in values),
    )


def _values(
    shape: InputShape, columns: Iterator[pa.Array]
) -> tuple[NDArray[np.floating], NDArray[np.int64] | None]:
    """The attributions of one input, which takes its columns, and their lengths; NaN or nothing
    where they are null.
    """
    if shape.named:
        return np.stack([_numpy(next(columns)) for _ in shape.columns], 1), None
    lists = next(columns)
    there, flat = _numpy(lists.is_valid()), _numpy(lists.flatten())
    if not shape.varying:
        full = np.full((len(lists), *shape.shape), np.nan, flat.dtype)
        full[there] = flat.reshape(-1, *shape.shape)
        return full, None
    lengths = np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)
    padded = np.zeros((len(lists), int(lengths.max(initial=0))), flat.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return padded, lengths


def _numpy(column: pa.Array) -> NDArray[Any]:
    """NaN stands where floats are null."""
    return np.asarray(column.to_numpy(zero_copy_only=False))


def shard_digest(results: Results) -> str:
    """Logical digest of the rows: identity, target, status and every number, none of the timings or
    reasons.
    """
    numbers = np.stack(
        [results.f_input, results.f_baseline, results.gap, results.error_estimate], 1
    )
    numbers[np.isnan(numbers)] = np.nan  # which NaN it is, a stored null does not tell
    names = [repr(v).encode() for v in plain_values(results.row_id)]
    targets = [repr(v).encode() for v in results.target.to_pylist()]
    there = results.attributed

    def row(i: int) -> bytes:
        values = b"".join(a.tobytes() for a in results.values(i)) if there[i] else b""
        head = (
            names[i],
            targets[i],
            str(results.status[i]).encode(),
            str(results.evaluations[i]).encode(),
        )
        return b"\0".join(head) + b"\0" + numbers[i].tobytes() + values

    return digest_rows(row(i) for i in range(len(names)))


def shard_footer(
    plan: Plan,
    plan_sha256: str,
    shard: Shard,
    results: Results,
    *,
    seconds: dict[str, float],
    versions: dict[str, str],
    same_build: bool,
) -> ShardFooter:
    """What the object says of itself; folded into the manifest later."""
    gap, error = np.abs(results.gap[results.attributed]), results.error_estimate[results.attributed]
    error = error[~np.isnan(error)]
    gap_histogram, error_histogram = histogram(gap), histogram(error)
    lowered = (
        [f"halved its step batch to {results.halved} rows on out-of-memory"]
        if results.halved
        else []
    )
    lowered += [] if same_build else [f"was planned with torch {plan.numerics.torch_build}"]
    return ShardFooter(
        run_id=plan.run_id,
        shard=shard.id,
        plan_sha256=plan_sha256,
        rows_in=shard.rows,
        rows_out=len(results.status),
        statuses=dict(sorted(Counter(map(str, results.status)).items())),
        gap=_quantiles(gap_histogram, gap),
        error=_quantiles(error_histogram, error),
        gap_histogram=gap_histogram,
        error_histogram=error_histogram,
        evaluations=int(results.evaluations.sum()),
        padded_evaluations=results.padded,
        duplicates=results.duplicates,
        digest=shard_digest(results),
        determinism="tolerance" if lowered else "bitwise",
        lowered="; ".join(lowered) or None,
        batch_rows=results.halved or plan.numerics.batch_rows,
        seconds=seconds,
        node=socket.gethostname(),
        versions=versions,
    )


def histogram(values: Floats) -> dict[str, int]:
    """Rows by tenth of a decimal exponent, rounded up: `-31` counts values ≤ 10**-3.1; zeros go to
    `-400`.
    """
    with np.errstate(divide="ignore"):
        exponents = np.ceil(10 * np.log10(np.abs(values)))
    counts = Counter(int(max(-400, min(400, e))) for e in exponents.tolist())
    return {str(k): counts[k] for k in sorted(counts)}


def _quantiles(counts: dict[str, int], values: Floats) -> Quantiles:
    largest = float(values.max()) if len(values) and math.isfinite(values.max()) else None
    return histogram_quantiles(counts, largest)


def encode(table: pa.Table, footer: ShardFooter) -> bytes:
    """Parquet bytes: page checksums on, data pages the same for the same rows; what varies lies in
    the footer.
    """
    width = max(1, table.nbytes // max(1, table.num_rows))
    stored = footer.model_dump_json()
    return write_parquet(
        table,
        {FOOTER_KEY: stored, CHECKSUM_KEY: checksum(stored.encode())},
        max(1024, ROW_GROUP_BYTES // width),
    )


def write_parquet(table: pa.Table, metadata: dict[str, str], group_rows: int) -> bytes:
    """Parquet bytes, the same for the same rows, metadata and rows of a row group where pyarrow is
    the same.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=["status", "reason"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=group_rows)
        writer.add_key_value_metadata(metadata)
    return sink.getvalue()


def checksum(footer: bytes) -> str:
    """sha256 of a footer's JSON, which stands beside it: page checksums do not cover it."""
    return hashlib.sha256(footer).hexdigest()


def target_array(targets: NDArray[np.int64] | None, present: NDArray[np.bool_]) -> pa.Array:
    """The `target` column: int32; null for scalar outputs and rows without one; `1,0` for tensor
    outputs.
    """
    rows = len(present)
    if targets is None:
        return pa.nulls(rows, pa.int32())
    if targets.shape[1] > 1:
        texts = [",".join(map(str, t)) for t in targets.tolist()]
        return pa.array(texts, pa.string(), mask=~present)
    return pa.array(targets[:, 0], pa.int32(), mask=~present)
