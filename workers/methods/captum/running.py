"""A class called on rows: with the model as it is, which counts what it is asked for, and with
random numbers that are the row's own.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.workers.methods.captum.arguments import Arguments
from integrand.workers.methods.captum.classes import AttributionClass
from integrand.workers.models.embeddings import IdsModel, find_modules
from integrand.workers.models.gradients import SideBySide
from integrand.workers.models.hooks import as_it_was
from integrand.workers.models.modes import is_exported
from integrand.workers.models.outputs import Forward, Transformed, on_copies
from integrand.workers.models.row_tensors import RowTensors, keys_of_rows


class Counted(nn.Module):
    """A model that counts the rows it is run on.

    scalar  whether its outputs are one number a row, `[rows]` or `[rows, 1]`
    tick    called before each pass
    """

    def __init__(self, forward: Forward, *, scalar: bool, tick: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.scalar, self.tick = forward, scalar, tick
        self.training = isinstance(forward, nn.Module) and forward.training
        self.rows = 0

    def forward(self, *arguments: Tensor) -> Tensor:
        self.tick()
        self.rows += len(arguments[0])
        out = on_copies(self.model, *arguments)
        return out.reshape(len(out)) if self.scalar else out


@dataclass(frozen=True, eq=False)
class Found:
    """Attributions of rows, all inputs side by side `[rows, elements]`, and the rows that the model
    was run on to find them.
    """

    attributions: Tensor
    evaluations: int


def run_class(
    class_: AttributionClass,
    given: Arguments,
    forward: Forward,
    rows: RowTensors,
    tick: Callable[[], None] = lambda: None,
) -> Found:
    """What the class makes of some rows.

    Their target is `[rows, depth]`, or None for scalar outputs; of a class that takes a
    distribution, the baselines are all of it. Raises SpecError where the class needs a module, or
    its attributions are not like the inputs.
    """
    if class_.takes_module:
        _check_layers(class_, forward)
    model = Counted(forward, scalar=rows.target is None, tick=tick)
    with _quiet(), torch.enable_grad(), as_it_was(model):
        instance = class_.made(model, **_filled(given.constructor, given, forward, rows))
        called = _filled(given.attribute, given, forward, rows)
        found = instance.attribute(**called, **_provided(class_, rows))
        evaluations = model.rows
    values = found if isinstance(found, tuple) else (found,)
    _check_shapes(class_, values, rows.inputs)
    return Found(SideBySide.join([value.detach() for value in values]), evaluations)


def _check_layers(class_: AttributionClass, forward: Forward) -> None:
    """Hooks in a scripted or exported module would be called never, and gradients be plain ones."""
    parts = list(forward.modules()) if isinstance(forward, nn.Module) else []
    hiding = [p for p in parts if isinstance(p, torch.jit.ScriptModule) or is_exported(p)]
    if hiding or not parts:
        raise SpecError(
            class_.where,
            expected="a torch.nn.Module, whose layers it looks at",
            seen=type(hiding[0] if hiding else forward).__name__,
            next_step="use a model of kind factory, or a class that takes any function",
        )


def _provided(class_: AttributionClass, rows: RowTensors) -> dict[str, Any]:
    """What a job gives itself; tensors are copies, of which gradients may be asked."""
    provided: dict[str, Any] = {"inputs": _one_or_all(rows.inputs), "target": _target(rows.target)}
    if class_.takes_baselines:
        provided["baselines"] = _one_or_all(rows.baselines)
    if rows.forward_args:
        provided["additional_forward_args"] = tuple(a.clone() for a in rows.forward_args)
    return provided


def _one_or_all(tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    copies = tuple(t.detach().clone() for t in tensors)
    return copies[0] if len(copies) == 1 else copies


def _target(table: Tensor | None) -> Any:
    if table is None:
        return None
    if table.shape[1] == 1:
        return table[:, 0]
    return [tuple(row) for row in table.tolist()]


def _filled(arguments: Any, given: Arguments, forward: Forward, rows: RowTensors) -> dict[str, Any]:
    """Arguments of a spec with its modules and tensors."""
    filled = dict(arguments)
    for name in given.modules & filled.keys():
        filled[name] = _module(forward, filled[name])
    for name in given.tensors & filled.keys():
        filled[name] = _tensors(filled[name], rows.inputs)
    return filled


def _module(forward: Forward, name: str) -> nn.Module:
    """The module of this name in the model as its user knows it. Raises SpecError with the nearest
    name.
    """
    while isinstance(forward, IdsModel | Transformed):
        forward = forward.model
    assert isinstance(forward, nn.Module), "classes that take a layer take a module"
    return find_modules(forward, [name], what="layer")[name]


def _tensors(value: Any, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Numbers for one input, or for each of several."""
    device = inputs[0].device
    if len(inputs) == 1:
        return torch.tensor(value, device=device)
    return tuple(torch.tensor(one, device=device) for one in value)


def _check_shapes(
    class_: AttributionClass, values: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> None:
    seen, expected = ([list(t.shape) for t in tensors] for tensors in (values, inputs))
    if seen != expected:
        raise SpecError(
            class_.where,
            expected=f"attributions like the inputs, {expected}",
            seen=str(seen),
            next_step="take another layer or another class, whose attributions are of the inputs",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Captum's warnings about the hooks that it sets and that are put back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# --- random numbers ------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int, row: RowTensors, draw: int) -> Iterator[None]:
    """Torch's, NumPy's and Python's generators from a seed, a row's key (or what it holds, where
    it has none) and the number of its baseline; theirs go on afterwards as if nothing had been.
    """
    start = _start(seed, row, draw)
    arrays, python = np.random.get_state(), random.getstate()
    devices = [row.device] if row.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(start)
            np.random.seed([start % 2**32, start >> 32])
            random.seed(start)
            yield
    finally:
        np.random.set_state(arrays)
        random.setstate(python)


def _start(seed: int, row: RowTensors, draw: int) -> int:
    """63 bits."""
    keys = keys_of_rows(row.inputs) if row.keys is None else row.keys
    named = (seed, draw, *keys[0].tolist())
    digest = blake2b(repr(named).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
