"""Recurrent layers in eval mode on CUDA, whose backward pass cuDNN refuses: here by a stand-in that
refuses as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers.methods.attribution import Attribution, attribute
from integrand.workers.models import recurrence
from integrand.workers.models.gradients import gradients_at
from integrand.workers.models.outputs import Forward
from integrand.workers.models.recurrence import RECURRENT

REFUSAL = "cudnn RNN backward can only be called in training mode"
LENGTHS = torch.tensor([5, 4, 4, 2])
X = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))


class Refuses(torch.autograd.Function):
    """The identity, with cuDNN's answer in its backward pass."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError(REFUSAL)


class CuDNN(TorchFunctionMode):
    """Recurrent functions as cuDNN has them; notes the dropout and mode of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, bool]] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function not in RECURRENT:
            return found
        first = 5 if isinstance(args[3], bool) else 6
        dropout, train = args[first], args[first + 1]
        self.calls.append((dropout, train))
        return found if train else (Refuses.apply(found[0]), *found[1:])


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[CuDNN]:
    """Tensors are on the CPU, and taken for those of a device."""
    monkeypatch.setattr(recurrence, "refused_on", lambda arguments: True)
    with CuDNN() as mode:
        yield mode


class Reader(nn.Module):
    """A recurrent network whose layers lie inside others."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = kind(3, 6, num_layers=2, dropout=0.5, batch_first=True, **options)
        self.inner = nn.ModuleDict({"recurrent": layer})
        self.last = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 2)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, LENGTHS[: len(x)], batch_first=True)
        out = self.inner["recurrent"](x)[0]
        if self.packed:
            out = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
        found: Tensor = self.last(out.sum(1))
        return found


class Noted(nn.GRU):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        assert not self.training
        out, state = super().forward(x, hx)
        return out, state


MODELS = {
    "lstm": Reader(nn.LSTM),
    "gru": Reader(nn.GRU, bidirectional=True),
    "tanh": Reader(nn.RNN),
    "relu": Reader(nn.RNN, nonlinearity="relu", bias=False),
    "packed": Reader(nn.LSTM, packed=True),
    "packed gru": Reader(nn.GRU, packed=True),
    "subclass": Reader(Noted),
}


def exported(model: nn.Module) -> Forward:
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: rows},))
    found: Forward = program.module()
    return found


def at(forward: Forward) -> tuple[Tensor, Tensor]:
    table = torch.ones(len(X), 1, dtype=torch.int64)
    return gradients_at(forward, [X], [], table)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_eval_mode(name: str, request: pytest.FixtureRequest) -> None:
    model = MODELS[name].eval()
    expected = at(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cudnn = request.getfixturevalue("cudnn")
    for forward in (model, lambda x: model(x)):
        for found, wanted in zip(at(forward), expected, strict=True):
            assert torch.equal(found, wanted)
    assert set(cudnn.calls) == {(0.0, True)}
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_exported_programs_too(request: pytest.FixtureRequest) -> None:
    program = exported(MODELS["lstm"].eval())
    _, expected = at(program)
    cudnn = request.getfixturevalue("cudnn")
    assert torch.equal(at(program)[1], expected)
    assert cudnn.calls == [(0.0, True)]


def test_without_it_cudnn_refuses(cudnn: CuDNN) -> None:
    """What torch does by itself, as long as a stand-in tells."""
    x = X.clone().requires_grad_()
    out = MODELS["lstm"].eval()(x)
    with pytest.raises(RuntimeError, match="training mode"):
        torch.autograd.grad(out.sum(), x)


def test_outputs_are_evaluated_in_eval_mode(cudnn: CuDNN) -> None:
    with torch.no_grad(), recurrence.differentiable([X]):
        MODELS["lstm"].eval()(X)
    assert cudnn.calls == [(0.5, False)]


@pytest.mark.parametrize("accuracy", [FixedSteps(steps=5), Adaptive(tolerance=0.01)], ids=str)
def test_attributions_are_those_of_eval_mode(
    request: pytest.FixtureRequest, accuracy: FixedSteps | Adaptive
) -> None:
    """Through the engine: steps in train mode without dropout, f at both ends as it is."""
    model = MODELS["lstm"].eval()

    def attributions() -> Tensor:
        found = attribute(model, X, target=1, accuracy=accuracy, batch_rows=16).attributions
        assert isinstance(found, Tensor)
        return found

    expected = attributions()
    cudnn = request.getfixturevalue("cudnn")
    assert torch.equal(attributions(), expected)
    assert set(cudnn.calls) == {(0.0, True), (0.5, False)}
    assert not any(module.training for module in model.modules())


def test_on_the_cpu_calls_are_left_alone() -> None:
    with CuDNN() as mode, pytest.raises(SpecError, match="cuDNN"):
        at(MODELS["lstm"].eval())
    assert mode.calls == [(0.5, False)]


def test_train_mode_is_refused_all_the_same(cudnn: CuDNN) -> None:
    model = Reader(nn.LSTM).eval()
    model.inner["recurrent"].train()
    with pytest.raises(SpecError, match=r"train mode in inner\.recurrent"):
        attribute(model, X, target=1)
    assert cudnn.calls == []


def test_a_program_that_cannot_be_changed_says_what_to_do() -> None:
    """As TorchScript, whose calls no Python sees."""

    def scripted(x: Tensor) -> Tensor:
        found: Tensor = Refuses.apply(x.sum(2))
        return found

    with pytest.raises(SpecError, match=r"TorchScript(.|\n)*gpus_per_worker: 0"):
        at(scripted)


def test_other_errors_stay_as_they_are() -> None:
    assert recurrence.explained_refusal(RuntimeError("CUDA out of memory")) is None


# --- what only a device can show ---------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_device_explains_recurrent_networks_as_the_cpu_does(kind: type[nn.RNNBase]) -> None:
    model = Reader(kind).eval()
    accuracy = FixedSteps(steps=15)

    def attributions(device: str) -> Tensor:
        found: Attribution = attribute(
            model.to(device), X.to(device), target=1, accuracy=accuracy, batch_rows=16
        )
        assert isinstance(found.attributions, Tensor)
        return found.attributions.cpu()

    there = attributions("cuda")
    assert torch.equal(attributions("cuda"), there)
    torch.testing.assert_close(there, attributions("cpu"), rtol=1e-4, atol=1e-6)
