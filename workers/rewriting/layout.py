"""Convolutions with channels innermost: their kernels take images and volumes so."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ChannelsLast(nn.Module):
    """Hands images and volumes on with their channels innermost; everything else as it is."""

    def __init__(self, module: nn.Module, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.dimensions, self.training = module, dimensions, False

    def forward(self, *arguments: Tensor) -> Tensor:
        images = [
            a.contiguous(memory_format=_FORMATS[n]) if n in _FORMATS else a
            for a, n in zip(arguments, self.dimensions, strict=False)
        ]
        out: Tensor = self.module(*images, *arguments[len(images) :])
        return out


def lay_out(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` with the weights of its convolutions, and inputs of such ranks, channels
    last.
    """
    placed = copy.deepcopy(module)
    for layer in convolutions(placed):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight.data = weight.data.contiguous(memory_format=_FORMATS[weight.ndim])
    return ChannelsLast(placed, tuple(x.ndim for x in inputs))


def convolutions(module: nn.Module) -> list[nn.Module]:
    """By layer type: a scripted module tells its own by name."""
    names = {kind.__name__ for kind in _CONVOLUTIONS}
    return [
        m
        for m in module.modules()
        if isinstance(m, _CONVOLUTIONS) or getattr(m, "original_name", "") in names
    ]
