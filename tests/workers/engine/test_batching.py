"""The step batch is a pure function of model, shapes and memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from integrand.schemas.specs.accuracy import Adaptive
from integrand.workers.engine.batching import (
    KEPT_BYTES,
    KEPT_BYTES_PER_ELEMENT,
    LARGEST,
    SMALLEST,
    activation_bytes,
    live_rows,
    rows_of_length,
    step_batch_rows,
    targets_at_once,
)
from integrand.workers.engine.groups import TrackGroup
from integrand.workers.engine.loop import Loop
from integrand.workers.methods.grids import Sums
from integrand.workers.methods.phases import Stage
from integrand.workers.quadrature.smooth import FIRST
from tests.plugins.explaining import attribute_untried

sizes = st.integers(1, 1 << 40)


@given(sizes, sizes)
def test_batches_are_powers_of_two_within_the_memory(row_bytes: int, memory: int) -> None:
    rows = step_batch_rows(row_bytes, memory)
    assert rows.bit_count() == 1
    assert rows <= LARGEST
    assert rows == 1 or 2 * rows * row_bytes <= memory
    assert rows == step_batch_rows(row_bytes, memory)


@given(sizes, sizes, sizes)
def test_more_memory_or_smaller_rows_never_shrink_a_batch(
    row_bytes: int, memory: int, more: int
) -> None:
    assert step_batch_rows(row_bytes, memory + more) >= step_batch_rows(row_bytes, memory)
    assert step_batch_rows(row_bytes + more, memory) <= step_batch_rows(row_bytes, memory)


def test_rows_beyond_the_cache_gain_nothing() -> None:
    assert step_batch_rows(1 << 19, 1 << 40) == 32
    assert step_batch_rows(1 << 30, 1 << 40) == SMALLEST
    assert step_batch_rows(1, 1 << 40) == LARGEST


def test_memory_comes_before_even_batches() -> None:
    """Fewer rows than kernels like, where more would not fit; one row is always tried."""
    assert step_batch_rows(1 << 30, 8 << 30) == 4
    assert step_batch_rows(1 << 30, 1) == 1


NETS = {
    "narrow": (nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 2)), (2,)),
    "convolution": (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)),
        (1, 8, 8),
    ),
    "tokens": (
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu"),
        (10, 32),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("frozen", [True, False])
def test_activation_bytes_do_not_depend_on_the_rows_tried(name: str, frozen: bool) -> None:
    """Parameters do not count, not even those whose first extent happens to be the number
    of rows.
    """
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
    """Unless that would be fewer than SMALLEST, or than were planned."""
    for planned, length in itertools.product((8, 64, 200), (8, 16, 64, 200, 512)):
        found = rows_of_length(64, planned, length)
        assert found & (found - 1) == 0
        assert 1 <= found <= LARGEST
        for power in (1, 2):  # activations in proportion to the length, and to its square
            assert found == SMALLEST or found * length**power <= 64 * planned**power
    assert rows_of_length(64, 32, 32) == 64
    assert rows_of_length(4, 32, 512) == 4


# --- several targets ---------------------------------------------------------------------------


def test_targets_at_once_of_known_sizes() -> None:
    """Rows of a batch twice over at seven nodes each, 63 gradients and 18 sums, float64 at most, of
    each target and row.
    """
    assert live_rows(512, 7) == 149
    assert targets_at_once(512, 96) == (256 << 20) // (149 * 96 * 648) == 28
    assert targets_at_once(16, 224 * 224 * 3) == 1
    assert targets_at_once(512, 1) > 1000


@given(st.integers(1, LARGEST), st.integers(1, 1 << 24))
def test_what_is_kept_of_several_targets_is_bounded(batch_rows: int, elements: int) -> None:
    """More than one only as long as all of them fit; one is always explained."""
    found = targets_at_once(batch_rows, elements)
    kept = live_rows(batch_rows, FIRST) * elements * KEPT_BYTES_PER_ELEMENT
    assert found == 1 or found * kept <= KEPT_BYTES
    assert (found + 1) * kept > KEPT_BYTES


@given(st.integers(1, LARGEST), st.integers(1, 1 << 24), st.integers(0, 1 << 20))
def test_wider_rows_and_larger_batches_never_take_more_targets(
    batch_rows: int, elements: int, more: int
) -> None:
    assert targets_at_once(batch_rows, elements + more) <= targets_at_once(batch_rows, elements)
    assert targets_at_once(batch_rows + more, elements) <= targets_at_once(batch_rows, elements)


@pytest.mark.parametrize(
    ("batch_rows", "nodes", "expected"),
    [(1, 7, 3), (7, 7, 3), (8, 7, 5), (512, 7, 149), (64, 100, 3)],
)
def test_live_rows(batch_rows: int, nodes: int, expected: int) -> None:
    """Twice the rows whose first nodes fill a batch, and one more."""
    assert live_rows(batch_rows, nodes) == expected


@pytest.mark.parametrize("targets", [1, 3])
def test_what_a_call_keeps_of_live_rows_is_as_much_as_planned(
    targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and sums under way at any one time, of rows that go as far as they can."""
    batch_rows, elements = 64, 6000
    kept: list[int] = []
    real = Loop._evaluate

    def watched(loop: Loop[Stage], takes: Any) -> None:
        groups = {id(group): group for group in loop.queue}
        groups.update({id(take.group): take.group for take in takes})
        held = [_held_bytes(group) for group in groups.values()]
        kept.append(sum(held))
        real(loop, takes)

    monkeypatch.setattr(Loop, "_evaluate", watched)
    x = torch.randn(40, elements, generator=torch.Generator().manual_seed(0))
    attribute_untried(
        lambda v: ((v * 9) % 2 - 1).abs() @ torch.ones(elements, targets),
        x,
        target=list(range(targets)),
        batch_rows=batch_rows,
        accuracy=Adaptive(tolerance=1e-2, max_evaluations=200),
    )
    planned = live_rows(batch_rows, FIRST) * targets * elements * KEPT_BYTES_PER_ELEMENT
    assert planned / 10 < max(kept) <= planned


def _held_bytes(group: TrackGroup[Stage]) -> int:
    tensors = [group._gradients]
    kept = group.stage.kept
    if kept is not None:
        tensors.append(kept.sums if isinstance(kept, Sums) else kept.gradients)
    return sum(tensor.nbytes for tensor in tensors)
