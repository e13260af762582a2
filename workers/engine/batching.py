"""How many rows a step batch takes: a pure function of the model, the shapes and a memory
budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from integrand.workers.models.outputs import Forward, on_copies
from integrand.workers.quadrature.kinked import COLUMNS
from integrand.workers.quadrature.smooth import FIRST

CACHE_BYTES = 16 << 20
"""Saved activations of a step batch beyond this size leave the CPU's caches and gain nothing more.
"""
EVEN = 16
"""Kernels treat the last rows of batches that are no multiple of so many differently, and with them
their last bits.
"""
LARGEST, SMALLEST = 1024, EVEN
LEAST = 32
"""Rows below which a smaller step batch saves little, and rows are more likely to lose their bits.
"""
KEPT_BYTES = 256 << 20
"""What a worker keeps of its live rows on a CPU, if it explains several targets at once."""
KEPT_BYTES_PER_ELEMENT = 63 * 8 + COLUMNS * 8
"""63 gradients, in float64 at most, and the sums of a grid."""


def live_rows(batch_rows: int, nodes: int) -> int:
    """Rows that may be under way: one step batch of first nodes, and another one while the last of
    these is judged.
    """
    at_once = -(-batch_rows // nodes)
    return 2 * at_once + 1


def activation_bytes(
    forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor]
) -> int:
    """Bytes that autograd keeps for the backward pass of one more row, counted without any timing.

    The rows given are tried once and twice over: parameters and other tensors without rows cancel
    out.
    """
    once = _kept(forward, inputs, forward_args, 1)
    twice = _kept(forward, inputs, forward_args, 2)
    own = sum(x.numel() * x.element_size() for x in inputs)
    rows = inputs[0].shape[0]
    return max(1, (twice - once + 2 * own) // rows)


def _kept(
    forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor], times: int
) -> int:
    """Bytes of all tensors that a forward pass over the rows, `times` over, saves; views of one
    storage count once.
    """
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        out = on_copies(
            forward,
            *[torch.cat([x.detach()] * times).requires_grad_() for x in inputs],
            *[torch.cat([a] * times) for a in forward_args],
        )
    del out  # alive until here, so that no storage was freed and its address counted twice
    return sum(kept.values())


def step_batch_rows(row_bytes: int, memory: int) -> int:
    """Rows of a step batch, a power of two: as many as stay in cache, at least 16, never above the
    memory budget.
    """
    fits = max(1, memory // (2 * row_bytes))
    cached = max(SMALLEST, CACHE_BYTES // row_bytes)
    return power_of_two(min(fits, cached, LARGEST))


def halves(start: int, fewest: int) -> Iterator[int]:
    """`start`, half of it, and so on, down to `fewest` at least, and to 1."""
    rows = start
    while rows >= max(1, fewest):
        yield rows
        rows //= 2


def rows_of_length(batch_rows: int, planned: int, length: int) -> int:
    """Step batch rows for rows of `length` ids, where `batch_rows` were planned for rows of
    `planned` ids.

    Activations grow at least in proportion to the length and at most, by attention, with its
    square: so many rows take no more memory than was planned, unless that would be fewer than 16.
    """
    in_proportion = batch_rows * planned // length
    with_square = batch_rows * planned**2 // length**2
    most = max(LARGEST, batch_rows)
    fits = min(most, in_proportion, with_square)
    fewest = min(batch_rows, SMALLEST)
    return power_of_two(max(fewest, fits))


def power_of_two(rows: int) -> int:
    """The largest that is not more."""
    return 1 << (rows.bit_length() - 1)


def targets_at_once(batch_rows: int, elements: int, kept: int = KEPT_BYTES) -> int:
    """Targets that share forward passes, so that what is kept of live rows stays below some
    bytes.
    """
    live = live_rows(batch_rows, FIRST)
    row_bytes = elements * KEPT_BYTES_PER_ELEMENT
    return max(1, kept // (live * row_bytes))
