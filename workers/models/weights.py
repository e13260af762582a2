"""Plain weights, loaded into the module that they belong to."""

from __future__ import annotations

import io

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from integrand.schemas.errors import DataError, SpecError
from integrand.workers.models.checkpoints import fitting_state, memory_of


def load_weights(module: nn.Module, name: str, data: bytes) -> tuple[str, ...]:
    """Fill the module from a file of this name, and say what was done to its names for that.

    Raises DataError for a file of something else, SpecError for weights that are not the module's.
    """
    try:
        state = (
            load(data)
            if name.endswith(".safetensors")
            else torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        )
    except Exception as error:  # an unpickler that meets junk may raise anything
        raise DataError(
            f"model.weights {name}",
            expected="safetensors or a weights-only state dict",
            seen=f"{type(error).__name__}: {str(error)[:200]}",
            next_step="save with safetensors.torch.save_model(model, ...)",
        ) from error
    state, notes = fitting_state(module, state)
    try:
        _check_keys(module, module.load_state_dict(_with_tied(module, state), strict=False))
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        # AttributeError: its keys are no strings
        raise SpecError(
            f"model.weights {name}",
            expected=f"the parameters of {type(module).__name__}",
            seen=str(error)[:400],
            next_step="save that module's own weights: safetensors.torch.save_model(model, ...)",
        ) from error
    return notes


def _check_keys(module: nn.Module, found: _IncompatibleKeys) -> None:
    """RuntimeError, as torch raises, for names without a tensor, but for those that lie in memory
    which another filled.
    """
    own = module.state_dict(keep_vars=True)
    missing = set(found.missing_keys)
    filled = {memory_of(tensor) for name, tensor in own.items() if name not in missing}
    lacking = [
        name for name in found.missing_keys if name not in own or memory_of(own[name]) not in filled
    ]
    wrong = [
        f"{what} key(s): {', '.join(names[:8])}"
        for what, names in (("Missing", lacking), ("Unexpected", found.unexpected_keys))
        if names
    ]
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _with_tied(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with every name of a tensor that the module has under several: safetensors keep one
    of them.
    """
    if not isinstance(state, dict):
        return state  # load_state_dict says what is wrong with it
    own = module.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    given = dict(state)
    for shared in names.values():
        there = next((name for name in shared if name in state), None)
        if there is not None:
            given |= {name: state[there] for name in shared if name not in state}
    return given
