"""Which modules are read as shallow networks, which are refused and why, and what the last check
catches.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from integrand.workers.closed_form.recognition import ShallowNetwork, agrees, recognise


class Chain(nn.Module):
    """Linear, activation, Linear, with the steps between given as functions."""

    def __init__(self, between, before=lambda x: x, after=lambda x: x) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 1)
        self.between, self.before, self.after = between, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.last(self.between(self.first(self.before(x)))))


class Reused(nn.Module):
    """One ReLU and one Linear, used twice each."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.first, self.last = nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(self.relu(self.first(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + F.relu(self.first(x)))


class SideEffect(nn.Module):
    """Its ReLU works in place, and its result is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.relu(h)
        return self.last(h)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else self.first(-x)


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def norm(width: int) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(width)
    for statistic in (layer.running_mean, layer.bias.data):
        statistic.normal_()
    for statistic in (layer.running_var, layer.weight.data):
        statistic.uniform_(0.3, 2)
    return layer


def hooked(method: str) -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    getattr(module[1], method)(lambda *arguments: None)
    return module


def compiled_script() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(6, 1)).eval())


def bare_norm() -> nn.BatchNorm1d:
    return nn.BatchNorm1d(4, track_running_stats=False)


L = nn.Linear
ACCEPTED = {
    "linear": lambda: L(6, 3),
    "one hidden": lambda: nn.Sequential(L(6, 9), nn.ReLU(), L(9, 3)),
    "two hidden": lambda: nn.Sequential(L(6, 9), nn.ReLU(), L(9, 5), nn.LeakyReLU(0.3), L(5, 3)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(L(6, 9), nn.ReLU()), nn.Sequential(L(9, 5), nn.ReLU()), L(5, 3)
    ),
    "no bias": lambda: nn.Sequential(L(6, 9, bias=False), nn.ReLU(), L(9, 3, bias=False)),
    "norm before relu": lambda: nn.Sequential(
        L(6, 9), norm(9), nn.ReLU(), L(9, 5), norm(5), nn.ReLU(), L(5, 1)
    ),
    "norm after relu": lambda: nn.Sequential(
        L(6, 9), nn.ReLU(), norm(9), L(9, 5), nn.ReLU(), norm(5), L(5, 1)
    ),
    "norm first and last": lambda: nn.Sequential(norm(6), L(6, 9), nn.ReLU(), L(9, 3), norm(3)),
    "norm between relus": lambda: nn.Sequential(L(6, 9), nn.ReLU(), norm(9), nn.ReLU(), L(9, 3)),
    "plain norm": lambda: nn.Sequential(
        L(6, 9), nn.BatchNorm1d(9, affine=False), nn.ReLU(), L(9, 3)
    ),
    "linear after linear": lambda: nn.Sequential(L(6, 4), L(4, 9), nn.ReLU(), L(9, 4), L(4, 3)),
    "prelu": lambda: nn.Sequential(
        L(6, 9), nn.PReLU(init=0.7), L(9, 5), nn.PReLU(5, init=-0.4), L(5, 1)
    ),
    "idle layers": lambda: nn.Sequential(
        nn.Flatten(), L(6, 9), nn.Dropout(), nn.Identity(), nn.ReLU(), L(9, 3)
    ),
    "relu last": lambda: nn.Sequential(L(6, 9), nn.ReLU(), L(9, 3), nn.ReLU()),
    "reused layers": lambda: Reused(),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(L(6, 9)), nn.ReLU(), L(9, 3)).double()
    ),
    "float64": lambda: nn.Sequential(L(6, 9), nn.ReLU(), L(9, 3)).double(),
    "F.relu": lambda: Chain(F.relu),
    "F.relu inplace": lambda: Chain(lambda x: F.relu(x, inplace=True)),
    "torch.relu": lambda: Chain(torch.relu),
    "method relu": lambda: Chain(lambda x: x.relu()),
    "F.leaky_relu": lambda: Chain(lambda x: F.leaky_relu(x, 0.3)),
    "default leak": lambda: Chain(F.leaky_relu),
    "F.dropout": lambda: Chain(lambda x: F.dropout(F.relu(x), 0.5, training=False)),
    "squeeze": lambda: Chain(F.relu, after=lambda x: x.squeeze(-1)),
    "torch.squeeze": lambda: Chain(F.relu, after=lambda x: torch.squeeze(x, 1)),
    "flatten": lambda: Chain(F.relu, before=lambda x: torch.flatten(x, 1)),
    "method flatten": lambda: Chain(F.relu, before=lambda x: x.flatten(start_dim=1)),
    "view": lambda: Chain(F.relu, before=lambda x: x.view(x.size(0), -1)),
    "reshape": lambda: Chain(F.relu, before=lambda x: x.reshape(x.shape[0], 6)),
    "torch.reshape": lambda: Chain(F.relu, before=lambda x: torch.reshape(x, (-1, 6))),
    "view of rows": lambda: Chain(F.relu, after=lambda x: x.view(-1)),
}
REFUSED = {
    "3 hidden layers, more than 2": lambda: nn.Sequential(
        L(6, 4), nn.ReLU(), L(4, 4), nn.ReLU(), L(4, 4), nn.ReLU(), L(4, 1)
    ),
    "GELU": lambda: nn.Sequential(L(6, 4), nn.GELU(), L(4, 1)),
    "tanh": lambda: Chain(torch.tanh),
    "ReLU6": lambda: nn.Sequential(L(6, 4), nn.ReLU6(), L(4, 1)),
    "Conv1d": lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), L(8, 1)),
    "LayerNorm": lambda: nn.Sequential(L(6, 4), nn.LayerNorm(4), nn.ReLU(), L(4, 1)),
    "Softmax after the last layer": lambda: nn.Sequential(
        L(6, 4), nn.ReLU(), L(4, 3), nn.Softmax(1)
    ),
    "sigmoid after the last layer": lambda: Chain(F.relu, after=torch.sigmoid),
    "no straight chain of layers": lambda: Residual(),
    "no straight chain of layers (at `_0_last`)": lambda: SideEffect(),
    "a leaky_relu whose slope is computed": lambda: Chain(lambda x: F.leaky_relu(x, x.size(1))),
    "torch.fx cannot trace (TraceError)": lambda: Branching(),
    "no Linear layer before the first activation": (
        lambda: nn.Sequential(norm(6), nn.ReLU(), L(6, 1)).eval()
    ),
    "`0.weight` used outside of a layer": lambda: nn.Sequential(Doubling(6, 4), nn.ReLU(), L(4, 1)),
    "detach": lambda: Chain(F.relu, after=lambda x: x.detach()),
    "a hook on `1`": lambda: hooked("register_forward_hook"),
    "active dropout": lambda: nn.Sequential(L(6, 4), nn.Dropout(), nn.ReLU(), L(4, 1)),
    "BatchNorm1d without running statistics": (
        lambda: nn.Sequential(L(6, 4), bare_norm(), nn.ReLU(), L(4, 1)).eval()
    ),
    "weights in bfloat16": lambda: nn.Sequential(L(6, 4), nn.ReLU(), L(4, 1)).bfloat16(),
    "squeeze of another dimension": lambda: Chain(F.relu, after=lambda x: x.squeeze()),
    "flatten from dimension 0 to -1": lambda: Chain(F.relu, after=lambda x: x.flatten()),
    "a layer of width 4 before one of width 8": lambda: nn.Sequential(
        L(3, 4), nn.Flatten(), nn.ReLU(), L(8, 1)
    ),
    "a view that may mix rows": lambda: Chain(F.relu, before=lambda x: x.reshape(x.shape[1], -1)),
    "TorchScript": compiled_script,
    "a function in place of a module": lambda: lambda x: x.sum(1),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("build", ACCEPTED.values(), ids=ACCEPTED)
def test_recognised_networks_compute_what_the_module_computes(build):
    module = build().eval()
    dtype = next(module.parameters()).dtype
    found, x = recognise(module), torch.randn(50, 6, dtype=dtype)
    assert isinstance(found, ShallowNetwork), found
    assert agrees(found, module, x)
    with torch.no_grad():
        truth = module.double()(x.double()).reshape(50, -1)
    torch.testing.assert_close(found.preactivations(x.double())[-1], truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("reason", "build"), REFUSED.items(), ids=REFUSED)
def test_refusals_say_why(reason: str, build):
    found = recognise(build())
    assert isinstance(found, str)
    assert reason in found


def test_a_norm_in_train_mode_is_refused():
    assert (
        recognise(nn.Sequential(L(6, 4), norm(4), nn.ReLU(), L(4, 1)))
        == "BatchNorm1d in train mode"
    )


@pytest.mark.parametrize(
    "method",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_every_kind_of_hook_is_refused(method: str):
    assert recognise(hooked(method).eval()) == "a hook on `1`"


def test_an_overridden_forward_is_refused():
    module = nn.Sequential(L(6, 4), nn.ReLU(), L(4, 1)).eval()
    module[1].forward = torch.tanh
    assert recognise(module) == "ReLU"


def test_the_network_keeps_the_weights_it_read():
    module = L(6, 1)
    found, x = recognise(module), torch.randn(5, 6)
    assert isinstance(found, ShallowNetwork)
    assert agrees(found, module, x)
    with torch.no_grad():
        module.weight += 1e-3
    assert not agrees(found, module, x)


@pytest.mark.parametrize("shape", [(5, 1, 6), (5, 2, 6), (5, 6, 1), (5, 3)], ids=str)
def test_inputs_of_another_shape_do_not_agree(shape: tuple[int, ...]):
    found = recognise(L(6, 1))
    assert isinstance(found, ShallowNetwork)
    assert not agrees(
        found,
        lambda x: torch.zeros(len(x), 1, 1) if x.ndim > 2 else torch.zeros(len(x), 1),
        torch.rand(shape),
    )


def test_a_linear_layer_along_the_last_of_three_dimensions_does_not_agree():
    module = nn.Sequential(L(6, 6), nn.ReLU(), L(6, 1)).eval()
    found = recognise(module)
    assert isinstance(found, ShallowNetwork)
    assert not agrees(found, module, torch.randn(5, 1, 6))


def test_small_changes_of_the_function_do_not_agree():
    module = nn.Sequential(L(6, 40), nn.ReLU(), L(40, 40), nn.ReLU(), L(40, 1)).eval()
    found, x = recognise(module), torch.randn(50, 6)
    assert isinstance(found, ShallowNetwork)
    assert agrees(found, module, x)
    assert not agrees(found, lambda x: module(x) * (1 + 1e-3), x)
    assert not agrees(found, lambda x: module.double()(x.double()) + 1e-12, x)
