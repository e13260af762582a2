"""Torch's switches that decide bits on CUDA: set for a call and put back, or set for good; TF32 for
a pass that is to have it; and the operations that deterministic kernels are asked for in vain.

Torch has two interfaces to TF32. Since 2.9 each operation has an `fp32_precision`, which kernels go
by; the older `allow_tf32` and matmul precision are kept apart from it, and torch refuses to read
them where the two disagree (PyTorch documentation, "CUDA semantics", TensorFloat-32). Here both are
set, so that a program may have used either; what cannot be read is left as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import backends

IEEE, TF32 = "ieee", "tf32"
"""How the float32 factors of a product are read: all 24 bits of them, or 11."""

_IN_VAIN = " does not have a deterministic implementation"
"""Torch's words behind the name of an operation that goes on as it is."""
_ON_CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")


@dataclass(frozen=True)
class Switch:
    """One switch.

    wanted  values with which it is left alone, the first of them the one that it is set to;
            empty for one that others move and that is only put back
    """

    read: Callable[[], object]
    write: Callable[[Any], None]
    wanted: tuple[object, ...]

    def value(self) -> object:
        """What it is set to; None where torch refuses to tell."""
        try:
            return self.read()
        except RuntimeError:
            return None


def _attribute(owner: object, name: str, *wanted: object) -> Switch:
    def read() -> object:
        return getattr(owner, name)

    def write(value: object) -> None:
        setattr(owner, name, value)

    return Switch(read, write, wanted)


def _precision(operation: str, *wanted: object) -> Switch:
    """Of one operation. `none` leaves it to the setting above it, and is taken where that comes to
    the same.
    """
    plain = _attribute(attrgetter(operation)(backends), "fp32_precision", *wanted)

    def write(value: object) -> None:
        plain.write("none")
        if plain.read() != value:
            plain.write(value)

    return Switch(plain.read, write, wanted)


def _older(matmul: str, cudnn_tf32: bool) -> list[Switch]:
    """The older interface."""
    of_products = Switch(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, (matmul,)
    )
    return [of_products, _attribute(backends.cudnn, "allow_tf32", cudnn_tf32)]


def _precisions(wanted: str) -> list[Switch]:
    """The newer interface: of matrix products, convolutions and recurrent layers on CUDA, and
    oneDNN's, which only the older one moves.
    """
    if not hasattr(attrgetter(_ON_CUDA[0])(backends), "fp32_precision"):
        return []
    on_cuda = [_precision(operation, wanted) for operation in _ON_CUDA]
    return [_precision("mkldnn.matmul"), *on_cuda]


def _float32(*, tf32: bool) -> list[Switch]:
    """How float32 factors are read."""
    if tf32:
        return [*_older("high", True), *_precisions(TF32)]
    return [*_older("highest", False), *_precisions(IEEE)]


def _pinned() -> list[Switch]:
    """Deterministic kernels that do not depend on what was tried before, and no TF32."""
    # use_deterministic_algorithms would import the compiler, for 2 s; one who raises (2) goes on to
    deterministic = Switch(
        torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, (1, 2)
    )
    # nothing here reads uninitialised memory, and to fill it costs 5%
    unfilled = _attribute(torch.utils.deterministic, "fill_uninitialized_memory", False)
    untuned = _attribute(backends.cudnn, "benchmark", False)
    return [deterministic, unfilled, untuned, *_float32(tf32=False)]


def pin() -> None:
    """Set them for good, as a worker has them."""
    _set(_pinned())


def pinned_on(device: torch.device) -> AbstractContextManager[None]:
    """The switches of a worker within a call on CUDA tensors; on others nothing is touched."""
    return pinned() if device.type == "cuda" else nullcontext()


@contextmanager
def pinned() -> Iterator[None]:
    """The switches of a worker; put back at the end."""
    with _as_wanted(_pinned()):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """TF32 for what is computed on CUDA within, forwards and backwards; put back at the end."""
    with _as_wanted(_float32(tf32=True)):
        yield


@contextmanager
def _as_wanted(switches: Sequence[Switch]) -> Iterator[None]:
    before = [switch.value() for switch in switches]
    _set(switches)
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            if value is not None and switch.value() != value:
                switch.write(value)


def _set(switches: Sequence[Switch]) -> None:
    for switch in switches:
        value = switch.value()
        if switch.wanted and value is not None and value not in switch.wanted:
            switch.write(switch.wanted[0])


@contextmanager
def nondeterministic_operations() -> Iterator[set[str]]:
    """Names of the operations run within that torch has in no deterministic form, as it warns of
    them where deterministic kernels are asked for; other warnings go on their way.
    """
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield names
    for warning in seen:
        name, words, _ = str(warning.message).partition(_IN_VAIN)
        if words:
            names.add(name)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
