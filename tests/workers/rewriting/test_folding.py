"""Batch norm folded into the layer before it: where it may be, that results stay, and that the
model is not touched.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from integrand.workers.rewriting.folding import Pair, fold, foldable_pairs


def settle(module: nn.Module) -> nn.Module:
    """Float64 and eval, with batch norm statistics and gains as after training."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        for tensor in (getattr(m, name, None) for name in ("running_mean", "running_var")):
            if tensor is not None:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine:
            nn.init.uniform_(m.weight, -1.5, 1.5, generator=generator)
            nn.init.uniform_(m.bias, -0.5, 0.5, generator=generator)
    return module.double().eval()


def images(channels: int = 2, dimensions: int = 2, rows: int = 3) -> Tensor:
    shape = (rows, channels, *[6] * dimensions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def results(module: nn.Module, x: Tensor) -> Tensor:
    """Outputs and gradients of every row, side by side."""
    x = x.clone().requires_grad_()
    out = module(x).flatten(1)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    return torch.cat([out.detach(), gradient.flatten(1)], 1)


def assert_folds(module: nn.Module, x: Tensor, count: int) -> nn.Module:
    """That many batch norms are folded, without a difference; the module keeps its own."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected = results(module, x)
    pairs = foldable_pairs(module, (x,))
    assert len(pairs) == count
    folded = fold(module, pairs)
    torch.testing.assert_close(results(folded, x), expected, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(results(module, x), expected)
    assert norms(module) - norms(folded) == count
    assert not any(m.training for m in folded.modules())
    return folded


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


LAYERS: list[tuple[Callable[[], nn.Module], Callable[[int], nn.Module], int]] = [
    (lambda: nn.Conv1d(2, 4, 3), nn.BatchNorm1d, 1),
    (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d, 2),
    (lambda: nn.Conv2d(2, 4, 3, bias=False, groups=2), nn.BatchNorm2d, 2),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d, 2),
    (lambda: nn.Conv2d(2, 4, 3), lambda n: nn.BatchNorm2d(n, affine=False), 2),
    (lambda: nn.Conv3d(2, 4, 2), nn.BatchNorm3d, 3),
    (lambda: nn.ConvTranspose1d(2, 4, 3), nn.BatchNorm1d, 1),
    (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, bias=False), nn.BatchNorm2d, 2),
    (lambda: nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d, 3),
]


@pytest.mark.parametrize(("layer", "norm", "dimensions"), LAYERS)
def test_every_convolution(
    layer: Callable[[], nn.Module], norm: Callable[[int], nn.Module], dimensions: int
) -> None:
    torch.manual_seed(0)
    assert_folds(settle(nn.Sequential(layer(), norm(4), nn.SiLU())), images(2, dimensions), 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_linear(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    layers = (
        nn.Linear(6, 5, bias=bias),
        nn.BatchNorm1d(5, affine=affine),
        nn.Tanh(),
        nn.Linear(5, 2),
    )
    assert_folds(settle(nn.Sequential(*layers)), images()[:, 0, 0], 1)


class Residual(nn.Module):
    """The skip passes `conv` by, so its batch norm folds; what `shared` gives is added again, so
    its own does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.shared, self.late = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))) + x
        z = self.shared(y)
        return (self.late(z) + z).mean((2, 3))


def test_an_output_that_something_else_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    folded = assert_folds(settle(Residual()), images(), 1)
    assert isinstance(folded.norm, nn.Identity)


class Twice(nn.Module):
    """One convolution called twice, each time in front of a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = (
            nn.Conv2d(2, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.BatchNorm2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(F.relu(self.one(self.conv(x)))))


class TwiceNormed(nn.Module):
    """One batch norm called twice, behind a convolution of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.two(F.relu(self.norm(self.one(x)))))


class Steered(nn.Module):
    """On other rows the convolution's output goes past the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if (x.sum() < 1e9) else y


class Scaled(nn.Conv2d):
    """A convolution whose weight is computed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias)


class Activated(nn.BatchNorm2d):
    """A batch norm that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ByLength(nn.Module):
    """BatchNorm1d takes [rows, length, features] by its length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x[:, 0]))


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    net[0].register_forward_hook(lambda module, args, out: out * 2)
    return net


@pytest.mark.parametrize(
    "build",
    [
        Twice,
        TwiceNormed,
        Steered,
        ByLength,
        hooked,
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(Scaled(2, 2, 3), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), Activated(2)),
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()),
    ],
)
def test_what_cannot_be_folded_is_left_alone(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert foldable_pairs(settle(build()), (images(),)) == ()


def test_a_scripted_module_has_no_pairs() -> None:
    net = settle(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    assert foldable_pairs(torch.jit.script(net), (images(),)) == ()


def test_train_mode_is_not_folded() -> None:
    net = settle(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))).train()
    assert foldable_pairs(net, (images(),)) == ()


class Alias(nn.Module):
    """Layers registered under two names, and called through shape checks and a loop that no tracer
    follows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
        self.steps = nn.ModuleList([self.conv, self.norm])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or len(x) == 0:
            raise ValueError("images only")
        for step in self.steps:
            x = step(x)
        return x


def test_modules_with_two_names_are_folded_under_both() -> None:
    torch.manual_seed(0)
    folded = assert_folds(settle(Alias()), images(), 1)
    assert folded.steps[0] is folded.conv
    assert isinstance(folded.steps[1], nn.Identity)


class Centred(nn.Sequential):
    """Changes its argument in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(1))


def test_the_rows_tried_are_not_changed() -> None:
    x = images()
    assert len(foldable_pairs(settle(Centred(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))), (x,))) == 1
    assert torch.equal(x, images())


def test_pairs_name_modules_in_the_order_of_their_calls() -> None:
    net = settle(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)),
            nn.Conv2d(2, 2, 3),
            nn.BatchNorm2d(2),
        )
    )
    assert foldable_pairs(net, (images(),)) == (Pair("0.0", "0.1"), Pair("1", "2"))


def test_float32_weights_are_folded_in_float64_and_rounded_once() -> None:
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))).float()
    pairs = (Pair("0", "1"),)
    folded, wide = fold(net, pairs), fold(net.double(), pairs)
    assert folded[0].weight.dtype == torch.float32
    torch.testing.assert_close(folded[0].weight, wide[0].weight.float(), rtol=0, atol=0)
