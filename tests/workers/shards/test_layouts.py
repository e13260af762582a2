"""Attributions as columns, and read back from them, by layout."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.records import InputShape
from integrand.workers.shards.layouts import Features, Lists, Tensors, layout_of

THERE = np.array([True, False, True])
LENGTHS = np.array([2, 1, 3])
SHAPES = {
    Features: InputShape(name="f", columns=("a", "b", "c"), shape=(3,), named=True),
    Tensors: InputShape(name="image", columns=("p",), shape=(2, 2), named=False),
    Lists: InputShape(name="text", columns=("t",), shape=(3,), named=False, varying=True),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_columns_hold_what_is_there_and_give_it_back(kind: type) -> None:
    layout = layout_of(SHAPES[kind])
    assert type(layout) is kind
    values = np.random.default_rng(0).normal(size=(3, *layout.shape.shape)).astype(np.float32)
    lengths = LENGTHS if kind is Lists else None
    columns = layout.columns(values, lengths, THERE)
    assert [c.type for c in columns] == [f.type for f in layout.fields(pa.float32())]
    assert all(c.is_valid().to_pylist() == THERE.tolist() for c in columns)
    again, found = layout.read(chain(columns, [pa.array([1.0])]))
    assert (found is None) == (lengths is None)
    for row in np.flatnonzero(THERE):
        own = slice(None) if lengths is None else slice(lengths[row])
        np.testing.assert_array_equal(again[row][own], values[row][own])
    if found is not None:
        assert found.tolist() == [2, 0, 3]
