"""Train mode: which parts of a module are in it, and how to leave it.

`ExportedProgram.module()` says that it trains whatever it was exported from, and refuses `eval()`:
there the operations tell. A frozen TorchScript module has no mode left: it was frozen in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from integrand.schemas.errors import SpecError

_SWITCHES = ("train", "training")
"""Names of the argument by which dropout, batch norm and their kind train."""


def training_parts(module: nn.Module) -> list[str]:
    """Names of the parts of a module that train: of modules in train mode, of operations exported
    in it.
    """
    found = []
    for name, part in _parts(module):
        if is_exported(part):
            found += [f"{name}.{node}" if name else node for node in _training_nodes(part)]
        elif getattr(part, "training", False) and not _holds_exported(part):
            found.append(name or type(part).__name__)
    return found


def _holds_exported(module: nn.Module) -> bool:
    """Whether `eval()` cannot be called, since it would reach an exported part; what lies beside
    that is looked at by itself.
    """
    return any(is_exported(part) for _, part in _parts(module))


def leave_training(module: nn.Module) -> None:
    """Put a module into eval mode, but for exported parts, which have no other."""
    try:
        module.eval()
    except NotImplementedError:  # of an exported part
        pass
    except Exception as error:  # the model's own code
        raise SpecError(
            "model",
            expected="a module that can be put into eval mode",
            seen=f"{type(error).__name__}: {str(error)[:200]}",
            next_step="fix its train()",
        ) from error
    for _, part in _parts(module):
        if not is_exported(part) and getattr(part, "training", False):
            part.training = False


def is_exported(module: nn.Module) -> bool:
    """Whether this is what `ExportedProgram.module()` gives."""
    return isinstance(module, fx.GraphModule) and hasattr(module, "range_constraints")


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and all within it by dotted names, but for what lies in exported ones."""
    yield name, module
    for inner, part in () if is_exported(module) else module.named_children():
        yield from _parts(part, f"{name}.{inner}" if name else inner)


def _training_nodes(module: nn.Module) -> list[str]:
    """Operations of an exported graph that train."""
    assert isinstance(module, fx.GraphModule)
    return [
        str(node) for node in module.graph.nodes if node.op == "call_function" and _trains(node)
    ]


def _trains(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name in _SWITCHES:
            given = node.args[place] if len(node.args) > place else argument.default_value
            return bool(node.kwargs.get(argument.name, given))
    return False
