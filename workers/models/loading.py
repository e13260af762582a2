"""From a model spec to a callable: the trust gate, artefact digests, shipped code and loading.

Model code runs only where the operator named its module prefix; every artefact's sha256 is
rechecked before use.
"""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import importlib.util
import io
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from integrand.schemas.errors import DataError, IntegrandError, SpecError
from integrand.schemas.records import Artefact
from integrand.schemas.specs.models import ExportedModel, FactoryModel, Model, ScriptedModel
from integrand.workers.models.code import read_verified
from integrand.workers.models.modes import leave_training, training_parts
from integrand.workers.models.outputs import Forward
from integrand.workers.models.state import State, read_state
from integrand.workers.storage.store import Store

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Program = TypeVar("Program")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model as it was loaded.

    forward  the model as a callable, in eval mode with frozen parameters
    state    what its factory built: parameters, buffers, tensors; None of a program, whose file has
             a digest
    notes    what was done to it that its author may want to know
    again    what the factory built a second time, where that was asked for
    build    builds it anew
    rows     the most rows that an exported program declares, where it does
    """

    forward: Forward
    state: State | None = None
    notes: tuple[str, ...] = ()
    again: Forward | None = None
    build: Callable[[], Forward] | None = None
    rows: int | None = None


def load_model(
    store: Store,
    model: Model,
    artefacts: tuple[Artefact, ...],
    precision: str,
    device: str,
    *,
    twice: bool = False,
) -> Loaded:
    """The model as a callable on tensors of `precision`, in eval mode with frozen parameters.

    twice  build it once more, to see that a factory makes the same model every time

    Raises IntegrityError if a file is not the planned one, SpecError if it does not load, was
    exported in train mode, or is another model the second time. The caller has passed
    `check_trust`.
    """
    data = read_verified(store, artefacts[0]) if artefacts else b""
    dtype = DTYPES[precision]
    if isinstance(model, FactoryModel):
        return _built(model, data, dtype, device, twice=twice)
    if isinstance(model, ScriptedModel):
        script = _loaded(model.uri, lambda: torch.jit.load(io.BytesIO(data), map_location=device))
        notes = _leave_training(script, "the TorchScript program was")
        return Loaded(_freeze(script, dtype, device), notes=notes)
    assert isinstance(model, ExportedModel)
    program = _loaded(model.uri, lambda: torch.export.load(io.BytesIO(data)))
    exported = _loaded(model.uri, program.module)
    _leave_training(exported, "")
    _freeze(exported, dtype, device)
    return Loaded(lambda *arguments: exported(*arguments), rows=_declared_rows(program))


def _declared_rows(program: torch.export.ExportedProgram) -> int | None:
    """The most rows that the first argument may have; None without a bound."""
    names = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    if not shapes or not shapes[0]:
        return None
    rows = shapes[0][0]
    if isinstance(rows, int):
        return rows
    bounds = program.range_constraints.get(rows.node.expr)
    return (
        int(bounds.upper)
        if bounds is not None and bounds.upper.is_finite and bounds.upper < 1 << 30
        else None
    )


def _built(
    model: FactoryModel, data: bytes, dtype: torch.dtype, device: str, *, twice: bool
) -> Loaded:
    module = _build(model, data)
    notes, state = _leave_training(module, "the factory returned the model"), read_state(module)
    forward = _placed(module, dtype, device)
    if not twice:
        return Loaded(forward, state, notes)
    second = _build(model, data)
    _leave_training(second, "")
    _check_same(model, state.bits, read_state(second).bits)

    def build() -> Forward:
        anew = _build(model, data)
        _leave_training(anew, "")
        return _placed(anew, dtype, device)

    return Loaded(forward, state, notes, _placed(second, dtype, device), build)


def _check_same(model: FactoryModel, first: Mapping[str, str], second: Mapping[str, str]) -> None:
    differ = [name for name in first if second.get(name) != first[name]] or [
        name for name in second if name not in first
    ]
    if differ:
        raise another_model(
            model,
            f"`{differ[0]}`"
            + (f" and {len(differ) - 1} more" if len(differ) > 1 else "")
            + " with other values the second time",
        )


def another_model(model: FactoryModel, seen: str) -> SpecError:
    """For a factory that builds another model whenever it is called: every worker would explain its
    own.
    """
    return SpecError(
        f"model.entrypoint {model.entrypoint}",
        expected="the same model from every call: each worker makes one",
        seen=seen,
        next_step=(
            "load all weights (model.weights, or in the factory); where random ones are meant, "
            "call torch.manual_seed in the factory"
        ),
    )


def _leave_training(module: nn.Module, who: str) -> tuple[str, ...]:
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
    return (
        (f"{who} in train mode ({', '.join(trained[:3])}): it runs in eval mode",)
        if trained
        else ()
    )


def _build(model: FactoryModel, weights: bytes) -> nn.Module:
    module_name, name = model.entrypoint.split(":")
    where = f"model.entrypoint {model.entrypoint}"
    try:
        factory = getattr(importlib.import_module(module_name), name, None)
        _check_home(factory, module_name, where)
        built = factory(**model.arguments) if callable(factory) else None
    except IntegrandError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise SpecError(
            where,
            expected="model code that runs",
            seen=f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})",
            next_step="fix it, or model.arguments",
        ) from error
    if not callable(factory):
        raise SpecError(
            where,
            expected="a callable",
            seen=f"no callable `{name}`",
            next_step=f"name a function or class of {module_name}",
        )
    if not isinstance(built, nn.Module):
        raise SpecError(
            where,
            expected="a torch.nn.Module",
            seen=type(built).__name__,
            next_step="return the module in eval mode",
        )
    if model.weights is not None:
        _load_weights(built, model.weights, weights)
    return built


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


def _load_weights(module: nn.Module, name: str, data: bytes) -> None:
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


def _check_keys(module: nn.Module, found: _IncompatibleKeys) -> None:
    """RuntimeError, as torch raises, for names without a tensor, but for those that lie in memory
    which another filled.
    """
    own = module.state_dict(keep_vars=True)
    missing = set(found.missing_keys)
    filled = {_memory(tensor) for name, tensor in own.items() if name not in missing}
    lacking = [
        name for name in found.missing_keys if name not in own or _memory(own[name]) not in filled
    ]
    told = [
        f"{what} key(s): {', '.join(names[:8])}"
        for what, names in (("Missing", lacking), ("Unexpected", found.unexpected_keys))
        if names
    ]
    if told:
        raise RuntimeError("; ".join(told))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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


def _loaded(uri: str, load: Callable[[], Program]) -> Program:
    try:
        return load()
    except Exception as error:  # so may these two
        raise DataError(
            f"model {uri}",
            expected="a program that this torch can load",
            seen=f"{type(error).__name__}: {str(error)[:200]}",
            next_step="save it again with the torch build of the workers",
        ) from error


def _placed(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """A factory's module on the device and in the dtype, as a copy if it has to move: the factory
    may keep its own.
    """
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    moves = any(t.dtype != dtype or t.device.type != device for t in held)
    return _freeze(copy.deepcopy(module) if moves else module, dtype, device)


def _freeze(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    placed = module.to(device=device, dtype=dtype)
    for parameter in placed.parameters():  # script modules have no requires_grad_ of their own
        parameter.requires_grad_(False)
    return placed
