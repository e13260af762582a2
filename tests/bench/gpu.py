"""The engine on a GPU: beside the card's own limit and Captum, and against float64 references.

Run it on any machine with a CUDA device: `python tests/bench/gpu.py`. It prints markdown. For every
model: the limit (forward and backward in a bare loop, frozen weights, resident inputs, the best of
a few batches), Captum with 50 Gauss-Legendre nodes at its best internal batch, the engine at the
same nodes, and adaptive at a stated tolerance. All take turns in every round; medians, and ranges
over rounds, are of per-round figures. TF32 is off for all. `--device cpu --smoke` shows in seconds
that it runs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import zoo
from minilm import WIDTH, Sentiment
from models import rows as uniform_rows
from references import composite_gauss, midpoints, relative_error
from sheet import Sheet, spread
from torch import Tensor, nn
from zoo import Case, Missing

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, FixedSteps
from integrand.service.demos.mnist import (
    digits_cnn,
    load_digits,
    scale,
    split_digits,
    train_digits,
    vary,
)
from integrand.workers import Attribution, attribute, prepare

Forward = Callable[..., Tensor]
FIFTY = FixedSteps(rule="gauss_legendre", steps=50)
TOKENS = 56
COLUMNS = (
    "model, rows",
    "who",
    "batch",
    "s",
    "evaluations/row",
    "rows/s",
    "× Captum",
    "ρ",
    "peak MiB",
    "padded",
    "not ok",
)
REMARKS = (
    "s, × Captum, ρ: medians and ranges over rounds. ρ: seconds of the evaluations at the limit"
    " of the same round over the seconds taken.",
    "peak MiB: torch.cuda.max_memory_allocated during one call, weights and rows included.",
    "batch: of ours as chosen by the engine; of Captum the fastest of those tried.",
)


# --- what is measured ----------------------------------------------------------------------------


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
BOUTS = {
    "gelu": Bout(
        build=partial(perceptron, "gelu"),
        rows=2048,
        limits=_WIDE,
        captum=(2048, 16384, 102400),
        tolerance=1e-3,
        checked=512,
        nodes=512,
    ),
    "relu": Bout(
        build=partial(perceptron, "relu"),
        rows=2048,
        limits=_WIDE,
        captum=(2048, 16384, 102400),
        tolerance=1e-2,
        checked=256,
        nodes=16384,
        opaque=True,
    ),
    "gelu-many": Bout(
        build=partial(perceptron, "gelu"),
        rows=262_144,
        limits=_WIDE,
        captum=(),
        tolerance=1e-3,
        checked=512,
        nodes=512,
    ),
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


# --- the limit -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Limit:
    """Gradients of one batch, over and over: points on the paths of some rows."""

    case: Case
    rows: Tensor
    points: Tensor

    @property
    def batch(self) -> int:
        return len(self.rows)

    def run(self) -> None:
        values = explained(self.case, self.points, self.rows)
        torch.autograd.grad(values.sum(), self.points)

    def seconds(self, least: float) -> float:
        """Of one gradient, in a turn of at least so many seconds."""
        device = self.points.device
        once = seconds_of(self.run, device)
        times = max(1, min(200, round(least / once)))
        taken = seconds_of(lambda: [self.run() for _ in range(times)], device)
        return taken / times / self.batch


def limit_at(case: Case, batch: int) -> Limit:
    rows = torch.arange(batch, device=case.inputs.device) % case.rows
    shape = (batch, *[1] * (case.inputs.ndim - 1))
    places = torch.linspace(0, 1, batch, device=rows.device).reshape(shape)
    points = torch.lerp(case.baselines, case.inputs[rows], places)
    return Limit(case, rows, points.requires_grad_())


def best_limit(case: Case, batches: tuple[int, ...], least: float) -> Limit:
    """At the fastest batch that fits."""
    found: list[tuple[float, Limit]] = []
    for batch in batches:
        try:
            limit = limit_at(case, batch)
            limit.run()
            found.append((limit.seconds(least), limit))
        except torch.OutOfMemoryError:
            break
    return min(found, key=lambda one: one[0])[1]


# --- contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """Attributions `[rows, ...]`, evaluations per row; ours: which rows are certified, evaluations
    that only filled batches up, and the batch.
    """

    attributions: Tensor
    evaluations: float
    certified: Tensor | None = None
    padded: int | None = None
    batch: int = 0


@dataclass(frozen=True, eq=False)
class Captum:
    case: Case
    batch: int
    name: str = "Captum, 50 nodes"

    def __call__(self) -> Outcome:
        from captum.attr import IntegratedGradients

        case = self.case
        found = IntegratedGradients(case.model).attribute(
            case.inputs,
            case.baselines,
            target=0 if case.target is None else case.target,
            additional_forward_args=case.forward_args or None,
            n_steps=50,
            method="gausslegendre",
            internal_batch_size=max(self.batch, case.rows),
        )
        return Outcome(found, 50.0, batch=self.batch)


@dataclass(frozen=True, eq=False)
class Ours:
    """`attribute`, of `forward` in place of the case's model."""

    case: Case
    forward: Forward
    accuracy: Accuracy
    name: str

    def __call__(self) -> Outcome:
        found: Attribution = attribute(
            self.forward,
            self.case.inputs,
            baselines=self.case.baselines,
            target=self.case.target,
            forward_args=self.case.forward_args,
            accuracy=self.accuracy,
        )
        assert isinstance(found.attributions, Tensor)
        vouches = not isinstance(self.accuracy, FixedSteps)
        return Outcome(
            found.attributions,
            float(found.evaluations.double().mean()),
            torch.tensor([status == "ok" for status in found.status]) if vouches else None,
            found.padded,
            found.batch_rows,
        )


