"""Random numbers that are functions of a seed, a row and a place, and of nothing else.

Philox4x32-10 enciphers a counter of 128 bits under a key of 64 bits: Salmon, Moraes, Dror & Shaw
2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3. Nothing is kept between calls, so a
number does not depend on what was drawn before it, beside it or on which device. All arithmetic is
exact (int64) or correctly rounded (+, −, ×, ÷ and √ of float64, an operation a kernel): a library's
logarithm or cosine would differ from device to device, and from a vector's middle to its end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
"""Of the two halves of the key, from round to round: §3.3 and Random123's philox.h."""

_WORD = 0xFFFFFFFF
_AT_ONCE = 1 << 13
"""Blocks enciphered together on CPUs, whose words then stay in a core's cache."""

_Words = tuple[Tensor, Tensor, Tensor, Tensor]


def keys_of(ids: Sequence[str]) -> Tensor:
    """`[rows, 2]` int64: BLAKE2b digests of 128 bits of the rows' ids as text."""
    digests = [hashlib.blake2b(one.encode(), digest_size=16).digest() for one in ids]
    words = np.frombuffer(b"".join(digests), dtype="<i8").reshape(len(ids), 2)
    return torch.from_numpy(words.astype(np.int64))


def uniforms(keys: Tensor, *, seed: int, stream: int, draws: range, count: int) -> Tensor:
    """`[rows, draws, count]` float64, uniform on the multiples of 2⁻⁵³ in [0, 1).

    A number depends on its row's key, the seed, the stream, its draw and its place among `count`
    alone, so on no other row, and not on how many draws or places are asked for.

    keys    `[rows, 2]` int64, see `keys_of`
    seed    64 bits of it count
    stream  tells uses apart that share seed and key; below 2³²
    """
    return _drawn(_uniform, keys, seed=seed, stream=stream, draws=draws, count=count)


def normals(keys: Tensor, *, seed: int, stream: int, draws: range, count: int) -> Tensor:
    """`[rows, draws, count]` float64, standard normal, like `uniforms`."""
    return _drawn(_normal, keys, seed=seed, stream=stream, draws=draws, count=count)


def integers(
    keys: Tensor, *, seed: int, stream: int, draws: range, count: int, below: int | Tensor
) -> Tensor:
    """`[rows, draws, count]` int64, uniform from 0 to below `below` (at most 2³¹, which may differ
    from place to place), like `uniforms`. No probability is wrong by more than 2⁻⁵³.
    """
    found = uniforms(keys, seed=seed, stream=stream, draws=draws, count=count)
    return (found * below).long()


def philox(counter: _Words, key: tuple[Tensor, Tensor]) -> _Words:
    """A counter's four words of 32 bits enciphered under two; int64 tensors that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0 = c0 * _MULTIPLIERS[0]  # int64 wraps, and keeps the bits of an unsigned product
        p1 = c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _WORD) ^ c3 ^ k1
        c1 = p1.bitwise_and_(_WORD)
        c3 = p0.bitwise_and_(_WORD)
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    bits = (high << 21) | (low >> 11)
    return bits.double() * 2.0**-53


def _normal(high: Tensor, low: Tensor) -> Tensor:
    bits = (high << 20) | (low >> 12)
    return _normal_quantile((bits.double() + 0.5) * 2.0**-52)


def _drawn(
    number: Callable[[Tensor, Tensor], Tensor],
    keys: Tensor,
    *,
    seed: int,
    stream: int,
    draws: range,
    count: int,
) -> Tensor:
    """`[rows, draws, count]` float64, each made of two words; a block has two pairs of them."""
    blocks = torch.arange(-(-count // 2), device=keys.device)
    numbers = torch.tensor(draws, dtype=torch.int64, device=keys.device)[:, None]
    size = len(keys), len(draws), len(blocks), 2
    found = torch.empty(size, dtype=torch.float64, device=keys.device)
    rows_at_once, blocks_at_once = _parts(keys, len(draws), len(blocks))
    streams = torch.full_like(numbers, stream)
    for some in _slices(len(keys), rows_at_once):
        first, second, third = _row_words(keys[some], seed)
        for part in _slices(len(blocks), blocks_at_once):
            words = philox((blocks[part], numbers, streams, third), (first, second))
            for half in (0, 1):
                found[some, :, part, half] = number(words[2 * half], words[2 * half + 1])
    return found.flatten(2, 3)[:, :, :count]


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, first + size)


def _parts(keys: Tensor, draws: int, blocks: int) -> tuple[int, int]:
    """Rows and blocks that are enciphered together."""
    if keys.is_cuda:
        return max(1, len(keys)), max(1, blocks)
    rows = max(1, _AT_ONCE // max(1, draws * blocks))
    return rows, blocks if rows > 1 else max(1, _AT_ONCE // max(1, draws))


def _row_words(keys: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """96 bits of each row under a seed, as words `[rows, 1, 1]`: its key enciphered under it."""
    low, high = keys[:, 0, None, None], keys[:, 1, None, None]
    counter = (low & _WORD, (low >> 32) & _WORD, high & _WORD, (high >> 32) & _WORD)
    halves = [torch.full_like(low, half) for half in (seed & _WORD, (seed >> 32) & _WORD)]
    first, second, third, _ = philox(counter, (halves[0], halves[1]))
    return first, second, third


# --- normal quantiles ----------------------------------------------------------------------------

_CENTRE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR = (
    (
        6.65790464350110377720e0,
        5.46378491116411436990e0,
        1.78482653991729133580e0,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)
"""Numerators and denominators of algorithm AS 241 (PPND16): Wichura 1988, Applied Statistics 37."""


def _normal_quantile(p: Tensor) -> Tensor:
    """Where the normal distribution reaches p in (0, 1); relative error about 1e-16 (AS 241)."""
    q = p - 0.5
    found = q * _ratio(_CENTRE, 0.180625 - q * q)
    outside = (q.abs() > 0.425).nonzero(as_tuple=True)
    beyond = q[outside]
    r = (-_log(torch.minimum(p[outside], 1 - p[outside]))).sqrt()
    tail = torch.where(r <= 5, _ratio(_TAIL, r - 1.6), _ratio(_FAR, r - 5))
    found[outside] = torch.where(beyond < 0, -tail, tail)
    return found


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = coefficients
    return _polynomial(above, x) / _polynomial(below, x)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for one in coefficients[-2::-1]:
        total = total.mul_(x).add_(one)
    return total


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive numbers, from exact and correctly rounded operations alone:
    log(2ᵉ·m) = e·log 2 + 2·artanh((m − 1)/(m + 1)), of which 12 terms reach 1e-19 at m in [√½, √2].
    """
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2, mantissa)
    exponent = exponent - small.int()
    s = (mantissa - 1) / (mantissa + 1)
    series = _polynomial([2 / (2 * k + 1) for k in range(12)], s * s)
    return exponent.double() * math.log(2) + s * series
