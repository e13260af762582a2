"""What comes of loading a model of any kind, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.models import ModelPart
from integrand.workers.models.modes import leave_training, training_parts
from integrand.workers.models.outputs import Forward
from integrand.workers.models.state import State

Kind = TypeVar("Kind", bound=ModelPart, contravariant=True)
Program = TypeVar("Program")


@dataclass(frozen=True, eq=False)
class Built:
    """One model out of a factory: as a callable, and what it holds."""

    forward: Forward
    state: State


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model as it was loaded.

    forward  the model as a callable, in eval mode with frozen parameters
    state    what its factory built: parameters, buffers, tensors; None of a program, whose file has
             a digest
    notes    what was done to it that its author may want to know
    build    builds it anew; None of a program, of which there is only one
    rows     the most rows that an exported program declares, where it does
    """

    forward: Forward
    state: State | None = None
    notes: tuple[str, ...] = ()
    build: Callable[[], Built] | None = None
    rows: int | None = None


class Load(Protocol[Kind]):
    """Loads one kind of model, for its part of the spec.

    files   the contents of `model.files`, in their order, as planned
    dtype   of its parameters and of the tensors that it is called with

    The model comes in eval mode with frozen parameters. Raises DataError for files that cannot be
    read, SpecError for what does not load or was exported in train mode.
    """

    def __call__(
        self, model: Kind, files: Sequence[bytes], dtype: torch.dtype, device: str, /
    ) -> Loaded: ...


def enter_eval(module: nn.Module, who: str) -> tuple[str, ...]:
    """Put the module into eval mode; a note if that changed it. Raises SpecError for what was
    exported in train mode.
    """
    trained = training_parts(module)
    leave_training(module)
    left = training_parts(module)
    if left:
        raise SpecError(
            "model",
            expected="eval mode: in train mode rows change each other's results",
            seen=f"train mode in {', '.join(left[:3])}",
            next_step="call model.eval() before torch.export.export",
        )
    if not trained:
        return ()
    return (f"{who} in train mode ({', '.join(trained[:3])}): it runs in eval mode",)


def read_program(uri: str, load: Callable[[], Program]) -> Program:
    """What `load` reads from a model file. Raises DataError for whatever that raises."""
    try:
        return load()
    except Exception as error:  # what meets junk may raise anything
        raise DataError(
            f"model {uri}",
            expected="a program that this torch can load",
            seen=f"{type(error).__name__}: {str(error)[:200]}",
            next_step="save it again with the torch build of the workers",
        ) from error


def freeze(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """The module itself, on the device and in the dtype, none of its parameters learning."""
    placed = module.to(device=device, dtype=dtype)
    for parameter in placed.parameters():  # script modules have no requires_grad_ of their own
        parameter.requires_grad_(False)
    return placed
