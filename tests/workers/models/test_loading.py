"""Artefacts are what the plan says; what does not load says why."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model as load_safetensors, save_file, save_model
from torch import nn

from integrand.schemas.errors import DataError, IntegrandError, IntegrityError, SpecError
from integrand.schemas.specs.models import ExportedModel, Model, ScriptedModel
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.code import (
    model_artefacts,
)
from integrand.workers.models.kinds.base import Loaded
from integrand.workers.models.loading import DTYPES, load_model
from integrand.workers.models.rebuilding import build_again
from tests.plugins.model_code import STORE, X, factory, loaded

pytestmark = pytest.mark.usefixtures("import_state")


# --- weights -----------------------------------------------------------------------------------


def test_safetensors_and_state_dicts_hold_the_weights(code: Path) -> None:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    save_file(net.state_dict(), code / "w.safetensors")
    torch.save(net.state_dict(), code / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        torch.testing.assert_close(loaded(factory(weights=name), code)(X), net(X), rtol=0, atol=0)
    double = loaded(factory(weights="w.pt"), code, "float64")
    torch.testing.assert_close(double(X.double()), net.double()(X.double()))


def test_loaded_models_are_frozen_and_in_eval_mode(code: Path) -> None:
    net = loaded(factory(arguments={"width": 6, "outputs": 3}), code)
    assert isinstance(net, nn.Module)
    assert net(X).shape == (5, 3)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules())


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_payload_is_refused_and_never_runs(code: Path, form: str) -> None:
    payload = Payload(f"touch {code / 'pwned'}")
    if form == "torch":
        torch.save({"0.weight": payload}, code / "w.pt")
    else:
        (code / "w.pt").write_bytes(pickle.dumps(payload))
    with pytest.raises(DataError, match=r"w\.pt(.|\n)*weights-only(.|\n)*safetensors"):
        loaded(factory(weights="w.pt"), code)
    assert not (code / "pwned").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"not weights at all, but long enough to look at"]
)
def test_bytes_that_are_no_weights(code: Path, name: str, content: bytes) -> None:
    (code / name).write_bytes(content)
    with pytest.raises(IntegrandError) as refused:
        loaded(factory(weights=name), code)
    assert name in refused.value.where


def test_weights_of_another_model_name_the_keys(code: Path) -> None:
    save_file({"0.weight": torch.zeros(4, 3), "other": torch.zeros(1)}, code / "w.safetensors")
    with pytest.raises(
        SpecError,
        match=r"parameters of Sequential(.|\n)*Missing(.|\n)*0\.bias(.|\n)*Unexpected(.|\n)*other",
    ):
        loaded(factory(weights="w.safetensors"), code)
    torch.save(torch.zeros(3), code / "w.pt")
    with pytest.raises(SpecError, match="parameters of Sequential"):
        loaded(factory(weights="w.pt"), code)
    torch.save({1: torch.zeros(3)}, code / "w.pt")
    with pytest.raises(SpecError, match="parameters of Sequential"):
        loaded(factory(weights="w.pt"), code)
    for name in ("missing.pt", "/dev/zero"):
        with pytest.raises(DataError, match="nothing there"):
            loaded(factory(weights=name), code)


def test_changed_weights_are_an_integrity_error(code: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    save_file(net.state_dict(), code / "w.safetensors")
    model = factory(weights="w.safetensors")
    planned = model_artefacts(STORE, model, str(code))
    assert planned[0].sha256 == hashlib.sha256((code / "w.safetensors").read_bytes()).hexdigest()
    load_model(STORE, model, planned, "float32", "cpu")
    with torch.no_grad():
        net[0].bias[0] += 1
    save_file(net.state_dict(), code / "w.safetensors")
    with pytest.raises(IntegrityError, match=r"w\.safetensors(.|\n)*plan again"):
        load_model(STORE, model, planned, "float32", "cpu")
    assert model_artefacts(STORE, model, str(code)) != planned


# --- factories ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        ("toy_models:function", r"torch\.nn\.Module"),
        ("toy_models:nothing", "no callable `nothing`"),
        ("toy_models:not_callable", "a callable"),
        ("toy_missing:build", "No module named 'toy_missing'"),
        ("toy_models.deeper:build", "'toy_models' is not a package"),
        ("toy_models:build_wrongly", r"ZeroDivision(.|\n)*toy_models\.py:\d+"),
    ],
)
def test_factories_that_do_not_work(code: Path, entrypoint: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refused:
        loaded(factory(entrypoint), code)
    assert refused.value.next_step


def test_what_the_models_own_code_misses_is_named(code: Path) -> None:
    (code / "toy_broken.py").write_text("import toy\n")
    with pytest.raises(SpecError, match=r"No module named 'toy' \(.*toy_broken\.py:1\)"):
        loaded(factory("toy_broken:build"), code)
    with pytest.raises(SpecError, match="unexpected keyword argument 'depth'"):
        loaded(factory(arguments={"depth": 3}), code)


# --- programs ----------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)).eval()


def exported(folder: Path) -> Model:
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(net(), (torch.zeros(4, 3),), dynamic_shapes=({0: batch},)),
        folder / "m.pt2",
    )
    return ExportedModel(uri="m.pt2")


def scripted(folder: Path) -> Model:
    torch.jit.trace(net(), torch.zeros(4, 3)).save(folder / "m.pt")
    return ScriptedModel(uri="m.pt")


@pytest.mark.parametrize("save", [exported, scripted])
@pytest.mark.filterwarnings("ignore")
def test_programs_take_any_number_of_rows_and_can_be_attributed(tmp_path: Path, save: Any) -> None:
    forward = loaded(save(tmp_path), tmp_path)
    for count in (1, 2, 16):
        torch.testing.assert_close(forward(X[:1].expand(count, 3)), net()(X[:1].expand(count, 3)))
    expected = attribute(net(), X, target=1, batch_rows=8)
    found = attribute(forward, X, target=1, batch_rows=8)
    torch.testing.assert_close(found.attributions, expected.attributions)
    double = loaded(save(tmp_path), tmp_path, "float64")
    torch.testing.assert_close(double(X.double()), net().double()(X.double()))


@pytest.mark.parametrize(
    "model", [ExportedModel(uri="m.pt2"), ScriptedModel(uri="m.pt")], ids=lambda m: m.kind
)
@pytest.mark.parametrize("content", [b"", b"no program" * 20, b"PK\x03\x04 broken zip"])
def test_bytes_that_are_no_program(tmp_path: Path, model: Any, content: bytes) -> None:
    (tmp_path / model.uri).write_bytes(content)
    with pytest.raises(DataError, match="a program that this torch can load"):
        loaded(model, tmp_path)


def opened(model: Model, folder: Path) -> Loaded:
    return load_model(STORE, model, model_artefacts(STORE, model, str(folder)), "float32", "cpu")


def test_a_script_in_train_mode_is_put_into_eval_mode_and_says_so(tmp_path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Dropout())).save(tmp_path / "m.pt")
    found = opened(ScriptedModel(uri="m.pt"), tmp_path)
    assert torch.equal(found.forward(X), found.forward(X))
    assert ["train mode" in note for note in found.notes] == [True]


def test_a_frozen_script_has_no_mode_and_loads(tmp_path: Path) -> None:
    model = net()
    torch.jit.freeze(torch.jit.script(model)).save(tmp_path / "m.pt")
    found = opened(ScriptedModel(uri="m.pt"), tmp_path)
    torch.testing.assert_close(found.forward(X), model(X))
    assert found.notes == ()


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)], ids=["dropout", "batch norm"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_program_exported_in_train_mode_is_refused(tmp_path: Path, layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))
    for mode in (True, False):
        program = torch.export.export(
            model.train(mode), (X,), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
        torch.export.save(program, tmp_path / "m.pt2")
        with (
            pytest.raises(SpecError, match=r"train mode(.|\n)*before torch\.export")
            if mode
            else nullcontext()
        ):
            opened(ExportedModel(uri="m.pt2"), tmp_path)


# --- what a factory builds ---------------------------------------------------------------------


def test_a_factory_that_trains_is_put_into_eval_mode_and_says_so(code: Path) -> None:
    found = opened(factory("toy_models:training"), code)
    assert isinstance(found.forward, nn.Module)
    assert not any(m.training for m in found.forward.modules())
    assert ["train mode" in note for note in found.notes] == [True]
    assert opened(factory(), code).notes == ()


@pytest.mark.parametrize(
    "body",
    [
        "return nn.Linear(3, 2).eval()",
        (
            "m = nn.BatchNorm1d(3).eval(); m.running_mean.normal_(); return nn.Sequential(m,"
            " nn.Flatten())"
        ),
        "m = Scaled(); m.scale = torch.randn(3); return m",
        "m = Scaled(); m.parts = [np.random.default_rng().normal(size=3)]; return m",
    ],
    ids=["parameters", "buffers", "a tensor kept as an attribute", "an array in a list"],
)
def test_a_factory_that_builds_another_model_each_time_is_refused(code: Path, body: str) -> None:
    (code / "toy_random.py").write_text(
        "import numpy as np\nimport torch\nfrom torch import nn\n\nclass Scaled(nn.Module):\n   "
        " scale = 1.0\n\n    def forward(self, x):\n        return x * self.scale\n\ndef"
        f" build():\n    {body}\n"
    )
    with pytest.raises(SpecError, match=r"the same model from every call(.|\n)*manual_seed"):
        build_again(factory("toy_random:build"), opened(factory("toy_random:build"), code))
    assert (
        opened(factory("toy_random:build"), code).state
        != opened(factory("toy_random:build"), code).state
    )


def test_the_state_tells_models_apart_and_equal_ones_not(code: Path) -> None:
    one, other = (opened(factory(), code).state for _ in range(2))
    wider = opened(factory(arguments={"width": 6}), code).state
    assert one is not None
    assert other is not None
    assert wider is not None
    assert (one.exactly, one.roughly) == (other.exactly, other.roughly)
    assert len({one.exactly, wider.exactly}) == len({one.roughly, wider.roughly}) == 2


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_factory_may_keep_its_module_and_hand_it_out_again(code: Path, precision: str) -> None:
    """As one that caches does: what it keeps stays what it is."""
    (code / "toy_kept.py").write_text(
        "from torch import nn\n\nKEPT = nn.Linear(3, 2)\n\ndef build():\n    return KEPT\n"
    )
    kept, model = [], factory("toy_kept:build")
    for twice in (True, False, True):
        found = load_model(STORE, model, (), precision, "cpu")
        assert not twice or build_again(model, found) is not None
        assert found.state is not None
        assert found.forward(X.to(DTYPES[precision])).dtype == DTYPES[precision]
        kept.append(found.state.exactly)
    assert len(set(kept)) == 1


def test_parameters_that_are_made_later_are_refused(code: Path) -> None:
    (code / "toy_lazy.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.LazyLinear(2).eval()\n"
    )
    with pytest.raises(SpecError, match="first forward pass"):
        opened(factory("toy_lazy:build"), code)


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.third = self.first

    def forward(self, x):
        return self.last(torch.tanh(self.third(self.second(torch.tanh(self.first(x))))))

def build():
    return Tied().eval()
"""


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "w.pt"])
def test_tied_weights_load_under_any_of_their_names(code: Path, name: str) -> None:
    """`save_model` and Hugging Face keep one name of a tensor; a state dict has them all."""
    (code / "toy_tied.py").write_text(TIED)
    importlib.invalidate_caches()
    torch.manual_seed(3)
    model = importlib.import_module("toy_tied").build()
    if name == "model.safetensors":
        save_model(model, str(code / name))
    elif name == "state.safetensors":  # the other names than those that save_model keeps
        kept = {"second.weight", "third.bias", "second.bias", "last.weight", "last.bias"}
        save_file({k: v for k, v in model.state_dict().items() if k in kept}, code / name)
    else:
        torch.save(model.state_dict(), code / name)
    found = loaded(factory("toy_tied:build", weights=name), code)
    torch.testing.assert_close(found(X), model(X), rtol=0, atol=0)


