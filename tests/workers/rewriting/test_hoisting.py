"""The affine prefix: which operations belong to it, that both halves make the model, and that
gradients pull back.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrand.workers.rewriting.flops import worthwhile
from integrand.workers.rewriting.hoisting import Hoisted, hoist

Rows = tuple[Tensor, ...]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, VECTORS = draw(5, 4, 6, 6), draw(5, 8)
IMAGE, VECTOR, MATRIX = draw(1, 4, 6, 6, seed=1), draw(8, seed=2), draw(8, 8, seed=3)
MASK = IMAGE > 0


def integrands(
    hoisted: Hoisted, inputs: Rows, baselines: Rows, arguments: Rows, alphas: Tensor
) -> tuple[Tensor, Rows]:
    """Outputs and gradients by the two halves: interpolated where hidden, pulled back."""
    start, stop = hoisted.prefix(*baselines, *arguments), hoisted.prefix(*inputs, *arguments)
    hidden = between(start, stop, alphas)
    out = hoisted.tail(*hidden, *arguments)
    return out.detach(), hoisted.pull(torch.autograd.grad(out.square().sum(), hidden), arguments)


def between(start: Rows, stop: Rows, alphas: Tensor) -> Rows:
    return tuple(
        (a + alphas.reshape(-1, *[1] * (a.ndim - 1)) * (b - a)).detach().requires_grad_()
        for a, b in zip(start, stop, strict=True)
    )


def assert_agrees(module: nn.Module, hoisted: Hoisted, inputs: Rows, arguments: Rows = ()) -> None:
    """Both halves give what the module gives, at another α in each row."""
    alphas = torch.linspace(0.1, 0.9, len(inputs[0]), dtype=torch.float64)
    baselines = tuple(draw(*x.shape, seed=7) for x in inputs)
    points = between(baselines, inputs, alphas)
    # what comes first may change its argument in place
    out = module(*[p * 1 for p in points], *arguments)
    expected = torch.autograd.grad(out.square().sum(), points)
    seen, gradients = integrands(hoisted, inputs, baselines, arguments, alphas)
    torch.testing.assert_close(seen, out.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-11)


class Operation(nn.Module):
    """A smooth function of an operation's result; whatever it needs besides is a constant of the
    graph.
    """

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x).sin().flatten(1).sum(1)


AFFINE: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + IMAGE,
    "add constant": lambda x: 1 + x,
    "subtract": lambda x: 3 - x,
    "torch.sub": lambda x: torch.sub(x, IMAGE, alpha=2),
    "negative": lambda x: -x,
    "multiply": lambda x: x * IMAGE,
    "multiply from the left": lambda x: 2 * x,
    "mask": lambda x: x.masked_fill(MASK, 0.5),
    "divide": lambda x: x / 3,
    "standardise": lambda x: (
        (x - IMAGE.mean((2, 3), keepdim=True)) / IMAGE.std((2, 3), keepdim=True)
    ),
    "skip": lambda x: x + F.conv2d(x, draw(4, 4, 3, 3), padding=1),
    "matmul": lambda x: x @ draw(6, 3),
    "matmul from the left": lambda x: draw(3, 6) @ x,
    "linear": lambda x: F.linear(x, draw(3, 6), draw(3)),
    "conv2d": lambda x: F.conv2d(x, draw(2, 4, 3, 3), draw(2), stride=2),
    "conv1d": lambda x: F.conv1d(x.flatten(2), draw(2, 4, 5)),
    "conv3d": lambda x: F.conv3d(x[:, None], draw(2, 1, 2, 2, 2)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, draw(4, 2, 3, 3)),
    "batch_norm": lambda x: F.batch_norm(x, VECTOR[:4], VECTOR[:4].exp(), VECTOR[4:], VECTOR[4:]),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "bilinear": lambda x: F.interpolate(x, size=(9, 9), mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 2)),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 3),
    "sum": lambda x: x.sum(1),
    "mean": lambda x: torch.mean(x, dim=(2, 3)),
    "cumsum": lambda x: x.cumsum(2),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(x.shape[0], 4, -1),
    "view": lambda x: x.view(x.size(0), -1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "mT": lambda x: x.mT,
    "movedim": lambda x: torch.movedim(x, 1, -1),
    "squeeze and unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "expand": lambda x: x[:, None].expand(-1, 3, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "slice": lambda x: x[:, 1:3, ::2],
    "ellipsis": lambda x: x[..., 0],
    "index": lambda x: x[:, torch.tensor([2, 0, 0])],
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 1])),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "select": lambda x: x.select(3, 2),
    "chunk": lambda x: x.chunk(2, 1)[0] - x.chunk(2, 1)[1],
    "split": lambda x: torch.cat(
        [part * (i + 1) for i, part in enumerate([x.split(2, 1)[0], x.split(2, 1)[1]])], 1
    ),
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "stack": lambda x: torch.stack([x, x.flip(3)], 1),
    "roll": lambda x: x.roll(1, 2),
    "clone and contiguous": lambda x: x.transpose(1, 2).contiguous().clone(),
    "cast to its own": lambda x: x.double(),
    "inactive dropout": lambda x: F.dropout(x, 0.5, training=False),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "square": lambda x: x * x,
    "product with itself": lambda x: x * x.flip(3),
    "matmul with itself": lambda x: x @ x.mT,
    "reciprocal": lambda x: 1 / (x + 10),
    "softmax": lambda x: x.softmax(1),
    "layer_norm": lambda x: F.layer_norm(x, (6, 6)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "floor division": lambda x: torch.div(x, 3, rounding_mode="floor") + x,
    "narrower": lambda x: x.float().double(),
    "detach": lambda x: x.detach() + x,
    "batch_norm by the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "mean over rows": lambda x: x.mean(0, keepdim=True) * 0 + x,
    "broadcast over rows": lambda x: (x[:, 0, 0] + IMAGE[:, :, :1]).transpose(0, 2),
    "power": lambda x: x**2,
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_belong_to_the_prefix(name: str) -> None:
    net = Operation(AFFINE[name]).eval()
    hoisted = hoist(net, (IMAGES,))
    assert hoisted is not None
    (hidden,) = hoisted.prefix(IMAGES)
    torch.testing.assert_close(hidden, AFFINE[name](IMAGES), rtol=0, atol=0)
    assert [n.name for n in hoisted.tail.graph.nodes][1] == "sin"
    assert_agrees(net, hoisted, (IMAGES,))


@pytest.mark.parametrize("name", OTHER)
def test_other_operations_stop_it(name: str) -> None:
    hoisted = hoist(Operation(OTHER[name]).eval(), (IMAGES,))
    assert hoisted is not None
    assert not any(n.name == "sin" for n in hoisted.prefix.graph.nodes)
    torch.testing.assert_close(
        hoisted.tail(*hoisted.prefix(IMAGES)), Operation(OTHER[name])(IMAGES)
    )
    assert any(
        n.name not in ("hidden_0", "sin", "flatten", "sum_1", "output")
        for n in hoisted.tail.graph.nodes
    )


MODULES: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(6, 3),
    lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"),
    lambda: nn.ConvTranspose2d(4, 2, 2),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.AvgPool2d(2),
    lambda: nn.AdaptiveAvgPool2d(2),
    lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    lambda: nn.Dropout2d(0.5),
    lambda: nn.ZeroPad2d(1),
    lambda: nn.ReplicationPad2d(1),
    lambda: nn.Flatten(),
    lambda: nn.Unflatten(1, (2, 2)),
    lambda: nn.PixelShuffle(2),
    lambda: nn.Identity(),
]


@pytest.mark.parametrize("build", MODULES)
@pytest.mark.parametrize("inplace", [False, True])
def test_affine_modules_belong_to_the_prefix(build: Callable[[], nn.Module], inplace: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(build(), nn.ELU(inplace=inplace), nn.Flatten()).double().eval()
    hoisted = hoist(net, (IMAGES,))
    assert hoisted is not None
    torch.testing.assert_close(hoisted.prefix(IMAGES)[0], net[0](IMAGES), rtol=0, atol=0)

    assert_agrees(net, hoisted, (IMAGES,))
    assert net[1].inplace is inplace


def mlp(*, norm: bool) -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(4)] if norm else []
    return (
        nn.Sequential(nn.Linear(8, 4), *norms, nn.Dropout(), nn.GELU(), nn.Linear(4, 3))
        .double()
        .eval()
    )


@pytest.mark.parametrize("norm", [False, True])
def test_an_mlp(norm: bool) -> None:
    net = mlp(norm=norm)
    hoisted = hoist(net, (VECTORS,))
    assert hoisted is not None
    torch.testing.assert_close(
        hoisted.prefix(VECTORS)[0], net[: 3 if norm else 2](VECTORS), rtol=0, atol=0
    )
    assert_agrees(net, hoisted, (VECTORS,))


def test_a_model_affine_as_a_whole_has_a_tail_that_hands_on() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).double().eval()
    hoisted = hoist(net, (VECTORS,))
    assert hoisted is not None
    assert [n.op for n in hoisted.tail.graph.nodes] == ["placeholder", "output"]
    assert_agrees(net, hoisted, (VECTORS,))


class Merged(nn.Module):
    """Two inputs, a mask and a scale: a convolution with a skip, a bypass and an affine merge;
    sizes read on the way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.AvgPool2d(2),
        )
        self.beside, self.head = nn.Linear(8, 36), nn.Linear(36, 2)
        self.register_buffer("gain", draw(36, seed=4))

    def forward(
        self, image: Tensor, vector: Tensor, mask: Tensor, scale: Tensor, *, double: bool = False
    ) -> Tensor:
        rows = image.size(0)
        y = self.pool(self.norm(self.conv(image * mask)) + image).reshape(rows, -1)
        merged = y * scale + self.beside(vector)
        hidden = F.gelu(merged) * self.gain
        out = (
            self.head(hidden.view(image.shape[0], merged.shape[1]))
            + vector.square().sum(1, keepdim=True) * scale.exp()
        )
        return 2 * out if double else out


