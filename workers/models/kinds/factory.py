"""Modules that a function builds, with plain weights for them."""

from __future__ import annotations

import copy
import importlib
import traceback
from collections.abc import Sequence

import torch
from torch import nn

from integrand.schemas.errors import IntegrandError, SpecError
from integrand.schemas.specs.models import FactoryModel
from integrand.workers.models.kinds.base import Built, Loaded, enter_eval, freeze
from integrand.workers.models.state import read_state
from integrand.workers.models.weights import load_weights


def load_factory(
    model: FactoryModel, files: Sequence[bytes], dtype: torch.dtype, device: str
) -> Loaded:
    """What the factory builds, and a way to have it build once more."""

    def build() -> tuple[Built, tuple[str, ...]]:
        module = _call(model)
        notes: tuple[str, ...] = ()
        if model.weights is not None:
            notes = load_weights(module, model.weights, files[0])
        notes += enter_eval(module, "the factory returned the model")
        state = read_state(module)
        return Built(_placed(module, dtype, device), state), notes

    first, notes = build()
    return Loaded(first.forward, first.state, notes, build=lambda: build()[0])


def _call(model: FactoryModel) -> nn.Module:
    """What the entrypoint returns. Raises SpecError for whatever goes wrong on the way."""
    module_name, name = model.entrypoint.split(":")
    try:
        factory = getattr(importlib.import_module(module_name), name, None)
        _check_home(factory, module_name, model.where)
        built = factory(**model.arguments) if callable(factory) else None
    except IntegrandError:
        raise
    except (Exception, SystemExit) as error:
        raise _raised(model, error) from error
    if not callable(factory):
        raise SpecError(
            model.where,
            expected="a callable",
            seen=f"no callable `{name}`",
            next_step=f"name a function or class of {module_name}",
        )
    if not isinstance(built, nn.Module):
        raise SpecError(
            model.where,
            expected="a torch.nn.Module",
            seen=type(built).__name__,
            next_step="return the module in eval mode",
        )
    return built


def _raised(model: FactoryModel, error: BaseException) -> SpecError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return SpecError(
        model.where,
        expected="model code that runs",
        seen=f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})",
        next_step="fix it, or model.arguments",
    )


def _check_home(factory: object, module: str, where: str) -> None:
    """Refuse what a trusted module merely imported, such as `subprocess.run`: the spec chooses its
    arguments.
    """
    home = str(getattr(factory, "__module__", None) or module)
    if home.split(".")[0] != module.split(".")[0]:
        raise SpecError(
            where,
            expected=f"a function or class that {module.split('.')[0]} defines",
            seen=f"one of {home}",
            next_step="call it from a function of your own, and name that",
        )


def _placed(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """A factory's module on the device and in the dtype, as a copy if it has to move: the factory
    may keep its own.
    """
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    moves = any(t.dtype != dtype or t.device.type != device for t in held)
    if moves:
        module = copy.deepcopy(module)
    return freeze(module, dtype, device)
