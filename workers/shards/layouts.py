"""How the attributions of one input stand in the output table: a column for each feature, or one
for the whole input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.records import InputShape
from integrand.schemas.tables import feature_fields, list_field, tensor_field

Values = NDArray[np.floating[Any]]
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Layout(ABC):
    """The output columns of one input. Attributions are `[rows, *shape]`; NaN, or nothing, stands
    where columns are null.
    """

    shape: InputShape

    @abstractmethod
    def fields(self, value: pa.DataType) -> list[pa.Field]:
        """The columns, for attributions of this type."""

    @abstractmethod
    def columns(
        self, values: Values, lengths: Lengths | None, there: NDArray[np.bool_]
    ) -> list[pa.Array]:
        """The columns of attributions, null but `there`. `lengths` is how much of each row is the
        row's own, None where that is all of it.
        """

    @abstractmethod
    def read(self, columns: Iterator[pa.Array]) -> tuple[Values, Lengths | None]:
        """Attributions and lengths, of the columns that this input takes."""


class Features(Layout):
    """One float column for each named feature."""

    def fields(self, value: pa.DataType) -> list[pa.Field]:
        return feature_fields(self.shape.columns, value)

    def columns(
        self, values: Values, lengths: Lengths | None, there: NDArray[np.bool_]
    ) -> list[pa.Array]:
        absent = ~there
        by_feature = np.ascontiguousarray(values.T)
        return [pa.array(feature, mask=absent) for feature in by_feature]

    def read(self, columns: Iterator[pa.Array]) -> tuple[Values, Lengths | None]:
        features = [to_numpy(next(columns)) for _ in self.shape.columns]
        return np.stack(features, 1), None


class Tensors(Layout):
    """One column of fixed-size lists."""

    def fields(self, value: pa.DataType) -> list[pa.Field]:
        field = tensor_field(self.shape.name, self.shape.shape, value)
        return [field]

    def columns(
        self, values: Values, lengths: Lengths | None, there: NDArray[np.bool_]
    ) -> list[pa.Array]:
        flat = values.reshape(len(there), -1)
        filled = np.where(there[:, None], flat, 0)
        numbers = filled.astype(flat.dtype).reshape(-1)
        absent = pa.array(~there)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers), flat.shape[1], mask=absent)
        return [lists]

    def read(self, columns: Iterator[pa.Array]) -> tuple[Values, Lengths | None]:
        lists = next(columns)
        flat = to_numpy(lists.flatten())
        shape = self.shape.shape
        full = np.full((len(lists), *shape), np.nan, flat.dtype)
        there = to_numpy(lists.is_valid())
        full[there] = flat.reshape(-1, *shape)
        return full, None


class Lists(Layout):
    """One column of lists, each as long as its row."""

    def fields(self, value: pa.DataType) -> list[pa.Field]:
        return [list_field(self.shape.name, value)]

    def columns(
        self, values: Values, lengths: Lengths | None, there: NDArray[np.bool_]
    ) -> list[pa.Array]:
        assert lengths is not None
        kept = np.where(there, lengths, 0)
        flat = values[_own(values, kept)]
        ends = np.cumsum(kept)
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        absent = pa.array(~there)
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=absent)
        return [lists]

    def read(self, columns: Iterator[pa.Array]) -> tuple[Values, Lengths | None]:
        lists = next(columns)
        flat = to_numpy(lists.flatten())
        known = pc.list_value_length(lists).fill_null(0)
        lengths = np.asarray(known, np.int64)
        longest = int(lengths.max(initial=0))
        padded = np.zeros((len(lists), longest), flat.dtype)
        padded[_own(padded, lengths)] = flat
        return padded, lengths


def _own(values: Values, lengths: Lengths) -> NDArray[np.bool_]:
    """Which elements of varying rows, `[rows, longest]`, are the row's own."""
    places = np.arange(values.shape[1])
    return np.asarray(places < lengths[:, None])


def layout_of(shape: InputShape) -> Layout:
    """The layout of an input of this shape."""
    if shape.named:
        return Features(shape)
    return Lists(shape) if shape.varying else Tensors(shape)


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """NaN stands where floats are null."""
    return np.asarray(column.to_numpy(zero_copy_only=False))
