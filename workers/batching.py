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
    """Bytes per row that autograd keeps for the backward pass, counted on the rows given (no timing involved)."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] == rows:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    rows = inputs[0].shape[0]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        points = [x.detach().clone().requires_grad_() for x in inputs]
        forward(*points, *forward_args)
    own = sum(x.numel() * x.element_size() for x in inputs)
    return max(1, (sum(kept.values()) + 2 * own) // rows)


def step_batch_rows(row_bytes: int, memory: int) -> int:
    """Rows of a step batch, a power of two: as many as stay in cache, at least 8, never above the memory budget."""
    fits = max(1, memory // (2 * row_bytes))
    wanted = min(LARGEST, max(SMALLEST, CACHE_BYTES // row_bytes))
    return 1 << (min(fits, wanted).bit_length() - 1)
