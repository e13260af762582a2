"""Names in checkpoints as people have them, as the names of the module that they belong to.

DataParallel and DistributedDataParallel put `module.` before every name, torch.compile puts
`_orig_mod.` where a compiled module stands, and a LightningModule the attribute that holds the
network, in a file with much else beside its state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

COMPILED = "_orig_mod."
_WITHIN = "state_dict"


def fitting_state(module: nn.Module, found: Any) -> tuple[Any, tuple[str, ...]]:
    """What `load_state_dict` of the module takes, and what was done to the file's content for that;
    the content itself where nothing makes its names those of the module, which then says what is
    wrong with it.
    """
    state, notes = _inner(found)
    for names, said in _readings(state):
        if fits(module, names):
            return names, notes + said
    return state, ()


def _inner(found: Any) -> tuple[Any, tuple[str, ...]]:
    """The state dict in a file, which may be all of it."""
    inner = found.get(_WITHIN) if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        return found, ()
    return inner, ("the weights are the `state_dict` of a checkpoint, whose other content is left",)


def _readings(state: Any) -> Iterator[tuple[dict[str, Tensor], tuple[str, ...]]]:
    """The names of a state in the ways that they may be meant, the plainest first."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return
    notes: tuple[str, ...] = ()
    yield state, notes
    plain = {name.replace(COMPILED, ""): value for name, value in state.items()}
    if plain.keys() != state.keys():
        notes = (f"`{COMPILED}` is left out of the names of weights",)
        yield plain, notes
    taken = ""
    while prefix := _common_prefix(plain):
        taken += prefix
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
        yield plain, (*notes, f"`{taken}` is left out before the names of weights")


def _common_prefix(state: Mapping[str, Tensor]) -> str:
    """The first part of all names, with its dot; empty where they have none in common."""
    firsts = {name.partition(".")[0] for name in state if "." in name}
    dotted = all("." in name for name in state)
    return f"{firsts.pop()}." if dotted and len(firsts) == 1 else ""


def fits(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the module's tensors, each under one of its names."""
    own = module.state_dict(keep_vars=True)
    if not state.keys() <= own.keys():
        return False
    filled = {memory_of(own[name]) for name in state}
    return all(memory_of(tensor) in filled for tensor in own.values())


def memory_of(tensor: Tensor) -> int:
    """Where a tensor lies: views and tied weights lie in one place."""
    return tensor.untyped_storage().data_ptr()
