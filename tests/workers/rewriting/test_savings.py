"""Which savings are chosen for which model, that they agree with it, and that what disagrees is
left out.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrand.schemas.errors import IntegrityError
from integrand.workers.models.outputs import target_table
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.choosing import choose
from integrand.workers.rewriting.folding import Pair
from integrand.workers.rewriting.layout import lay_out
from integrand.workers.rewriting.savings import Rewritten, Savings, apply

ROWS = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frozen(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(draw(m.num_features, seed=2))
            m.running_var.copy_(draw(m.num_features, seed=3).square() + 0.5)
    return module.eval().requires_grad_(False)


def choice(
    module: nn.Module, *inputs: Tensor, arguments: tuple[Tensor, ...] = (), target: int | None = 0
) -> Savings:
    baselines = tuple(torch.zeros_like(x[:1]) for x in inputs)
    table = target_table(target, len(inputs[0]))
    return choose(module, RowTensors(inputs, baselines, arguments, table))


def gradient(rewritten: Rewritten, x: Tensor, target: int) -> Tensor:
    """At 0.3 of the way from 0 to x, by way of the hidden tensors where there are some."""
    hoisted = rewritten.hoisted
    start, stop = (
        ((torch.zeros_like(x),), (x,))
        if hoisted is None
        else (hoisted.prefix(torch.zeros_like(x)), hoisted.prefix(x))
    )
    points = [
        (a + 0.3 * (b - a)).detach().requires_grad_() for a, b in zip(start, stop, strict=True)
    ]
    out = (hoisted.tail if hoisted else rewritten.forward)(*points)
    found = torch.autograd.grad(out[:, target].sum(), points)
    return hoisted.pull(found)[0] if hoisted else found[0]


def assert_agrees(module: nn.Module, savings: Savings, x: Tensor, target: int = 0) -> None:
    """In float64, for rows that `choose` did not see too."""
    plain, x = module.double(), x.double()
    rewritten = apply(plain, savings, (x,))
    expected = gradient(Rewritten(plain), x, target)
    torch.testing.assert_close(gradient(rewritten, x, target), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rewritten.forward(x), plain(x), rtol=1e-10, atol=1e-12)


def wide_mlp() -> nn.Module:
    layers = [
        nn.Linear(300, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(inplace=True),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    ]
    return frozen(nn.Sequential(*layers))


class Net(nn.Module):
    """Convolutions with batch norm, a skip and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.again(self.block(x)) + x)
        return self.head(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1))


def test_a_wide_mlp_is_folded_and_hoisted() -> None:
    torch.manual_seed(0)
    net = wide_mlp()
    savings = choice(net, draw(ROWS, 300), target=2)
    assert savings == Savings(
        ("fold_batch_norm", "hoist_affine"),
        (Pair("0", "1"),),
        ("_1",),
        (("channels_last", "no 2-d or 3-d convolution"),),
    )
    assert apply(net, savings, (torch.zeros(1, 300),)).hoisted is not None
    assert_agrees(net, savings, draw(40, 300, seed=5), 2)


def test_a_convolutional_net_is_folded_and_laid_out() -> None:
    torch.manual_seed(0)
    net, x = frozen(Net()), draw(ROWS, 3, 8, 8)
    savings = choice(net, x)
    assert savings.names == ("fold_batch_norm", "channels_last")
    assert savings.folded == (Pair("stem", "norm"), Pair("block", "again"))
    assert dict(savings.left_out).keys() == {"hoist_affine"}
    rewritten = apply(net, savings, (torch.zeros(1, 3, 8, 8),))
    assert rewritten.forward.module.block.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.block.weight.is_contiguous()
    assert not rewritten.forward.training
    torch.testing.assert_close(rewritten.forward(x), net(x), rtol=1e-4, atol=1e-5)
    assert_agrees(net, savings, draw(20, 3, 8, 8, seed=5))


