"""Dataset medians, exact in bounded memory: their bits are found from the highest to the lowest, in
passes that count how the values go on which begin like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.errors import DataError
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan
from integrand.workers.data.tensors import Rows

_MOST_BYTES = 2 << 20
"""Of the counts that one row group sends, unless there are more than 2¹⁴ elements."""

_LEAST_BITS, _MOST_BITS = 4, 16
Bits = NDArray[np.uint64]
Ranks = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the two middle values of each element.

    bits  their highest bits, `[2, elements]`
    left  how many bits are yet to be found
    rank  which of the values that begin with these bits it is, from 0, `[2, elements]`
    """

    bits: Bits
    left: int
    rank: Ranks


@dataclass(frozen=True, eq=False)
class Counts:
    """What one row group adds.

    rows    clean ones
    width   bits of a value
    digits  how many of the values that begin like the middle ones go on with which bits,
            `[2, elements, 2^step]`
    shapes  of the inputs; None of one of ids
    """

    rows: int
    width: int
    digits: NDArray[np.int64]
    shapes: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, eq=False)
class Medians(PrePass[Counts]):
    """Median of each input over all clean rows, `[*shape]` float64 in model units: of an even
    number of rows the mean of the middle two. Zeros for ids. Its error is 0, whatever row groups
    and order. Of float32 values it takes 3 passes over 30 features and 8 over the largest images;
    of float64 twice as many.
    """

    known: Known | None = None

    name = "median"

    def partial(self, scan: Scan, file: int, row_group: int) -> Counts:
        width = 32 if scan.spec.compute.storage == "float32" else 64
        sides = zip(scan.spec.inputs, scan.shapes, strict=True)
        shapes = tuple(None if one.modules else shape.shape for one, shape in sides)
        elements = sum(prod(shape) for shape in shapes if shape is not None)
        left = self.known.left if self.known else width
        step = min(left, _step(elements))
        digits = np.zeros((2, elements, 1 << step), np.int64)
        count = 0
        for rows in scan.blocks(file, row_group):
            clean = scan.clean(rows)
            count += int(clean.sum())
            values = _ordered(_side_by_side(scan, rows, clean))
            digits += self._digits(values, left, step)
        return Counts(count, width, digits, shapes)

    def condensed(self, partials: Sequence[Counts]) -> Sequence[Counts]:
        rows = sum(one.rows for one in partials)
        digits = np.sum([one.digits for one in partials], axis=0)
        return (replace(partials[0], rows=rows, digits=digits),)

    def merge(self, partials: Sequence[Counts]) -> Arrays | PrePass[Any]:
        """Medians, or the pass that finds their next bits. Raises DataError if no row is clean."""
        if not any(one.rows for one in partials):
            raise DataError(
                "median baseline",
                expected="at least one clean row",
                seen="none in the whole source",
                next_step="fix the input columns, or choose another baseline",
            )
        (counts,) = self.condensed(partials)
        known = _with_next_bits(self.known or _nothing(counts), counts.digits)
        if known.left:
            return Medians(known)
        low, high = _values(known.bits, counts.width)
        return _split(low * 0.5 + high * 0.5, counts.shapes)

    def _digits(self, values: Bits, left: int, step: int) -> NDArray[np.int64]:
        """`[2, elements, 2^step]`: how often the values that begin like the middle ones go on with
        which bits.
        """
        elements = values.shape[1]
        digit = (values >> np.uint64(left - step)) & np.uint64((1 << step) - 1)
        place = digit.astype(np.int64) + (np.arange(elements) << step)
        found = []
        for k in (0, 1):
            kept = place
            if self.known is not None:
                kept = place[values >> np.uint64(left) == self.known.bits[k]]
            counts = np.bincount(kept.reshape(-1), minlength=elements << step)
            found.append(counts.reshape(elements, 1 << step))
        return np.stack(found)


def _step(elements: int) -> int:
    """Bits that a pass finds."""
    fitting = (_MOST_BYTES // (16 * max(1, elements))).bit_length() - 1
    return min(_MOST_BITS, max(_LEAST_BITS, fitting))


def _side_by_side(scan: Scan, rows: Rows, clean: NDArray[np.bool_]) -> NDArray[Any]:
    """Clean rows of all inputs of numbers, `[rows, elements]`."""
    pairs = zip(scan.spec.inputs, rows.inputs, strict=True)
    kept = [x.numpy()[clean] for one, x in pairs if not one.modules]
    flat = [x.reshape(len(x), prod(x.shape[1:])) for x in kept]
    return np.concatenate([np.empty((int(clean.sum()), 0), scan.spec.compute.storage), *flat], 1)


def _ordered(values: NDArray[Any]) -> Bits:
    """Floats as unsigned integers of the same order; −0 is 0."""
    width = 8 * values.itemsize
    bits = (values + 0.0).astype(values.dtype, copy=False).view(f"uint{width}").astype(np.uint64)
    sign = np.uint64(1 << (width - 1))
    every = np.uint64((1 << width) - 1)
    return np.where(bits & sign, bits ^ every, bits | sign)


def _values(bits: Bits, width: int) -> NDArray[np.float64]:
    """The floats that `_ordered` made integers of."""
    sign = np.uint64(1 << (width - 1))
    every = np.uint64((1 << width) - 1)
    plain = np.where(bits & sign, bits ^ sign, bits ^ every)
    return plain.astype(f"uint{width}").view(f"float{width}").astype(np.float64)


def _nothing(counts: Counts) -> Known:
    """Before the first pass all values begin alike."""
    elements = counts.digits.shape[1]
    rank = np.array([[(counts.rows - 1) // 2], [counts.rows // 2]]).repeat(elements, 1)
    return Known(np.zeros((2, elements), np.uint64), counts.width, rank)


def _with_next_bits(known: Known, digits: NDArray[np.int64]) -> Known:
    step = digits.shape[2].bit_length() - 1
    reached = digits.cumsum(2)
    digit = (reached <= known.rank[..., None]).sum(2)
    before = np.where(digit > 0, np.take_along_axis(reached, digit[..., None] - 1, 2)[..., 0], 0)
    bits = (known.bits << np.uint64(step)) | digit.astype(np.uint64)
    return Known(bits, known.left - step, known.rank - before)


def _split(flat: NDArray[np.float64], shapes: Sequence[tuple[int, ...] | None]) -> Arrays:
    """Each input's own; zeros for ids."""
    found = []
    for shape in shapes:
        size = 0 if shape is None else prod(shape)
        found.append(np.zeros(1) if shape is None else flat[:size].reshape(shape))
        flat = flat[size:]
    return tuple(found)
