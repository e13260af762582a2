"""Checkpoints as people have them load where their names, rid of what wrappers put in front, are
exactly the module's.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.workers.models.weights import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def partly_compiled(state: State) -> State:
    return {name.replace("1.1.", "1._orig_mod.1."): tensor for name, tensor in state.items()}


def lightning(state: State) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": prefixed("net.")(state), "pytorch-lightning_version": "2.4"}


WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "parallel": (prefixed("module."), "`module.` is left out"),
    "compiled": (prefixed("_orig_mod."), "`_orig_mod.` is left out"),
    "both": (prefixed("module._orig_mod."), "`module.` is left out"),
    "a compiled part": (partly_compiled, "`_orig_mod.` is left out"),
    "lightning": (lightning, "`state_dict` of a checkpoint"),
    "deeper": (prefixed("model.backbone."), "`model.backbone.` is left out"),
}


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def filled(module: nn.Module, source: nn.Module) -> bool:
    pairs = zip(module.parameters(), source.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", WRAPPED)
def test_names_are_rid_of_what_wrappers_put_in_front(name: str) -> None:
    wrap, said = WRAPPED[name]
    source, module = network(), network()
    notes = load_weights(module, "w.ckpt", pickled(wrap(source.state_dict())))
    assert filled(module, source)
    assert any(said in note for note in notes)


def test_safetensors_too() -> None:
    source, module = network(), network()
    notes = load_weights(module, "w.safetensors", save(prefixed("module.")(source.state_dict())))
    assert filled(module, source)
    assert notes == ("`module.` is left out before the names of weights",)


def test_the_modules_own_names_are_left_alone() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = network()

    source, module = Wrapper(), Wrapper()
    assert load_weights(module, "w.pt", pickled(source.state_dict())) == ()
    assert filled(module, source)


@pytest.mark.parametrize("change", ["lacking", "left over"])
def test_what_does_not_fit_exactly_is_refused_by_the_names_in_the_file(change: str) -> None:
    state = prefixed("module.")(network().state_dict())
    if change == "lacking":
        state.pop("module.0.bias")
    else:
        state["module.5.bias"] = torch.zeros(2)
    with pytest.raises(SpecError, match=r"Unexpected key\(s\): .*module\.0\.weight"):
        load_weights(network(), "w.pt", pickled(state))
