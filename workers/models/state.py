"""What a model holds besides its code: digests that tell whether two processes built the same one.

Seeded initial values are the same random numbers everywhere, but kernels of another processor may
round them otherwise. So there are two digests: of every bit, and of a few digits, which rounding
does not reach and training does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from integrand.schemas.errors import SpecError
from integrand.schemas.ids import digest_json
from integrand.workers.models.outputs import Forward

_CHUNK = 64 << 20
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: its registries are read by name."""
_PROBED, _ROUNDING = 32, 1e-3
"""Outputs that are compared, and the largest difference between kernels, relative to the largest
output.
"""
_PATTERN = 65_537
"""Values of one stretch that is projected; a prime, so that no layout of a tensor repeats with it.
"""


@dataclass(frozen=True)
class State:
    """Of parameters, buffers, and tensors or arrays kept as attributes, by name: of each bit, and
    of a few digits.
    """

    bits: Mapping[str, str]
    digits: Mapping[str, str]

    @property
    def exactly(self) -> str:
        return digest_json(dict(self.bits))

    @property
    def roughly(self) -> str:
        return digest_json(dict(self.digits))


def read_state(module: nn.Module) -> State:
    """What a module holds. Raises SpecError for parameters that do not exist before the first
    forward pass.
    """
    bits, digits = dict[str, str](), dict[str, str]()
    for name, tensor in _tensors(module):
        if is_lazy(tensor) or tensor.is_meta:
            raise SpecError(
                f"model parameter {name}",
                expected="a value when the factory returns",
                seen="one that is made in the first forward pass (lazy or meta)",
                next_step="run the model once in the factory and load its weights there",
            )
        plain = _plain(tensor)
        bits[name] = _digest(plain)
        digits[name] = _digits(plain) if plain.is_floating_point() else bits[name]
    return State(bits, digits)


def probe_outputs(
    forward: Forward, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: str
) -> tuple[float, ...] | None:
    """What a model says of two made-up rows, the first outputs: numbers that it keeps in no tensor
    show there.

    None where it does not run on them, or says something else the second time.
    """
    rows = [
        torch.linspace(-1, 1, 2 * prod(shape), dtype=dtype, device=device).reshape(2, *shape)
        for shape in shapes
    ]
    try:
        with torch.no_grad():
            first, second = (
                forward(*[x.clone() for x in rows]).double().cpu().reshape(-1)[:_PROBED]
                for _ in range(2)
            )
    except Exception:  # noqa: BLE001 - the model's own code, on rows that it was not made for
        return None
    same = torch.equal(first, second) and bool(torch.isfinite(first).all())
    return tuple(first.tolist()) if same else None


def same_outputs(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two processes' outputs are equal up to what kernels round."""
    scale = max(map(abs, (*one, *other)), default=0.0)
    return len(one) == len(other) and all(
        abs(a - b) <= _ROUNDING * scale for a, b in zip(one, other, strict=True)
    )


def _digits(tensor: Tensor) -> str:
    """Shape, norm to five digits, and a fixed random projection of the tensor to four of
    its norm.
    """
    values = tensor.reshape(-1).double()
    norm = float(values.norm())
    form = f"{tensor.dtype} {list(tensor.shape)} {norm:.4e}"
    if not 0 < norm < float("inf"):
        return f"{form} {_digest(tensor)}"
    pattern = torch.from_numpy(np.random.default_rng(0).standard_normal(min(_PATTERN, len(values))))
    parts = [torch.dot(part, pattern[: len(part)]) for part in values.split(_PATTERN)]
    turned = torch.stack(parts) * torch.cos(torch.arange(len(parts), dtype=torch.float64))
    return f"{form} {float(turned.sum()) / norm:.4f}"


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}\0{list(tensor.shape)}\0".encode())
    for chunk in _bytes(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By name. A tensor that two names share comes twice: which of them are tied is part of the
    model.
    """
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for name, part in module.named_modules():
        for key, value in sorted(_attributes(part).items()):
            yield f"{name}.{key}", value


def _attributes(part: nn.Module) -> Mapping[str, Tensor]:
    """Tensors and arrays that a module keeps without registering them, in lists and dicts too."""
    found: dict[str, Tensor] = {}
    for name, value in vars(part).items():
        if name not in _OF_TORCH:
            _collect(found, name, value, depth=3)
    return found


def _collect(found: dict[str, Tensor], name: str, value: object, depth: int) -> None:
    if isinstance(value, Tensor):
        if not value.is_nested:
            found[name] = value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        found[name] = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    elif isinstance(value, list | tuple | dict) and depth:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _collect(found, f"{name}.{key}", item, depth - 1)


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and in one piece; sparse tensors as dense ones, quantized ones as their
    integers.
    """
    plain = tensor.detach()
    plain = plain.to_dense() if plain.layout != torch.strided else plain
    plain = plain.int_repr() if plain.is_quantized else plain
    return plain.resolve_conj().resolve_neg().cpu().contiguous()


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.reshape(-1).view(torch.uint8)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK].numpy().data