def test_several_inputs_share_the_prefix() -> None:
    torch.manual_seed(0)
    net, arguments = Merged().double().eval(), ((draw(5, 4, 6, 6) > 0).double(), draw(5, 1))
    hoisted = hoist(net, (IMAGES, VECTORS), arguments)
    assert hoisted is not None
    assert [h.shape for h in hoisted.prefix(IMAGES, VECTORS, *arguments)] == [(5, 8), (5, 36)]
    assert_agrees(net, hoisted, (IMAGES, VECTORS), arguments)
    several = tuple(torch.cat([t, t.flip(0)]) for t in (IMAGES, VECTORS, *arguments))
    assert_agrees(net, hoisted, several[:2], several[2:])


def test_pulling_k_vectors_per_row_is_k_rows_and_linear() -> None:
    torch.manual_seed(0)
    net, arguments = Merged().double().eval(), ((draw(5, 4, 6, 6) > 0).double(), draw(5, 1))
    hoisted = hoist(net, (IMAGES, VECTORS), arguments)
    assert hoisted is not None
    ones = (draw(5, 8, seed=5), draw(5, 36, seed=5))
    others = (draw(5, 8, seed=6), draw(5, 36, seed=6))
    transpose = hoisted.transpose(10, tuple(torch.cat([a, a]) for a in arguments))
    both = transpose([torch.cat(pair) for pair in zip(ones, others, strict=True)])
    torch.testing.assert_close(
        both, transpose([torch.cat(pair) for pair in zip(ones, others, strict=True)])
    )
    mixed = hoisted.pull([2 * a - b for a, b in zip(ones, others, strict=True)], arguments)
    torch.testing.assert_close(
        mixed, tuple(2 * p[:5] - p[5:] for p in both), rtol=1e-12, atol=1e-12
    )


