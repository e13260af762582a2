"""What became of rows, column by column: made empty, put in its places, taken apart and joined the
same way for every column.

Imports no torch: results are read where none is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from integrand.schemas.tables import OPTIONAL_TYPES, WITHOUT_ATTRIBUTION, RowStatus

Floats = NDArray[np.float64]
Index = slice | NDArray[np.integer] | tuple[NDArray[np.integer], ...]
_FILL = "fill"


def _filled(value: object) -> dict[str, object]:
    """Metadata of a column: what stands in it before anything is known, in its dtype."""
    return {_FILL: value}


@dataclass(frozen=True, eq=False, kw_only=True)
class RowResults:
    """Columns over the same rows, `[rows]`, or `[rows, targets]` for targets side by side.

    A diagnostic of every run is one more field with a fill; one of some runs is an optional column,
    listed in `schemas.tables`. Nothing else here names columns.

    f_input         f(x), float64, in units of f like the next two
    f_baseline      f(x')
    gap             Σ attributions − (f(x) − f(x')), signed
    error_estimate  estimated ‖a − a*‖₁ / ‖a‖₁; NaN where the rule gives none
    evaluations     gradient evaluations of the row as if alone
    status, reason  what became of it, a RowStatus, and why if it is not ok, a string or None
    attributions    one array for each input, `[rows, *shape]` or `[rows, targets, *shape]`; NaN
                    where the row has none
    optional        columns that some runs have, by name
    """

    f_input: Floats = field(metadata=_filled(np.float64("nan")))
    f_baseline: Floats = field(metadata=_filled(np.float64("nan")))
    gap: Floats = field(metadata=_filled(np.float64("nan")))
    error_estimate: Floats = field(metadata=_filled(np.float64("nan")))
    evaluations: NDArray[np.int32] = field(metadata=_filled(np.int32(0)))
    status: NDArray[np.object_] = field(metadata=_filled(RowStatus.bad_input))
    reason: NDArray[np.object_] = field(metadata=_filled(None))
    attributions: tuple[NDArray[np.floating[Any]], ...]
    optional: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        inputs: Sequence[tuple[int, ...]],
        dtypes: Sequence[DTypeLike],
        optional: Iterable[str] = (),
    ) -> RowResults:
        """Rows of which nothing is known: `bad_input` without a reason. `inputs` are the shapes of
        one row of each input, `optional` the names of columns.
        """
        values = (
            np.full((*shape, *one), np.nan, dtype)
            for one, dtype in zip(inputs, dtypes, strict=True)
        )
        columns = {name: _column(shape, fill) for name, fill in FILLS.items()}
        behind = {name: _column(shape, OPTIONAL_FILLS[name]) for name in optional}
        return cls(attributions=tuple(values), optional=MappingProxyType(behind), **columns)

    @property
    def attributed(self) -> NDArray[np.bool_]:
        """Which rows have attributions."""
        there = [status not in WITHOUT_ATTRIBUTION for status in self.status.flat]
        flags = np.array(there, bool)
        return flags.reshape(self.status.shape)

    def take(self, index: Index) -> RowResults:
        """Some of the rows, in the order of `index`."""
        return _each([self], lambda same: same[0][index])

    def put(self, at: Index, other: RowResults) -> None:
        """Write all columns of `other` into the rows `at`; an optional one that it lacks stays as
        it is.
        """
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[at] = theirs
        for name, column in self.optional.items():
            if name in other.optional:
                column[at] = other.optional[name]

    def flat(self) -> RowResults:
        """`[rows, targets]` as `[rows × targets]`, target by target."""
        leading = self.status.ndim

        def below(same: list[NDArray[Any]]) -> NDArray[Any]:
            column = same[0]
            return column.reshape(self.status.size, *column.shape[leading:])

        return _each([self], below)

    @classmethod
    def concat(cls, parts: Sequence[RowResults], axis: int = 0) -> RowResults:
        """Rows below each other, or with axis 1 the targets of the same rows side by side. Shorter
        attributions get zeros behind them, optional columns that a part lacks their fill.
        """
        if len(parts) == 1:
            return parts[0]
        return _each(parts, lambda same: _joined(same, axis))

    def _arrays(self) -> list[NDArray[Any]]:
        columns = [getattr(self, name) for name in FILLS]
        return [*columns, *self.attributions]


FILLS = {f.name: f.metadata[_FILL] for f in fields(RowResults) if _FILL in f.metadata}
NUMBERS = tuple(name for name, fill in FILLS.items() if isinstance(fill, np.number))
"""The columns that hold one number a row."""


def _fill_of(kind: pa.DataType) -> object:
    """What stands in a column of this type before anything is known."""
    if pa.types.is_floating(kind):
        return kind.to_pandas_dtype()("nan")
    return kind.to_pandas_dtype()(0) if pa.types.is_integer(kind) else None


OPTIONAL_FILLS = {name: _fill_of(kind) for name, kind in OPTIONAL_TYPES.items()}


def _column(shape: tuple[int, ...], fill: object) -> NDArray[Any]:
    dtype: DTypeLike = fill.dtype if isinstance(fill, np.generic) else object
    made: NDArray[Any] = np.empty(shape, dtype)
    made.fill(fill)  # np.full would make a status a plain string
    return made


def _each(
    parts: Sequence[RowResults], make: Callable[[list[NDArray[Any]]], NDArray[Any]]
) -> RowResults:
    """One array for each column, made of that column of all parts."""
    columns = {}
    for name in FILLS:
        columns[name] = make([getattr(part, name) for part in parts])
    inputs = zip(*(part.attributions for part in parts), strict=True)
    attributions = [make(list(same)) for same in inputs]
    optional = {name: make(_optional(parts, name)) for name in _names(parts)}
    return RowResults(
        attributions=tuple(attributions), optional=MappingProxyType(optional), **columns
    )


def _names(parts: Sequence[RowResults]) -> list[str]:
    """Of the optional columns that any part has, sorted."""
    return sorted({name for part in parts for name in part.optional})


def _optional(parts: Sequence[RowResults], name: str) -> list[NDArray[Any]]:
    """One optional column of all parts."""
    missing = OPTIONAL_FILLS[name]
    return [
        part.optional[name] if name in part.optional else _column(part.status.shape, missing)
        for part in parts
    ]


def _joined(arrays: list[NDArray[Any]], axis: int) -> NDArray[Any]:
    shape = np.max([array.shape for array in arrays], axis=0)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    made = np.zeros(shape, arrays[0].dtype)
    end = 0
    for array in arrays:
        place = [slice(size) for size in array.shape]
        start, end = end, end + array.shape[axis]
        place[axis] = slice(start, end)
        made[tuple(place)] = array
    return made
