"""Rows that are the same to the model: explained once, and copied."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from integrand.workers.data.tensors import Rows


def distinct_rows(rows: Rows, baselines: Sequence[Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of clean rows that are equal in every bit the model gets, and which of
    these a row repeats.

    clean [n] row numbers → [distinct] row numbers, and [n] places among them. Rows are told apart
    by a 128-bit digest.
    """
    tensors = [*rows.inputs, *(b for b in baselines if b.shape[0] > 1), *rows.forward_args]
    tensors += [] if rows.target is None else [rows.target]
    arrays = [np.ascontiguousarray(t.numpy()).reshape(len(t), -1).view(np.uint8) for t in tensors]
    places: dict[bytes, int] = {}
    first: list[int] = []
    copied: list[int] = []
    for row in clean.tolist():
        digest = blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[row])
        place = places.setdefault(digest.digest(), len(places))
        first += [row] if place == len(first) else []
        copied.append(place)
    return torch.tensor(first, dtype=torch.int64), torch.tensor(copied, dtype=torch.int64)