class Token(nn.Module):
    """A parameter and a buffer, spread over the rows, beside what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(draw(1, 1, 3))
        self.register_buffer("place", draw(1, 2, 3, seed=1))
        self.embed = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = [self.token.expand(x.shape[0], -1, -1), self.embed(x)[:, None]]
        return (
            (torch.cat(tokens, 1) + self.place.expand(x.shape[0], -1, -1))
            .softmax(1)
            .flatten(1)
            .square()
            .sum(1)
        )


def test_parameters_and_buffers_are_constants() -> None:
    net = Token().double().eval()
    hoisted = hoist(net, (VECTORS,))
    assert hoisted is not None
    assert [h.shape for h in hoisted.prefix(VECTORS)] == [(5, 2, 3)]
    assert_agrees(net, hoisted, (VECTORS,))


class Spread(nn.Module):
    """An argument of higher rank moves the rows to dim 1, where nothing shows in front."""

    def forward(self, x: Tensor, argument: Tensor) -> Tensor:
        return (x + argument).sin().sum((1, 2))


def test_rows_that_broadcasting_moves_stop_the_prefix() -> None:
    hoisted = hoist(Spread().eval(), (VECTORS,), (draw(5, 1, 1),))
    assert hoisted is not None
    assert torch.equal(hoisted.prefix(VECTORS, draw(5, 1, 1))[0], VECTORS)


class Unused(nn.Module):
    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return (2 * x).exp().sum(1)


def test_an_unused_input_gets_zeros() -> None:
    hoisted = hoist(Unused().eval(), (VECTORS, IMAGES))
    assert hoisted is not None
    pulled = hoisted.pull([draw(5, 8)])
    assert pulled[1].shape == IMAGES.shape
    assert not pulled[1].any()
    torch.testing.assert_close(pulled[0], 2 * draw(5, 8))


class Steered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) if x.sum() > 0 else x.square().sum(1)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x
        y.add_(1)
        return y.exp().sum(1)


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 0
        return y.exp().sum(1)


class Odd(nn.Module):
    """A size that 2 and 3 rows show, but not as a number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp().sum(1) / x.numel()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[0])


