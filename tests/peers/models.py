"""Small networks and functions that attribution libraries test themselves on, written anew from
their definitions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

F64 = torch.float64


def drawn(model: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """The model in float64 and eval mode, its weights drawn from `seed` alone: the global stream
    has no say.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 9
            parameter.copy_(
                gain * torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
            )
    return model.double().eval()


def tensor(*rows: object) -> Tensor:
    """Rows as a float64 tensor."""
    return torch.tensor(rows, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- Captum's BasicModels ----------------------------------------------------------------------


def b1(v: Tensor) -> Tensor:
    return (1 - (1 - v).relu()).sum(1)


def b2(a: Tensor, b: Tensor) -> Tensor:
    return (a.relu() - 1 - b.relu()).relu().sum(1)


def b3(a: Tensor, b: Tensor) -> Tensor:
    return ((a - 1).relu() - b.relu()).relu().sum(1)


def b4(a: Tensor, b: Tensor, divisor: Tensor) -> Tensor:
    return ((a - 1).relu() - b.relu() / divisor).relu()


def b5(a: Tensor, b: Tensor) -> Tensor:
    return (2 * (a - 1).relu() - 3 * b.relu()).relu()


def b6(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (1 - (a + b)[:, 1]).relu()


def hidden(v: Tensor) -> Tensor:
    """Of the multi-layer model: relu(s − 10, s + 1, s + 1, s + 1), s the sum of the inputs."""
    s = v.sum(1, keepdim=True)
    return torch.cat([s - 10, s + 1, s + 1, s + 1], 1).relu()


def head(h: Tensor) -> Tensor:
    return torch.stack([h.sum(1) - 1, h.sum(1) + 1], 1)


def multilayer(v: Tensor) -> Tensor:
    return head(hidden(v))


def multidim(v: Tensor) -> Tensor:
    """out[c, j, k] = multilayer[c] · (1, 2)[j] · (1, 4)[k]."""
    return torch.einsum("rc,j,k->rcjk", multilayer(v), v.new_tensor([1, 2]), v.new_tensor([1, 4]))


def two_branches(a: Tensor, b: Tensor) -> Tensor:
    return (3 * a[:, 0] + a[:, 1]).relu() + (2 * b[:, 0] + 3 * b[:, 1]).relu()


def softmax_model() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Linear(40, 20),
            nn.ReLU(),
            nn.Linear(20, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
            nn.Softmax(1),
        ),
        gain=0.3,
    )


def sigmoid_model() -> nn.Module:
    return drawn(
        nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2), nn.Sigmoid()), gain=0.3
    )


# --- networks of today's kinds -----------------------------------------------------------------


def mlp(
    activation: type[nn.Module] = nn.GELU, features: int = 5, outputs: int = 3, seed: int = 0
) -> nn.Module:
    layers = (
        nn.Linear(features, 24),
        activation(),
        nn.Linear(24, 24),
        activation(),
        nn.Linear(24, outputs),
    )
    return drawn(nn.Sequential(*layers), seed, gain=1.3)


def conv_net(activation: type[nn.Module]) -> nn.Module:
    """[rows, 2, 8, 8] to 4 logits, with batch norm whose statistics are not the default ones."""
    norm = nn.BatchNorm2d(6)
    net = drawn(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            norm,
            activation(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3),
            activation(),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
    )
    norm.running_mean.copy_(normal(6, seed=5) / 3)
    norm.running_var.copy_(normal(6, seed=6).square() + 0.5)
    return net


def pooled_net() -> nn.Module:
    """ReLU and max pooling: piecewise linear."""
    return drawn(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )
    )


class Recurrent(nn.Module):
    """[rows, time, 4] to 2 logits from the last state."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.last = cell(4, 7, num_layers=2, batch_first=True), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x)[0][:, -1])


class Reader(nn.Module):
    """Token ids and a mask to 2 logits: embedding, position, one encoder layer, mean over the
    tokens that count.
    """

    def __init__(self, width: int = 8, tokens: int = 11, length: int = 6) -> None:
        super().__init__()
        self.embedding, self.position = (
            nn.Embedding(tokens, width),
            nn.Parameter(torch.zeros(length, width)),
        )
        self.encoder = nn.TransformerEncoderLayer(width, 2, 16, activation="gelu", batch_first=True)
        self.last = nn.Linear(width, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.read(self.embedding(ids), mask)

    def read(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """From the embedding's output on: what is attributed, since ids have no gradient."""
        seen = self.encoder(embedded + self.position, src_key_padding_mask=~mask)
        return self.last((seen * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


class Mixed(nn.Module):
    """Numbers, an image and a category's embedding to one number per row."""

    def __init__(self) -> None:
        super().__init__()
        self.categories, self.conv, self.last = (
            nn.Embedding(5, 3),
            nn.Conv2d(1, 2, 3),
            nn.Linear(4 + 8 + 3, 1),
        )

    def forward(self, numbers: Tensor, image: Tensor, category: Tensor) -> Tensor:
        parts = [numbers, self.conv(image).tanh().flatten(1), self.categories(category).tanh()]
        return self.last(torch.cat(parts, 1).sin())


class Scaled(nn.Module):
    """Everything that matters sits in buffers."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale).pow(3).sum(1)