def test_kinks_of_what_does_not_move_do_not_disagree() -> None:
    """Elements at their baseline may keep a ReLU on its kink, where rounding decides; no
    attribution arises there.
    """
    torch.manual_seed(0)
    first, norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
    net = nn.Sequential(first, norm, nn.ReLU(), nn.Linear(64, 3)).double()
    frozen(net)
    first.weight.copy_(torch.eye(64))
    norm.bias.copy_(-norm(first.bias[None])[0])
    x = draw(ROWS, 64).double()
    x[:, ::2] = 0
    savings = choice(net, x)
    assert "fold_batch_norm" in savings.names
    plain, folded = (gradient(Rewritten(m), x, 0) for m in (net, apply(net, savings, (x,)).forward))
    assert not torch.allclose(plain[:, ::2], folded[:, ::2])
    torch.testing.assert_close(plain[:, 1::2], folded[:, 1::2], rtol=1e-11, atol=1e-11)


def test_volumes_are_laid_out_too() -> None:
    torch.manual_seed(0)
    net = frozen(nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)))
    x = draw(ROWS, 2, 4, 4, 4)
    assert choice(net, x).names == ("channels_last", "hoist_affine")
    placed = lay_out(net, (x,))
    assert placed.module[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(placed(x), net(x))


def test_a_scripted_convolution_is_laid_out() -> None:
    torch.manual_seed(0)
    net = torch.jit.script(
        frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    )
    assert choice(net, draw(ROWS, 3, 6, 6)).names == ("channels_last",)


def test_the_same_model_and_rows_choose_the_same() -> None:
    def chosen() -> Savings:
        torch.manual_seed(0)
        return choice(frozen(Net()), draw(ROWS, 3, 8, 8))

    assert chosen() == chosen()


class Masked(nn.Module):
    """A wide masked input and a small one, merged before anything bends."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.small = nn.Linear(200, 16), nn.Linear(20, 16)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        return (self.wide(a * mask) + self.small(b)).tanh().sum(1)


def test_several_inputs_with_a_mask_are_hoisted() -> None:
    torch.manual_seed(0)
    mask = (draw(ROWS, 200, seed=4) > 0).float()
    net = frozen(Masked())
    savings = choice(net, draw(ROWS, 200), draw(ROWS, 20, seed=1), arguments=(mask,), target=None)
    assert (savings.names, savings.frontier) == (("hoist_affine",), ("add",))
    rewritten = apply(
        net, savings, (torch.zeros(1, 200), torch.zeros(1, 20)), (torch.zeros(1, 200),)
    )
    assert rewritten.hoisted.prefix(draw(3, 200), draw(3, 20), torch.ones(3, 200))[0].shape == (
        3,
        16,
    )


# --- what must be left out ---------------------------------------------------------------------


class Hidden(nn.Module):
    """Calls its layers from a list of its own, where no copy of the registry finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.calls = [self.conv, self.norm]

    def forward(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x.relu().mean((2, 3))


class Ignored(nn.Module):
    """A layer that hands its weight to the convolution, but not the bias that folding gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.conv.weight)).relu().mean((2, 3))


@pytest.mark.parametrize("build", [Hidden, Ignored])
def test_a_structure_that_lies_is_found_out(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    savings = choice(frozen(build()), draw(ROWS, 3, 8, 8))
    assert savings.names == ("channels_last", "hoist_affine")
    assert savings.folded == ()
    assert "differs from the plain model by" in dict(savings.left_out)["fold_batch_norm"]


class Traced(nn.Module):
    """Goes another way under a tracer than with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(200, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden.sin() if isinstance(x, Tensor) else hidden.tanh())


class Mixing(nn.Module):
    """Rows change places before the prefix ends, and back after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(200, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).flip(0).tanh().flip(0))


@pytest.mark.parametrize("build", [Traced, Mixing])
def test_a_prefix_that_disagrees_is_found_out(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    savings = choice(frozen(build()), draw(ROWS, 200))
    assert savings.names == ()
    assert "differs from the plain model by" in dict(savings.left_out)["hoist_affine"]


class Viewing(nn.Module):
    """`view` across channels fails where they are innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().view(len(x), 4, -1).view(len(x), -1).square()


def test_what_fails_is_left_out_and_the_rest_stays() -> None:
    torch.manual_seed(0)
    savings = choice(frozen(Viewing()), draw(ROWS, 3, 6, 6), target=1)
    assert savings.names == ("fold_batch_norm",)
    assert dict(savings.left_out)["channels_last"].startswith("RuntimeError: view size")


class Particular(nn.Module):
    """Views across channels in single precision only, so that float64 shows nothing wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        return (y.view(len(x), -1) if y.dtype == torch.float32 else y.flatten(1)).square()


def test_what_fails_in_its_own_precision_is_left_out() -> None:
    torch.manual_seed(0)
    savings = choice(frozen(Particular()), draw(ROWS, 3, 6, 6), target=1)
    assert savings.names == ("fold_batch_norm",)
    assert dict(savings.left_out)["channels_last"].startswith("RuntimeError: view size")


class Casting(nn.Module):
    """Single precision inside, whatever comes in: float64 can show nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(200, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.float()).tanh())


def test_a_model_that_cannot_run_in_float64_keeps_its_form() -> None:
    savings = choice(frozen(Casting()), draw(ROWS, 200))
    assert savings.names == ()
    assert dict(savings.left_out)["hoist_affine"].startswith("in float64, RuntimeError")


class Rounding(nn.Module):
    """A cast is affine where it changes nothing, so the prefix in float32 is longer than the one
    compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(200, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.to(torch.float32).to(self.first.weight.dtype)).tanh())


def test_a_prefix_that_float64_does_not_have_is_left_out() -> None:
    savings = choice(frozen(Rounding()), draw(ROWS, 200))
    assert savings.names == ()
    assert dict(savings.left_out)["hoist_affine"].startswith("IntegrityError")


def test_rows_equal_to_their_baseline_show_nothing() -> None:
    savings = choice(wide_mlp(), torch.zeros(ROWS, 300))
    assert savings.names == ()
    assert {reason for _, reason in savings.left_out} == {"no row tried differs from its baseline"}


def test_a_function_has_no_savings() -> None:
    net = wide_mlp()
    table = target_table(0, ROWS)
    rows = RowTensors((draw(ROWS, 300),), (torch.zeros(1, 300),), target=table)
    savings = choose(lambda x: net(x), rows)
    assert savings.names == ()
    assert {reason for _, reason in savings.left_out} == {"the model is not a torch.nn.Module"}


def test_rows_without_a_finite_result_decide_nothing() -> None:
    x = draw(ROWS, 300)
    x[0] = torch.nan
    assert choice(wide_mlp(), x).names == ("fold_batch_norm", "hoist_affine")
    assert choice(wide_mlp(), torch.full_like(x, torch.nan)).names == ()


def test_a_saturated_output_still_agrees() -> None:
    """The gradient of log p is 1 − p there, a hundred million times less than 1."""
    torch.manual_seed(0)
    net = wide_mlp()
    net[5].bias[0] += 20
    assert choice(nn.Sequential(net, nn.LogSoftmax(1)).eval(), draw(ROWS, 300)).names == (
        "fold_batch_norm",
        "hoist_affine",
    )


class Rooted(nn.Module):
    """The gradient of a row whose first feature is negative is NaN, its output is not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = wide_mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (x[:, :1] * (x[:, :1].sign() + 1)).sqrt()


def test_rows_without_a_finite_gradient_decide_nothing() -> None:
    torch.manual_seed(0)
    x = draw(ROWS, 300)
    x[:, 0] = torch.tensor([-1.0, 1, -1, 1, 1, 1])
    assert choice(frozen(Rooted()), x).names == ("fold_batch_norm", "hoist_affine")


def test_another_prefix_than_planned_is_refused() -> None:
    net = wide_mlp()
    savings = choice(net, draw(ROWS, 300))
    other = nn.Sequential(net[0], net[1], nn.Linear(32, 32), *net[2:]).eval()
    with pytest.raises(IntegrityError, match="affine prefix"):
        apply(other, savings, (torch.zeros(1, 300),))
    with pytest.raises(IntegrityError, match="affine prefix"):
        apply(
            torch.jit.script(net),
            Savings(("hoist_affine",), (), savings.frontier),
            (torch.zeros(1, 300),),
        )
