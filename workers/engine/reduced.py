"""Precisions in which step batches round more than the tensors of a row do.

Inputs, weights, f(x), f(x') and every sum stay float32. Under autocast matrix products and
convolutions are computed in half precision; with TF32 CUDA reads their float32 factors to 11 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from integrand.workers.models.outputs import Forward
from integrand.workers.switches import tf32


@dataclass(frozen=True)
class Reduced:
    """One of them.

    name     as a spec calls it
    epsilon  relative rounding
    forward  a model whose forward pass rounds so, on a kind of device; its backward pass takes the
             dtypes of the forward one
    passes   what forward and backward passes run in
    """

    name: str
    epsilon: float
    forward: Callable[[Forward, str], Forward]
    passes: Callable[[], AbstractContextManager[None]] = nullcontext


def _under_autocast(dtype: torch.dtype, forward: Forward, device: str) -> Forward:
    def rounded(*arguments: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return forward(*arguments)

    return rounded


def _autocast(name: str, dtype: torch.dtype) -> Reduced:
    return Reduced(name, float(torch.finfo(dtype).eps), partial(_under_autocast, dtype))


def _as_it_is(forward: Forward, device: str) -> Forward:
    return forward


REDUCED: Mapping[str, Reduced] = MappingProxyType(
    {
        each.name: each
        for each in (
            _autocast("bfloat16", torch.bfloat16),
            _autocast("float16", torch.float16),
            Reduced("tf32", 2.0**-10, _as_it_is, tf32),
        )
    }
)
