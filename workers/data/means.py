"""Dataset means for `MeanBaseline`, the same for any sharding: one partial sum per row group,
folded in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from integrand.schemas.errors import DataError, IntegrityError
from integrand.schemas.ids import NUMERICS_VERSION, digest_json
from integrand.schemas.records import InputShape, MeansFile, Slice, SourceFile
from integrand.schemas.specs.inputs import IdsInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.uris import Uri
from integrand.workers.data.columns import declared_columns
from integrand.workers.data.reading import read_slices
from integrand.workers.data.tensors import Rows, length_buckets, to_rows
from integrand.workers.storage.store import Store

_BLOCK_ROWS = 1 << 16
_summing = np.errstate(over="ignore", invalid="ignore")
"""Sums beyond float64 are told by `check_means`."""


@dataclass(frozen=True, eq=False)
class Partial:
    """Clean rows of one row group and, per input, their sum in model units: `[*shape]` float64;
    zeros for ids.
    """

    file: int
    row_group: int
    count: int
    sums: tuple[np.ndarray, ...]


@_summing
def partial_sums(
    store: Store,
    files: Sequence[SourceFile],
    file: int,
    row_group: int,
    spec: AttributeSpec,
    shapes: tuple[InputShape, ...],
    outputs: int | None = None,
) -> Partial:
    """The sums of one row group. A row that any input, target or argument makes bad does not count.

    outputs  how many the model has, where a column names the target: a row that names none of them
             is bad
    """
    first = sum(files[file].row_groups[:row_group])
    last = first + files[file].row_groups[row_group]
    count, sums = 0, [np.zeros(s.shape, np.float64) for s in shapes]
    for start in range(first, last, _BLOCK_ROWS):
        block = Slice(file=file, start=start, stop=min(last, start + _BLOCK_ROWS))
        table = read_slices(store, files, [block], declared_columns(spec))
        for bucket in length_buckets(table, spec, shapes):
            rows = to_rows(bucket.of(table), spec, bucket.shapes)
            kept = _kept(rows, outputs)
            count += int(kept.sum())
            for total, values, one in zip(sums, rows.inputs, spec.inputs, strict=True):
                if not isinstance(one, IdsInput):
                    values[~kept] = 0  # as all bad rows are: a sum of fewer would round otherwise
                    total += values.numpy().sum(axis=0, dtype=np.float64)
    return Partial(file, row_group, count, tuple(sums))


def _kept(rows: Rows, outputs: int | None) -> np.ndarray:
    if rows.target is None or outputs is None:
        return rows.clean
    return rows.clean & (rows.target < outputs).numpy()


@_summing
def mean_of_sums(partials: Sequence[Partial]) -> tuple[np.ndarray, ...]:
    """Mean of each input, `[*shape]` float64, added up in (file, row group) order whatever order
    they came in.

    Raises DataError if no row is clean.
    """
    ordered = sorted(partials, key=lambda p: (p.file, p.row_group))
    count = sum(p.count for p in ordered)
    if not count:
        raise DataError(
            "mean baseline",
            expected="at least one clean row",
            seen="none in the whole source",
            next_step="fix the input columns, or choose another baseline",
        )
    totals = [np.zeros_like(values) for values in ordered[0].sums]
    for partial in ordered:
        for total, values in zip(totals, partial.sums, strict=True):
            total += values
    return tuple(total / count for total in totals)


def check_means(means: Sequence[np.ndarray], shapes: Sequence[InputShape]) -> None:
    """DataError with the column, if the clean values of one are too large for their sum."""
    for values, shape in zip(means, shapes, strict=True):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            column = shape.columns[int(wrong[0]) if shape.named else 0]
            raise DataError(
                f"mean baseline, column `{column}`",
                expected="values whose sum float64 can hold",
                seen=f"a mean of {values.flat[wrong[0]]}",
                next_step="fix the largest values, scale them, or choose another baseline",
            )


def means_uri(
    root: Uri, files: Sequence[SourceFile], spec: AttributeSpec, outputs: int | None = None
) -> Uri:
    """Where the means of these files lie under the output root: named by all that can
    change them.
    """
    parts = spec.model_dump(mode="json", include={"inputs", "forward_args", "target", "baseline"})
    parts |= {} if outputs is None else {"outputs": outputs}
    digest = digest_json(
        [
            NUMERICS_VERSION,
            spec.compute.storage,
            parts,
            [[f.path, f.first_row, f.size, f.fingerprint] for f in files],
        ]
    )
    return root.child("_ingest", digest[:32], f"mean-{digest[:32]}.safetensors")


def write_means(store: Store, uri: Uri, means: Sequence[np.ndarray]) -> MeansFile:
    """Store the means once. IntegrityError if other means are there already."""
    data = save({f"{i:04d}": np.ascontiguousarray(m) for i, m in enumerate(means)})
    digest = hashlib.sha256(data).hexdigest()
    with suppress(FileExistsError):
        store.create(uri, data)
    read_means(store, uri, digest)
    return MeansFile(uri=str(uri), sha256=digest)


def read_means(store: Store, uri: Uri, sha256: str) -> tuple[np.ndarray, ...]:
    """The means as written, one array per input. IntegrityError if the object is gone or not the
    one planned.
    """
    try:
        data = store.read(uri)
    except FileNotFoundError:
        data = b""
    seen = hashlib.sha256(data).hexdigest()
    if seen != sha256:
        raise IntegrityError(
            str(uri),
            expected=f"dataset means with sha256 {sha256}",
            seen=seen if data else "no object",
            next_step="delete the object if it exists, and plan again",
        )
    return tuple(values for _, values in sorted(load(data).items()))