def ours(bout: Bout, case: Case, accuracy: Accuracy, name: str = "") -> Ours:
    """With what a plan would make of the model; or with a function that hides it."""
    model = case.model
    if bout.opaque:
        return Ours(case, lambda *arguments: model(*arguments), accuracy, name)
    few = case.take(slice(0, 8))
    prepared = prepare(
        model,
        few.inputs,
        baselines=few.baselines,
        target=few.target,
        forward_args=few.forward_args,
        accuracy=accuracy,
    )
    return Ours(case, prepared, accuracy, name)


def best_captum(case: Case, batches: tuple[int, ...]) -> Captum | None:
    """The fastest of a few internal batches, the first call of each aside."""
    device = case.inputs.device
    found: list[tuple[float, Captum]] = []
    for batch in batches:
        contender = Captum(case, batch)
        try:
            contender()
            found.append((seconds_of(contender, device), contender))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(found, key=lambda one: one[0])[1] if found else None


Contender = Captum | Ours


def contenders(bout: Bout, case: Case) -> list[Contender]:
    captum = best_captum(case, bout.captum)
    same = ours(bout, case, FIFTY, "the same 50 nodes")
    certified = ours(bout, case, bout.adaptive, f"adaptive {bout.tolerance:g}")
    return [captum, same, certified] if captum else [same, certified]


# --- rounds --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Race:
    """Seconds of each contender and of the limit's gradients, by round."""

    seconds: dict[str, list[float]]
    limit: list[float]
    outcomes: dict[str, Outcome]


def race(entries: list[Contender], limit: Limit, rounds: int, least: float) -> Race:
    """All in turns, forwards and backwards, after one round that does not count."""
    device = limit.case.inputs.device
    outcomes = {entry.name: entry() for entry in entries}
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
    limits: list[float] = []
    for turn in range(rounds):
        limits.append(limit.seconds(least))
        for entry in entries if turn % 2 else entries[::-1]:
            seconds[entry.name].append(seconds_of(entry, device))
    return Race(seconds, limits, outcomes)


def lines(bout: Bout, case: Case, rounds: int, least: float) -> Iterator[tuple[str, ...]]:
    """The rows of the table that one bout gives."""
    device = case.inputs.device
    limit = best_limit(case, bout.limits, least)
    entries = contenders(bout, case)
    found = race(entries, limit, rounds, least)
    title = f"{case.name}, {case.rows:,}"
    rates = [1 / cost for cost in found.limit]
    blank = ("", "", "", "")
    peak = peak_of(limit.run, device)
    gradients = f"{spread(rates, '.3g')} gradients/s"
    yield (title, "the limit", f"{limit.batch:,}", gradients, *blank[:3], "1", peak, "", "")
    fifty = next((e.name for e in entries if isinstance(e, Captum)), None)
    for entry in entries:
        taken, outcome = found.seconds[entry.name], found.outcomes[entry.name]
        needed = [case.rows * outcome.evaluations * cost for cost in found.limit]
        yield (
            title,
            entry.name,
            f"{outcome.batch:,}",
            spread(taken, ".3g"),
            f"{outcome.evaluations:.1f}",
            spread([case.rows / s for s in taken], ".3g"),
            spread(_ratios(found.seconds[fifty], taken), ".2f", "×") if fifty else "",
            spread(_ratios(needed, taken), ".3f"),
            peak_of(entry, device),
            "" if outcome.padded is None else f"{outcome.padded:,}",
            _share_not_ok(outcome),
        )


