"""The step batch is a pure function of model, shapes and memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from integrand.workers.batching import LARGEST, activation_bytes, rows_of_length, step_batch_rows

sizes = st.integers(1, 1 << 40)


@given(sizes, sizes)
def test_batches_are_powers_of_two_within_the_memory(row_bytes: int, memory: int) -> None:
    rows = step_batch_rows(row_bytes, memory)
    assert rows.bit_count() == 1
    assert rows <= LARGEST
    assert rows == 1 or 2 * rows * row_bytes <= memory
    assert rows == step_batch_rows(row_bytes, memory)


@given(sizes, sizes, sizes)
def test_more_memory_or_smaller_rows_never_shrink_a_batch(row_bytes: int, memory: int, more: int) -> None:
    assert step_batch_rows(row_bytes, memory + more) >= step_batch_rows(row_bytes, memory)
    assert step_batch_rows(row_bytes + more, memory) <= step_batch_rows(row_bytes, memory)


def test_rows_beyond_the_cache_gain_nothing() -> None:
    assert step_batch_rows(1 << 20, 1 << 40) == 16
    assert step_batch_rows(1 << 30, 1 << 40) == 8
    assert step_batch_rows(1, 1 << 40) == LARGEST


NETS = {
    "narrow": (nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 2)), (2,)),
    "convolution": (nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)), (1, 8, 8)),
    "tokens": (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu"), (10, 32)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("frozen", [True, False])
def test_activation_bytes_do_not_depend_on_the_rows_tried(name: str, frozen: bool) -> None:
    """Parameters do not count, not even those whose first extent happens to be the number of rows."""
    net, shape = NETS[name]
    net = net.eval().requires_grad_(not frozen)
    found = {activation_bytes(net, [torch.randn(rows, *shape)], []) for rows in (1, 2, 3, 32, 512)}
    assert max(found) <= 1.05 * min(found)


def test_activation_bytes_of_a_known_chain() -> None:
    """tanh keeps its output: 100 float32; the input counts twice, as point and as gradient."""
    assert activation_bytes(torch.tanh, [torch.randn(4, 100)], []) == 400 + 2 * 400


def test_activations_seen_as_another_shape_count() -> None:
    """A linear layer on [rows, tokens, width] saves [rows · tokens, width]."""
    layer = nn.Linear(32, 32)
    assert activation_bytes(layer, [torch.randn(4, 10, 32)], []) >= 10 * 32 * 4


def test_longer_rows_never_take_more_memory_than_planned() -> None:
    for planned, length in itertools.product((8, 64, 200), (8, 16, 64, 200, 512)):
        found = rows_of_length(64, planned, length)
        assert found & (found - 1) == 0
        assert 1 <= found <= 512
        for power in (1, 2):  # activations in proportion to the length, and to its square
            assert found == 1 or found * length**power <= 64 * planned**power
    assert rows_of_length(64, 32, 32) == 64
