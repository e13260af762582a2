"""What a call may take of its device's memory: for a step batch, and for gradients of rows that
wait to be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from integrand.workers.engine.batching import (
    KEPT_BYTES,
    activation_bytes,
    power_of_two,
    step_batch_rows,
)
from integrand.workers.models.gradients import gradients_of
from integrand.workers.models.outputs import Forward, on_copies

CPU_BATCH = 512 << 20
CUDA_BATCH = 12 << 30
"""On one H200 the best step batches took 7 to 22 GiB, but for one of 3, and no model ran more than
3% faster beyond them.
"""
CUDA_ROWS = 1 << 20
PART = 4
"""A step batch takes this part of a GPU, and so may rows under way: weights, rows of the shard,
what judging takes and gaps between allocations are left to the rest.
"""
PROBED_BYTES = 256 << 20
"""About what is allocated to find out what a row takes."""
PROBED_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes on one device.

    device  its type
    batch   of a step batch
    kept    of gradients of rows under way
    most    beyond which a single row is refused
    """

    device: str
    batch: int
    kept: int
    most: int

    def batch_rows(self, row_bytes: int, kept_row_bytes: int = 0) -> int:
        """Rows of a step batch, a power of two.

        row_bytes       as `row_bytes` finds them
        kept_row_bytes  what is kept of rows under way, by rows of a step batch; left out of account
                        on a CPU
        """
        if self.device != "cuda":
            return step_batch_rows(row_bytes, self.batch)
        fits = self.batch // row_bytes
        if kept_row_bytes:
            fits = min(fits, self.kept // kept_row_bytes)
        return power_of_two(max(1, min(fits, CUDA_ROWS)))


def memory_budget(
    device: torch.device, asked: int | Literal["auto"] = "auto", *, share: float = 1.0
) -> MemoryBudget:
    """What a worker may take that has a share of a device.

    asked  bytes of a step batch; `auto` takes 512 MiB on a CPU, and on CUDA a quarter of the
           worker's share, up to 12 GiB, and no more than half of what is free
    """
    if device.type != "cuda":
        batch = CPU_BATCH if asked == "auto" else asked
        return MemoryBudget(device=device.type, batch=batch, kept=KEPT_BYTES, most=batch)
    free, total = device_bytes(device)
    own = int(total * min(1.0, share))
    batch = min(CUDA_BATCH, own // PART, free // 2) if asked == "auto" else asked
    most = min(own, free) if asked == "auto" else asked
    return MemoryBudget(device="cuda", batch=batch, kept=own // PART, most=most)


def device_bytes(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of a CUDA device; what this process holds unused counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused, total


def row_bytes(forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor]) -> int:
    """Bytes of one more row in a step batch: on a CPU those that autograd saves, counted; on CUDA
    all that its allocator gives out, measured on a few rows.
    """
    saved = activation_bytes(forward, inputs, forward_args)
    if inputs[0].device.type != "cuda":
        return saved
    rows = power_of_two(max(1, min(PROBED_ROWS, PROBED_BYTES // (2 * saved))))
    try:
        once, twice = (
            _peak_bytes(forward, inputs, forward_args, count) for count in (rows, 2 * rows)
        )
    except Exception:  # noqa: BLE001 - memory, or a model that does not take so many
        return 2 * saved
    measured = (twice - once) // rows
    return measured if measured > 0 else 2 * saved


def _peak_bytes(
    forward: Forward, inputs: Sequence[Tensor], forward_args: Sequence[Tensor], rows: int
) -> int:
    """Bytes that gradients of so many rows take at their peak, beside what was there before: what
    was asked of the allocator, which does not depend on what it holds. A model without gradients is
    run forwards.
    """
    device = inputs[0].device
    index = torch.arange(rows, device=device) % len(inputs[0])
    before = torch.cuda.memory_stats(device).get("requested_bytes.all.current", 0)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.enable_grad():
        points = [x[index].detach().requires_grad_() for x in inputs]
        out = on_copies(forward, *points, *[a[index] for a in forward_args])
        if out.requires_grad:
            gradients_of(out.sum(), points)
    peak = torch.cuda.memory_stats(device).get("requested_bytes.all.peak", 0)
    return int(peak - before)