def _share_not_ok(outcome: Outcome) -> str:
    if outcome.certified is None:
        return ""
    return f"{1 - float(outcome.certified.double().mean()):.1%}"


def _ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]


# --- correctness ---------------------------------------------------------------------------------


def correctness(bout: Bout, case: Case) -> tuple[str, ...]:
    """Certificates of the first rows against the reference, as far as that is ten times better than
    the tolerance.
    """
    few = case.take(slice(0, bout.checked))
    exact, moved = reference(few, bout.nodes)
    judged = moved < bout.tolerance / 10
    outcome = ours(bout, few, bout.adaptive)()
    assert outcome.certified is not None
    error = relative_error(outcome.attributions, exact).cpu()
    false = judged & outcome.certified & (error > bout.tolerance)
    seen = error[judged & outcome.certified]
    worst = f"{float(seen.max()):.1e}" if len(seen) else "–"
    median = f"{statistics.median(seen.tolist()):.1e}" if len(seen) else "–"
    counts = (few.rows, int(judged.sum()), len(seen), int(false.sum()))
    return (case.name, f"{bout.tolerance:g}", *[str(n) for n in counts], median, worst)


def reference(case: Case, nodes: int) -> tuple[Tensor, Tensor]:
    """Attributions in float64 on the same device, and by how much half the nodes differ from them,
    relative, on the host.
    """
    wide = replace(
        case,
        model=copy.deepcopy(case.model).double(),
        inputs=case.inputs.double(),
        baselines=case.baselines.double(),
    )
    rule = composite_gauss if case.smooth else midpoints
    half, whole = (_integral(wide, *map(torch.from_numpy, rule(n))) for n in (nodes // 2, nodes))
    return whole, relative_error(half, whole).cpu()


def _integral(case: Case, nodes: Tensor, weights: Tensor) -> Tensor:
    device = case.inputs.device
    every = torch.arange(case.rows, device=device)
    shape = (case.rows, *[1] * (case.inputs.ndim - 1))
    total = torch.zeros_like(case.inputs)
    difference = case.inputs - case.baselines
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        points = case.baselines + torch.full(shape, node, device=device).double() * difference
        points.requires_grad_()
        values = explained(case, points, every)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        total += weight * gradient
    return total * difference


# --- the script ----------------------------------------------------------------------------------


def machine(device: torch.device) -> str:
    """The card, its driver and torch, in a line."""
    if device.type != "cuda":
        return f"cpu, torch {torch.__version__}: no figure here is one of a GPU"
    card = torch.cuda.get_device_properties(device)
    memory = f"{card.total_memory / 2**20:,.0f} MiB"
    return f"{card.name} ({memory}), driver {_driver()}, torch {torch.__version__}"


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.split("\n")[0].strip()


def pin(device: torch.device) -> None:
    """No TF32, for whoever takes part; one thread where threads would be measured."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", choices=list(BOUTS), action="append", help="may be given several times"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="whether it runs, not how fast")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no CUDA device here: run it where there is one, or"
            " `--device cpu --smoke` to see that it runs"
        )
    device = torch.device(options.device)
    pin(device)
    rounds, least = (1, 0.0) if options.smoke else (options.rounds, 0.2)
    print(machine(device), flush=True)
    checks = []
    for name in options.only or BOUTS:
        bout = BOUTS[name].reduced() if options.smoke else BOUTS[name]
        case = placed(bout.build(bout.rows), device)
        found = tuple(lines(bout, case, rounds, least))
        Sheet(f"{name}: {rounds} rounds in turns", COLUMNS, found).show(markdown=True)
        checks.append(correctness(bout, case))
    headings = ("model", "tolerance", "rows", "judged", "certified", "false", "median", "worst")
    title = "Certificates against float64 on the same device"
    Sheet(title, headings, tuple(checks), REMARKS).show(markdown=True)


if __name__ == "__main__":
    main()
