"""How the attributions of one input stand in the output table: a column for each feature, one for
the whole input, or the largest with their places.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from integrand.schemas.records import InputShape
from integrand.schemas.specs.output import Store, TopKStore
from integrand.schemas.tables import Role, feature_fields, list_field, tensor_field, top_fields

Values = NDArray[np.floating[Any]]
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Layout(ABC):
    """The output columns of one block: of one input, or of groups of its elements. Attributions are
    `[rows, *shape]`; NaN, or nothing, stands where columns are null.
    """

    shape: InputShape
    role: Role = "attr"

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

    def kept(self, values: Values, lengths: Lengths | None) -> tuple[Values, Lengths | None]:
        """What `read` gives back of attributions and lengths where they are there."""
        return values, lengths


class Features(Layout):
    """One float column for each named feature."""

    def fields(self, value: pa.DataType) -> list[pa.Field]:
        return feature_fields(self.shape.columns, value, self.role)

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
        field = tensor_field(self.shape.name, self.shape.shape, value, self.role)
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
        return [list_field(self.shape.name, value, self.role)]

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


AT_ONCE = 1 << 20
"""Numbers of which copies are there at once."""
WIDE = 256
"""Numbers of a row from which on those that cannot be among the largest are left out first."""


@dataclass(frozen=True)
class Largest(Layout):
    """Two columns of lists: the k largest attributions by absolute value, the first among equals
    first, and their places. All others are zeros when they are read.
    """

    k: int = 1

    def fields(self, value: pa.DataType) -> list[pa.Field]:
        shape = None if self.shape.varying else self.shape.shape
        features = self.shape.columns if self.shape.named else ()
        return top_fields(self.shape.name, shape, features, value)

    def columns(
        self, values: Values, lengths: Lengths | None, there: NDArray[np.bool_]
    ) -> list[pa.Array]:
        flat = values.reshape(len(values), -1)
        places, counts = self._places(flat, lengths)
        counts = np.where(there, counts, 0)
        chosen = _own(places, counts)
        kept = np.take_along_axis(flat, places, 1)[chosen]
        ends = np.cumsum(counts)
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        absent = pa.array(~there)
        columns = (pa.array(kept), pa.array(places[chosen].astype(np.int32)))
        return [pa.ListArray.from_arrays(offsets, own, mask=absent) for own in columns]

    def read(self, columns: Iterator[pa.Array]) -> tuple[Values, Lengths | None]:
        lists, indices = next(columns), next(columns)
        kept, places = to_numpy(lists.flatten()), to_numpy(indices.flatten())
        counts = np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)
        row = np.repeat(np.arange(len(lists)), counts)
        ends = _ends(places, row, len(lists)) if self.shape.varying else None
        width = self.shape.shape if ends is None else (int(ends.max(initial=0)),)
        found = np.zeros((len(lists), math.prod(width)), kept.dtype)
        found[row, places] = kept
        found[~to_numpy(lists.is_valid())] = np.nan
        return found.reshape(-1, *width), ends

    def kept(self, values: Values, lengths: Lengths | None) -> tuple[Values, Lengths | None]:
        flat = values.reshape(len(values), -1)
        places, counts = self._places(flat, lengths)
        chosen = _own(places, counts)
        row = np.repeat(np.arange(len(flat)), counts)
        found = np.zeros_like(flat)
        found[row, places[chosen]] = flat[row, places[chosen]]
        ends = None if lengths is None else _ends(places[chosen], row, len(flat))
        return found.reshape(values.shape), ends

    def _places(self, flat: Values, lengths: Lengths | None) -> tuple[NDArray[np.int64], Lengths]:
        """Of the largest in each row, [rows, k], and how many of these are the row's own."""
        rows, width = flat.shape
        own = np.full(rows, width) if lengths is None else lengths
        most = min(self.k, width)
        found = np.empty((rows, most), np.int64)
        at_once = max(1, AT_ONCE // max(1, width))
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            sizes = np.abs(flat[part])
            sizes[~_own(sizes, own[part]) | np.isnan(sizes)] = -1
            found[part] = _largest(sizes, most)
        return found, np.minimum(own, most)


def _largest(sizes: Values, most: int) -> NDArray[np.int64]:
    """Places of the largest in each row, in order, the first among equals first: [rows, most]."""
    if sizes.shape[1] < WIDE:
        return np.argsort(-sizes, axis=1, kind="stable")[:, :most]
    found = np.empty((len(sizes), most), np.int64)
    for row, own in enumerate(sizes):
        candidates = np.flatnonzero(own > 0)
        if len(candidates) < most:
            candidates = np.arange(len(own))
        least = np.partition(own[candidates], -most)[-most]
        candidates = candidates[own[candidates] >= least]
        order = np.argsort(-own[candidates], kind="stable")
        found[row] = candidates[order[:most]]
    return found


def _ends(places: NDArray[np.int64], row: NDArray[np.int64], rows: int) -> Lengths:
    """The place behind the last one of each row."""
    ends = np.zeros(rows, np.int64)
    np.maximum.at(ends, row, places + 1)
    return ends


def _own(values: NDArray[Any], lengths: Lengths) -> NDArray[np.bool_]:
    """Which elements of varying rows, `[rows, longest]`, are the row's own."""
    places = np.arange(values.shape[1])
    return np.asarray(places < lengths[:, None])


def layout_of(shape: InputShape, store: Store | None = None, role: Role = "attr") -> Layout:
    """The layout of a block of this shape, of which so much is stored: all, if nothing is said. The
    largest are those of attributions alone.
    """
    if isinstance(store, TopKStore) and role == "attr":
        return Largest(shape, k=store.k)
    if shape.named:
        return Features(shape, role)
    return Lists(shape, role) if shape.varying else Tensors(shape, role)


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """NaN stands where floats are null."""
    return np.asarray(column.to_numpy(zero_copy_only=False))
