"""Functions whose integrand is hard in a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

F64 = torch.float64


Model = Callable[[Tensor], Tensor]


WEIGHTS = torch.tensor([1.0, 2.0, -0.5], dtype=F64)


def network(
    kind: type[nn.Module], features: int = 3, outputs: int = 1, seed: int = 0, gain: float = 1.5
) -> Model:
    """Two hidden layers of 24 as a plain function: nobody can read its layers."""
    draw = torch.Generator().manual_seed(seed)
    sizes, act = [features, 24, 24, outputs], kind()
    weights = [
        gain * torch.randn(o, i, generator=draw, dtype=F64) / i**0.5 for i, o in pairwise(sizes)
    ]
    biases = [0.5 * torch.randn(o, generator=draw, dtype=F64) for o in sizes[1:]]

    def forward(v: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            v = act(v @ weight.to(v).T + bias.to(v))
        return v @ weights[-1].to(v).T + biases[-1].to(v)

    return forward


def spiky(v: Tensor) -> Tensor:
    """Where f moves in one place only, the path is cut into pieces."""
    return torch.sigmoid((v @ WEIGHTS.to(v) - 0.4) * 300) + 0.02 * v.square().sum(1)


def rooted(v: Tensor) -> Tensor:
    """The gradient of √|v₀ − ½| is infinite where the path of a row with x₀ = 1 has its middle."""
    return (v[:, 0] - 0.5).abs().sqrt() + v[:, 1:].square().sum(1)
