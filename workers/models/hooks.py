"""Code that runs beside a module's forward, where no reading of the module shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TABLES = frozenset(
    name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)
)
_DATA = "data of parameters"


def has_hooks(module: nn.Module) -> bool:
    """Whether calls of a module run code beside its forward, which may see or change what
    passes.
    """
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Puts hooks and attributes of all modules within back, whatever was registered or set on them
    meanwhile.
    """
    ours = [one for one in module.modules() if not isinstance(one, torch.jit.ScriptModule)]
    before = [(one, _inside(one)) for one in ours]
    try:
        yield
    finally:
        for one, attributes in before:
            _put_back(one, attributes)


def _inside(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; of its own tables copies, and of parameters what they hold."""
    found = dict(vars(module))
    for name, value in found.items():
        if name in _TABLES:
            found[name] = value.copy()
    found[_DATA] = {name: own.data for name, own in module._parameters.items() if own is not None}
    return found


def _put_back(module: nn.Module, attributes: dict[str, Any]) -> None:
    data = attributes.pop(_DATA)
    for name in set(vars(module)) - set(attributes):
        del module.__dict__[name]
    for name, value in attributes.items():
        if name not in _TABLES:
            module.__dict__[name] = value
            continue
        table = module.__dict__[name]
        table.clear()
        table.update(value)
    for name, held in data.items():
        parameter = module._parameters[name]
        assert parameter is not None, "those that were none were not kept"
        parameter.data = held
