"""Rows that are the same to the model: explained once, and copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Distinct:
    """Rows told apart by what the model gets.

    rows    numbers of all of them, `[n]`
    first   numbers of the first of each set of equal rows, `[distinct]`
    copied  [n] places among these: which one a row repeats
    """

    rows: Tensor
    first: Tensor
    copied: Tensor

    @property
    def duplicates(self) -> int:
        """How many rows repeat another."""
        return len(self.rows) - len(self.first)


def distinct_rows(tensors: Iterable[Tensor], rows: Tensor) -> Distinct:
    """Those of `rows` that differ in a bit of any tensor, each `[all rows, ...]`. A row is known by
    a 128-bit digest.
    """
    arrays = [_bytes(tensor) for tensor in tensors]
    places: dict[bytes, int] = {}
    first: list[int] = []
    copied: list[int] = []
    for row in rows.tolist():
        digest = blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[row])
        place = places.setdefault(digest.digest(), len(places))
        if place == len(first):
            first.append(row)
        copied.append(place)
    return Distinct(
        rows,
        first=torch.tensor(first, dtype=torch.int64),
        copied=torch.tensor(copied, dtype=torch.int64),
    )


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    rows = np.ascontiguousarray(tensor.numpy())
    flat = rows.reshape(len(tensor), -1)
    return flat.view(np.uint8)
