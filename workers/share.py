"""A worker's part of a GPU."""

from __future__ import annotations

import torch


def keep_to_share(gpus: float) -> None:
    """Let this process's allocator run out of memory beyond its part of a GPU: who reserves the
    part, as Ray does, does not see to that.
    """
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)