@pytest.mark.parametrize(
    "body",
    [
        "s.b.weight.data = s.a.weight.data",
        "s.b.register_buffer('kept', s.a.weight.data)",
    ],
    ids=["data", "a buffer"],
)
def test_tensors_in_one_memory_load_as_safetensors_load_them(code: Path, body: str) -> None:
    (code / "toy_memory.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    s ="
        f" nn.Module()\n    s.a, s.b = nn.Linear(3, 3), nn.Linear(3, 3)\n    {body}\n    made ="
        " nn.Sequential(s.a, s.b)\n    return made.eval()\n"
    )
    importlib.invalidate_caches()
    torch.manual_seed(5)
    model = importlib.import_module("toy_memory").build()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    save_model(model, str(code / "w.safetensors"))
    yardstick = importlib.import_module("toy_memory").build()
    load_safetensors(yardstick, str(code / "w.safetensors"))
    found = loaded(factory("toy_memory:build", weights="w.safetensors"), code)
    torch.testing.assert_close(found(X), yardstick(X), rtol=0, atol=0)


def test_weights_that_are_missing_under_all_names_are_missing(code: Path) -> None:
    (code / "toy_tied.py").write_text(TIED)
    importlib.invalidate_caches()
    state = importlib.import_module("toy_tied").build().state_dict()
    save_file(
        {k: v for k, v in state.items() if k in ("last.weight", "last.bias")},
        code / "w.safetensors",
    )
    with pytest.raises(SpecError, match=r"Missing(.|\n)*first\.weight(.|\n)*save_model"):
        loaded(factory("toy_tied:build", weights="w.safetensors"), code)
