"""A stand-in for TF32, on any device: factors of products read to fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from integrand.workers.engine.reduced import Reduced
from integrand.workers.models.outputs import Forward


class _Forwards(torch.autograd.Function):
    """x rounded to some bits."""

    @staticmethod
    def forward(context: Any, x: Tensor, bits: int) -> Tensor:
        return _rounded(x, bits)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Backwards(torch.autograd.Function):
    """x, whose gradient is rounded to some bits."""

    @staticmethod
    def forward(context: Any, x: Tensor, bits: int) -> Tensor:
        context.bits = bits
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _rounded(gradients[0], context.bits), None


def _rounded(x: Tensor, bits: int) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


class _Products(TorchFunctionMode):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is functional.linear:
            x, weight, *rest = args
            factors = _Forwards.apply(x, self.bits), _rounded(weight, self.bits)
            return _Backwards.apply(function(*factors, *rest, **(kwargs or {})), self.bits)
        return function(*args, **(kwargs or {}))


def rounding_to(bits: int) -> Reduced:
    """Under the name of TF32: linear layers whose factors have so many bits."""

    def forward(model: Forward, device: str) -> Forward:
        def rounded(*arguments: Tensor) -> Tensor:
            with _Products(bits):
                return model(*arguments)

        return rounded

    return Reduced("tf32", 2.0 ** (1 - bits), forward)
