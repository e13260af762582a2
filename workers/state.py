"""What a model holds besides its code: digests that tell whether two processes built the same one.

Seeded initial values are the same random numbers everywhere, but kernels of another processor may round them otherwise.
So there are two digests: of every bit, and of a few digits, which rounding does not reach and training does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.ids import digest_json

_CHUNK = 64 << 20
_PATTERN = 65_537
"""Values of one stretch that is projected; a prime, so that no layout of a tensor repeats with it."""


@dataclass(frozen=True)
class State:
    """Of parameters, buffers, and tensors or arrays kept as attributes, by name: of each bit, and of a few digits."""

    bits: Mapping[str, str]
    digits: Mapping[str, str]

    @property
    def exactly(self) -> str:
        return digest_json(dict(self.bits))

    @property
    def roughly(self) -> str:
        return digest_json(dict(self.digits))


def read_state(module: nn.Module) -> State:
    """What a module holds. Raises SpecError for parameters that do not exist before the first forward pass."""
    bits, digits = dict[str, str](), dict[str, str]()
    for name, tensor in _tensors(module):
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin) or tensor.is_meta:
            raise SpecError(f"model parameter {name}", expected="a value when the factory returns",
                            seen="one that is made in the first forward pass (lazy or meta)",
                            next_step="run the model once in the factory and load its weights there")  # fmt: skip
        plain = _plain(tensor)
        bits[name] = _digest(plain)
        digits[name] = _digits(plain) if plain.is_floating_point() else bits[name]
    return State(bits, digits)


def _digits(tensor: Tensor) -> str:
    """Shape, norm to five digits, and a fixed random projection of the tensor to four of its norm."""
    values = tensor.reshape(-1).double()
    norm = float(values.norm())
    told = f"{tensor.dtype} {list(tensor.shape)} {norm:.4e}"
    if not 0 < norm < float("inf"):
        return f"{told} {_digest(tensor)}"
    pattern = torch.from_numpy(np.random.default_rng(0).standard_normal(min(_PATTERN, len(values))))
    parts = [torch.dot(part, pattern[: len(part)]) for part in values.split(_PATTERN)]
    turned = torch.stack(parts) * torch.cos(torch.arange(len(parts), dtype=torch.float64))
    return f"{told} {float(turned.sum()) / norm:.4f}"


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}\0{list(tensor.shape)}\0".encode())
    for chunk in _bytes(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By name. A tensor that two names share comes twice: which of them are tied is part of the model."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for name, part in module.named_modules():
        for key, value in sorted(_attributes(part).items()):
            yield f"{name}.{key}", value


def _attributes(part: nn.Module) -> Mapping[str, Tensor]:
    """Tensors and arrays that a module keeps without registering them, in lists and dicts too."""
    found: dict[str, Tensor] = {}
    for name, value in vars(part).items():
        if not name.startswith("_"):
            _collect(found, name, value)
    return found


def _collect(found: dict[str, Tensor], name: str, value: object) -> None:
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        found[name] = torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _collect(found, f"{name}.{place}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(found, f"{name}.{key}", item)


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and in one piece; sparse tensors as dense ones, quantized ones as their integers."""
    plain = tensor.detach()
    plain = plain.to_dense() if plain.layout != torch.strided else plain
    plain = plain.int_repr() if plain.is_quantized else plain
    return plain.cpu().contiguous()


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.reshape(-1).view(torch.uint8)
    for start in range(0, len(flat), _CHUNK):
        yield memoryview(flat[start : start + _CHUNK].numpy())
