"""How many rows a step batch takes: a pure function of the model, the shapes and a memory budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from integrand.workers.outputs import Forward

CACHE_BYTES = 16 << 20
"""Saved activations of a step batch beyond this size leave the CPU's caches and gain nothing more."""
LARGEST, SMALLEST = 512, 8


def activation_bytes(forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of one more row, counted without any timing.

    The rows given are tried once and twice over: parameters and other tensors without rows cancel out.
    """
    once, twice = (_kept(forward, inputs, forward_args, times) for times in (1, 2))
    own = sum(x.numel() * x.element_size() for x in inputs)
    return max(1, (twice - once + 2 * own) // inputs[0].shape[0])


def _kept(forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor], times: int) -> int:
    """Bytes of all tensors that a forward pass over the rows, `times` over, saves; views of one storage count once."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = forward(*[torch.cat([x.detach()] * times).requires_grad_() for x in inputs],
                      *[torch.cat([a] * times) for a in forward_args])  # fmt: skip
    del out  # alive until here, so that no storage was freed and its address counted twice
    return sum(kept.values())


def step_batch_rows(row_bytes: int, memory: int) -> int:
    """Rows of a step batch, a power of two: as many as stay in cache, at least 8, never above the memory budget."""
    fits = max(1, memory // (2 * row_bytes))
    wanted = min(LARGEST, max(SMALLEST, CACHE_BYTES // row_bytes))
    return 1 << (min(fits, wanted).bit_length() - 1)
