"""Linear layers with their widths filled up to whole vectors: kernels then treat every row of a
batch alike.

Zeros beside the inputs and rows of zeros below the weights change no sum; what they add is cut off
again.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16
"""Elements: 64 bytes of float32, the widest vector of any x86 processor."""
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the weights of their layers instead of calling them."""


class AlignedLinear(nn.Module):
    """A Linear layer of multiples of WIDTH inputs and outputs, which gives what the layer gives
    that it was made of.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        more_out, self.more = -layer.out_features % WIDTH, -layer.in_features % WIDTH
        self.outputs, self.training = layer.out_features, False
        self.filled = nn.Parameter(
            F.pad(layer.weight.detach(), (0, self.more, 0, more_out)), requires_grad=False
        )
        bias = None if layer.bias is None else F.pad(layer.bias.detach(), (0, more_out))
        self.offset = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, self.more))
        out = F.linear(padded, self.filled, self.offset)
        return out[..., : self.outputs]


def alignable(module: nn.Module) -> bool:
    """Whether a layer has a width that is no multiple of WIDTH."""
    return bool(_odd(module))


def align(module: nn.Module) -> nn.Module:
    """A copy of `module` with AlignedLinear in the places of such layers; of itself, where it is
    one.
    """
    if _is_odd(module):
        assert isinstance(module, nn.Linear)
        return AlignedLinear(module)
    aligned = copy.deepcopy(module)
    for name in _odd(aligned):
        owner, _, last = name.rpartition(".")
        layer = aligned.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(aligned.get_submodule(owner), last, AlignedLinear(layer))
    return aligned


def _odd(module: nn.Module, name: str = "") -> list[str]:
    """Names of the layers, but for those in modules that read weights."""
    if _is_odd(module):
        return [name]
    children = () if isinstance(module, _READERS) else module.named_children()
    return [
        found
        for inner, part in children
        for found in _odd(part, f"{name}.{inner}" if name else inner)
    ]


def _is_odd(module: nn.Module) -> bool:
    """A plain layer alone: subclasses and hooks may do more."""
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return False
    plain = module.weight.dtype in (torch.float32, torch.float64)
    return plain and bool(module.in_features % WIDTH or module.out_features % WIDTH)