def hooked() -> nn.Module:
    net = mlp(norm=False)
    net.register_forward_hook(lambda module, args, out: out * 2)
    return net


@pytest.mark.parametrize(
    "build",
    [Steered, InPlace, Assigning, Odd, Constant, hooked, lambda: torch.jit.script(mlp(norm=False))],
)
def test_what_cannot_be_split_is_refused(build: Callable[[], nn.Module]) -> None:
    assert hoist(build().eval(), (VECTORS,)) is None


def test_a_module_with_hooks_is_no_part_of_the_prefix() -> None:
    net = mlp(norm=False)
    net[0].register_forward_hook(lambda module, args, out: out.relu())
    hoisted = hoist(net, (VECTORS,))
    assert hoisted is not None
    assert torch.equal(hoisted.prefix(VECTORS)[0], VECTORS)
    assert_agrees(net, hoisted, (VECTORS,))


def test_the_module_is_not_touched_and_neither_half_trains() -> None:
    net = (
        nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True)), nn.Linear(4, 2))
        .double()
        .eval()
    )
    names = [name for name, _ in net.named_modules()]
    hoisted = hoist(net, (VECTORS,))
    assert hoisted is not None
    assert not any(m.training for half in (hoisted.prefix, hoisted.tail) for m in half.modules())
    assert [name for name, _ in net.named_modules()] == names
    assert net[0][1].inplace


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (
            [nn.Linear(600, 64), nn.GELU(), nn.Linear(64, 5)],
            True,
        ),  # nearly all of it is the first layer
        (
            [nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 1)],
            False,
        ),  # half of it
        (
            [nn.Linear(96, 97), nn.GELU(), nn.Linear(97, 1)],
            False,
        ),  # hidden is larger than the input
        ([nn.GELU(), nn.Linear(96, 5)], False),  # no prefix
        ([nn.Linear(96, 64), nn.Linear(64, 5)], True),  # all of it
        ([nn.Softmax(1)], False),  # nothing to count
    ],
)
def test_worth_is_a_matter_of_flops_and_shapes(layers: list[nn.Module], wanted: bool) -> None:
    net = nn.Sequential(*layers).double().eval()
    x = draw(3, getattr(layers[0], "in_features", 96))
    hoisted = hoist(net, (x,))
    assert hoisted is not None
    assert worthwhile(net, hoisted, (x,)) is wanted
    assert worthwhile(net, hoisted, (torch.cat([x, x]),)) is wanted
