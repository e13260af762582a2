"""The row itself in another order, with or without its pairs of neighbours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import ShuffleBaseline
from integrand.schemas.specs.inputs import IdsInput
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.eulerian import free_orders, paired_orders
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.philox import uniforms

_WALKS = 1 << 11
"""Added to the stream of a baseline: of the numbers by which walks go."""


class Shuffle(BaselineKind[ShuffleBaseline]):
    """Ids of one list, or the places of a sequence `[channels, length]` or `[length, channels]`."""

    def check(self, part: ShuffleBaseline, place: Place) -> None:
        """SpecError for an input that is no sequence."""
        shape = place.shape
        if place.input.modules:
            sequence, expected = not shape.named, "ids in lists, whose order can change"
        else:
            sequence = len(shape.shape) == 2
            expected = "a sequence of one-hot letters, of shape [channels, length] or its transpose"
        if not sequence:
            raise SpecError(
                f"baseline of input `{shape.name}`",
                expected=expected,
                seen=f"columns {', '.join(shape.columns)}" if shape.named else f"{shape.shape}",
                next_step="choose another baseline",
            )

    def tensor(self, part: ShuffleBaseline, rows: PlaceRows) -> Tensor:
        axis = 2 if part.channels == "first" and not rows.input.modules else 1
        orders = torch.from_numpy(_orders(part, rows, axis)).to(rows.values.device)
        each = rows.values.repeat_interleave(part.draws, 0)
        if each.ndim == 2:
            return each.gather(1, orders)
        places = orders[:, None, :] if axis == 2 else orders[:, :, None]
        return each.gather(axis, places.expand_as(each))


def _orders(part: ShuffleBaseline, rows: PlaceRows, axis: int) -> NDArray[np.int64]:
    """`[rows × draws, length]`: where each place's letter is taken from."""
    symbols = _symbols(rows.values, axis)
    symbols = np.repeat(symbols, part.draws, 0)
    held = _held(symbols, rows)
    numbers = _numbers(part, rows, rows.stream, symbols.shape[1])
    if part.preserve == "nothing":
        return free_orders(held, numbers)

    def walks(count: int) -> NDArray[np.float64]:
        return _numbers(part, rows, rows.stream + _WALKS, count)

    return paired_orders(symbols, held, numbers, walks)


def _held(symbols: NDArray[np.int64], rows: PlaceRows) -> NDArray[np.bool_]:
    """Which places of a list are its own: neither its padding nor that which its writer filled it
    up with, the input's `pad` at its end.
    """
    own = symbols != PADDING
    if isinstance(rows.input, IdsInput) and rows.input.pad is not None:
        own &= symbols != rows.input.pad
        own[:, 0] = True
    backwards = np.logical_or.accumulate(own[:, ::-1], axis=1)
    held: NDArray[np.bool_] = backwards[:, ::-1]
    return held


def _symbols(values: Tensor, axis: int) -> NDArray[np.int64]:
    """`[rows, length]`: ids as they are, PADDING where there is none; of one-hot letters a number
    for each that differs.
    """
    array = values.cpu().numpy()
    if array.ndim == 2:
        return array
    letters = np.moveaxis(array, axis, 1) + 0.0  # no negative zeros, whose bytes differ
    letters = np.ascontiguousarray(letters)
    width = letters.shape[2] * letters.itemsize
    as_bytes = letters.reshape(-1, letters.shape[2]).view(np.dtype((np.void, width)))
    _, numbers = np.unique(as_bytes, return_inverse=True)
    return numbers.reshape(letters.shape[:2]).astype(np.int64)


def _numbers(
    part: ShuffleBaseline, rows: PlaceRows, stream: int, count: int
) -> NDArray[np.float64]:
    """`[rows × draws, count]` in [0, 1)."""
    assert rows.keys is not None, "rows whose baselines are drawn have keys"
    draws = range(part.draws)
    found = uniforms(rows.keys.cpu(), seed=part.seed, stream=stream, draws=draws, count=count)
    return found.flatten(0, 1).numpy()
