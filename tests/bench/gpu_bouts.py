"""What is measured on a GPU: models with their rows, on a device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import zoo
from minilm import WIDTH, Sentiment
from models import rows as uniform_rows
from torch import Tensor, nn
from zoo import Case, Missing

from integrand.schemas.specs.accuracy import Adaptive
from integrand.service.demos.mnist import (
    digits_cnn,
    load_digits,
    scale,
    split_digits,
    train_digits,
    vary,
)

TOKENS = 56


@dataclass(frozen=True, kw_only=True)
class Bout:
    """A model and its rows.

    build      the case on the CPU, of so many rows; `fitted` False leaves random weights
    rows       that are attributed
    limits     batches among which the limit is sought
    captum     internal batches among which Captum's is; none: it takes no part
    tolerance  of the adaptive mode
    checked    rows that are held against a reference
    nodes      of the reference
    opaque     the engine gets a function, of which it knows no closed form
    most       evaluations of a row
    """

    build: Callable[..., Case]
    rows: int
    limits: tuple[int, ...]
    captum: tuple[int, ...]
    tolerance: float
    checked: int
    nodes: int
    opaque: bool = False
    most: int = 512

    @property
    def adaptive(self) -> Adaptive:
        return Adaptive(tolerance=self.tolerance, max_evaluations=self.most)

    def reduced(self) -> Bout:
        return replace(
            self,
            build=partial(self.build, fitted=False),
            rows=2,
            limits=(4, 8),
            captum=(64,) if self.captum else (),
            tolerance=max(self.tolerance, 1e-2),
            checked=2,
            nodes=64,
            most=31,
        )


def perceptron(activation: str, count: int, *, fitted: bool = True) -> Case:
    """96-256-256-10 on uniform rows, its fourth output against zeros."""
    unit = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]
    model: nn.Module = nn.Sequential(
        nn.Linear(96, 256), unit(), nn.Linear(256, 256), unit(), nn.Linear(256, 10)
    )
    if fitted:
        model = zoo.fitted_classifier(activation)
    x = torch.from_numpy(uniform_rows(count))
    smooth = activation != "relu"
    name = f"MLP-96 {unit.__name__}"
    return Case(name, model, x, torch.zeros(1, 96), 3, smooth=smooth)


def digits(count: int, *, fitted: bool = True) -> Case:
    """The batch-normed ReLU CNN of `integrand demo digits` on held-out digits, turned and noisy
    beyond the first 300; log-probabilities of their classes, against black.
    """
    train, held = split_digits(load_digits())
    model = train_digits(train) if fitted else digits_cnn()
    index = torch.arange(count) % len(held.labels)
    x = scale(held.pixels)[index]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x[len(held.labels) :] = vary(x)[len(held.labels) :]
    labels = torch.from_numpy(held.labels)[index]
    black = torch.full((1, 1, 28, 28), -1.0)
    return Case("MNIST CNN", model, x, black, labels, smooth=False)


def transformer(count: int, *, fitted: bool = True) -> Case:
    """MiniLM's sentiment on reviews, or where its weights are not installed a model of its size
    with random ones, at word embeddings against zeros.
    """
    if fitted:
        try:
            return zoo.reviews(count)
        except Missing:
            pass
    torch.manual_seed(0)
    tokens = TOKENS if fitted else 4
    x = 0.05 * torch.randn(count, tokens, WIDTH)
    mask = torch.ones(count, tokens, dtype=torch.bool)
    blank = torch.zeros(1, tokens, WIDTH)
    return Case("MiniLM's size, random", Sentiment(), x, blank, forward_args=(mask,))


_WIDE = tuple(1 << power for power in range(10, 22, 2))
_SMALL = tuple(1 << power for power in range(4, 12))
_GELU = Bout(
    build=partial(perceptron, "gelu"),
    rows=2048,
    limits=_WIDE,
    captum=(2048, 16384, 102400),
    tolerance=1e-3,
    checked=512,
    nodes=512,
)
BOUTS = {
    "gelu": _GELU,
    "relu": replace(
        _GELU,
        build=partial(perceptron, "relu"),
        tolerance=1e-2,
        checked=256,
        nodes=16384,
        opaque=True,
    ),
    "gelu-many": replace(_GELU, rows=262_144, captum=()),
    "digits": Bout(
        build=digits,
        rows=2048,
        limits=tuple(1 << power for power in range(8, 18, 2)),
        captum=(2048, 8192, 32768),
        tolerance=1e-2,
        checked=256,
        nodes=8192,
    ),
    "transformer": Bout(
        build=transformer,
        rows=64,
        limits=_SMALL,
        captum=(128, 1024),
        tolerance=1e-3,
        checked=16,
        nodes=256,
    ),
}


# --- on a device ---------------------------------------------------------------------------------


def placed(case: Case, device: torch.device) -> Case:
    """On a device, in eval mode, with frozen weights."""
    target = case.target.to(device) if isinstance(case.target, Tensor) else case.target
    return replace(
        case,
        model=copy.deepcopy(case.model).to(device).eval().requires_grad_(False),
        inputs=case.inputs.to(device),
        baselines=case.baselines.to(device),
        target=target,
        forward_args=tuple(a.to(device) for a in case.forward_args),
    )


def explained(case: Case, points: Tensor, rows: Tensor) -> Tensor:
    """The explained output at points on the paths of some rows, `[points]`."""
    out = case.model(points, *[a[rows] for a in case.forward_args])
    if case.target is None:
        return out.reshape(len(out))
    if isinstance(case.target, Tensor):
        return out.gather(1, case.target[rows, None])[:, 0]
    return out[:, case.target]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def peak_of(run: Callable[[], object], device: torch.device) -> str:
    """MiB allocated at the peak of a call."""
    if device.type != "cuda":
        return "–"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f}"
