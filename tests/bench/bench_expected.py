"""Expected gradients against Captum's GradientShap and SHAP's GradientExplainer at equal error, and
what a draw costs beside a row of its own, on one thread.

Run by `make bench`; prints the tables of workers/README.md. Every contender estimates one number:
the mean over the same baselines of integrated gradients, whose reference is the product rule in
float64 (references.py, baseline by baseline). Peers draw baseline and α independently, so that
their error falls with the root of the samples: how many it takes to have another's error is told
from the most samples that were run, by that law, which the lines of their smaller runs bear out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import zoo
from models import FEATURES, write_rows
from peers import Contender, Outcome, Shap
from references import reference, relative_error
from sheet import Sheet, spread
from torch import Tensor
from zoo import INSTALL, Case, Missing

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, FixedSamples, FixedSteps
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.specs.methods import ExpectedGradients, IntegratedGradients
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.workers import attribute, prepare

COLUMNS = (
    "model",
    "who",
    "evaluations/row",
    "median error",
    "p99 error",
    "rows/s",
    "fewer than GradientShap",
    "than SHAP",
    "faster than GradientShap",
    "than SHAP",
)
REMARKS = (
    "error: ‖a − a*‖₁ / ‖a*‖₁ of each row, against the product rule in float64.",
    (
        "fewer, faster: the evaluations and the seconds that the peer takes for a row with the same"
        " median (and p99) error, over those taken; by its largest run and the root of the samples."
    ),
)
CHUNK = 400
"""Samples of one call of GradientShap, which holds all of them for all rows at once."""
MOST = 8192
"""Evaluations that a sampled row of ours may take."""
BATCH_ROWS = 256
"""Of a step batch, where what is compared are draws and rows."""


@dataclass(frozen=True)
class Integrand:
    """`attribute` with several baselines; of a module a function alone, which hides the closed
    form.
    """

    background: Tensor
    method: ExpectedGradients | IntegratedGradients
    accuracy: Accuracy
    name: str
    opaque: bool = True

    def __call__(self, case: Case) -> Outcome:
        model = case.model
        found = attribute(
            (lambda *arguments: model(*arguments)) if self.opaque else model,
            case.inputs,
            baselines=self.background,
            draws=len(self.background),
            target=case.target,
            accuracy=self.accuracy,
            method=self.method,
        )
        assert isinstance(found.attributions, Tensor)
        certified = torch.tensor([status == "ok" for status in found.status])
        return Outcome(found.attributions, found.evaluations, certified)


@dataclass(frozen=True)
class GradientShap:
    """`captum.attr.GradientShap`, whose samples are drawn a few hundred at a time."""

    background: Tensor
    samples: int

    @property
    def name(self) -> str:
        return f"Captum GradientShap, {self.samples} samples"

    def __call__(self, case: Case) -> Outcome:
        from captum.attr import GradientShap as Peer

        peer = Peer(case.model)
        total = torch.zeros(case.inputs.shape, dtype=torch.float64)
        for start in range(0, self.samples, CHUNK):
            count = min(CHUNK, self.samples - start)
            found = peer.attribute(
                case.inputs, self.background, n_samples=count, target=case.target
            )
            total += count * found.detach().double()
        return Outcome(total / self.samples, torch.full((case.rows,), self.samples))


# --- equal error ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bout:
    """A model, its rows and baselines, and the samples that peers are given."""

    build: Callable[[int], Case]
    rows: int
    baselines: int
    captum: tuple[int, ...] = (200, 800, 3200)
    shap: tuple[int, ...] = (200, 800)
    exact: bool = False

    def reduced(self) -> Bout:
        """The same in seconds, for smoke tests."""
        return replace(self, rows=2, baselines=4, captum=(20, 40), shap=(20,))


BOUTS = {
    "mlp-gelu": Bout(partial(zoo.mlp96, "gelu"), rows=64, baselines=32),
    "mlp-relu": Bout(partial(zoo.mlp96, "relu"), rows=16, baselines=32, exact=True),
}


@dataclass(frozen=True)
class Figure:
    """What a contender took and missed: a row's evaluations, the errors, seconds of each round."""

    who: str
    evaluations: float
    median: float
    p99: float
    seconds: tuple[float, ...]

    def per_row(self, rows: int) -> float:
        return statistics.median(self.seconds) / rows

    def at_error_of(self, other: Figure) -> tuple[float, float]:
        """How many times the samples it would take to have another's median error, and p99."""
        return (self.median / other.median) ** 2, (self.p99 / other.p99) ** 2


def ours(bout: Bout, background: Tensor) -> list[Integrand]:
    stratified, product = ExpectedGradients(), ExpectedGradients(sampling="product")
    tenth = Adaptive(tolerance=1e-1, max_evaluations=MOST)
    hundredth = Adaptive(tolerance=1e-2, max_evaluations=MOST)
    entries = [
        Integrand(background, stratified, tenth, "Integrand, stratified, 1e-1"),
        Integrand(background, stratified, hundredth, "Integrand, stratified, 1e-2"),
        Integrand(background, product, Adaptive(tolerance=1e-2), "Integrand, product, 1e-2"),
    ]
    if bout.exact:
        name = "Integrand, product, closed form"
        entries.append(Integrand(background, product, Adaptive(), name, opaque=False))
    iid, samples = ExpectedGradients(sampling="iid"), FixedSamples(samples=bout.captum[-1])
    entries.append(Integrand(background, iid, samples, f"Integrand, iid, {bout.captum[-1]}"))
    return entries


def expected(case: Case, background: Tensor) -> Tensor:
    """The product rule in float64: the mean over baselines of integrated gradients."""
    each = [
        reference(
            Case(case.name, case.model, case.inputs, one, case.target, smooth=case.smooth), 1e-5
        )
        for one in background.split(1)
    ]
    return torch.stack([one.attributions for one in each]).mean(0)


def figure(contender: Contender, case: Case, exact: Tensor, rounds: int) -> Figure:
    seconds = []
    for _ in range(rounds):
        torch.manual_seed(0)
        started = time.perf_counter()
        outcome = contender(case)
        seconds.append(time.perf_counter() - started)
    error = relative_error(outcome.attributions, exact)
    return Figure(
        contender.name,
        float(outcome.evaluations.double().mean()),
        float(error.median()),
        float(error.quantile(0.99)),
        tuple(seconds),
    )


def lines(bout: Bout, rounds: int) -> Iterator[tuple[str, ...]]:
    every = bout.build(bout.rows + bout.baselines)
    case = every.take(slice(0, bout.rows))
    background = every.take(slice(bout.rows, None)).inputs
    exact = expected(case, background)
    captum = [figure(GradientShap(background, n), case, exact, 1) for n in bout.captum]
    shap = []
    if importlib.util.find_spec("shap") is not None:
        shap = [figure(Shap(background, n), case, exact, 1) for n in bout.shap]
    for contender in ours(bout, background):
        contender(case)  # does not count
        found = figure(contender, case, exact, rounds)
        rivals = [captum[-1], *shap[-1:]]
        yield (case.name, *_told(found, case), *_ratios(found, rivals, case.rows))
    for found in captum + shap:
        yield (case.name, *_told(found, case), *[""] * 4)
    if not shap:
        yield (f"SHAP needs shap: {INSTALL}", *[""] * (len(COLUMNS) - 1))


def _told(found: Figure, case: Case) -> tuple[str, ...]:
    return (
        found.who,
        f"{found.evaluations:,.0f}",
        f"{found.median:.1e}",
        f"{found.p99:.1e}",
        spread([case.rows / s for s in found.seconds], ".3g"),
    )


def _ratios(found: Figure, rivals: Sequence[Figure], rows: int) -> list[str]:
    """Of evaluations, then of seconds, for each rival."""
    fewer, faster = [], []
    for rival in rivals:
        median, p99 = rival.at_error_of(found)
        if found.evaluations:
            share = rival.evaluations / found.evaluations
            fewer.append(f"{_times(share * median)} ({_times(share * p99)})")
        else:
            fewer.append("none needed")
        share = rival.per_row(rows) / found.per_row(rows)
        faster.append(f"{_times(share * median)} ({_times(share * p99)})")
    missing = [""] * (2 - len(rivals))
    return [*fewer, *missing, *faster, *missing]


def _times(ratio: float) -> str:
    if ratio >= 1e6:
        return f"{ratio:.0e}×"
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


# --- what a draw costs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawsBout:
    """A model, an accuracy, and rows with so many baselines."""

    build: Callable[[int], Case]
    accuracy: Accuracy
    rows: int = 512
    draws: int = 8

    def reduced(self) -> DrawsBout:
        return replace(self, rows=4, draws=2)


DRAWS = (
    DrawsBout(partial(zoo.mlp96, "gelu"), Adaptive(tolerance=1e-3)),
    DrawsBout(partial(zoo.mlp96, "gelu"), FixedSteps(steps=50)),
    DrawsBout(partial(zoo.mlp96, "relu"), FixedSteps(steps=50)),
    DrawsBout(zoo.digits, FixedSteps(steps=50), rows=32, draws=4),
)
DRAWS_COLUMNS = (
    "what",
    "draws",
    "CPU ms of a draw",
    "CPU ms of a row with one baseline",
    "a draw / such a row",
)
JOB_ROWS = 2048


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of this process, which others on the machine do not prolong as they do the wall time."""
    started = time.process_time()
    run()
    return time.process_time() - started


def draws_line(bout: DrawsBout, rounds: int) -> tuple[str, ...]:
    """The same paths as one call with draws, and as a call for each baseline, in turns."""
    every = bout.build(bout.rows + bout.draws)
    case = every.take(slice(0, bout.rows))
    background = every.take(slice(bout.rows, None)).inputs
    few = case.take(slice(0, 4))
    planned = prepare(
        case.model,
        few.inputs,
        baselines=background[:1],
        target=few.target,
        accuracy=bout.accuracy,
    )

    def run(baselines: Tensor) -> object:
        return attribute(
            planned,
            case.inputs,
            baselines=baselines,
            draws=len(baselines),
            target=case.target,
            accuracy=bout.accuracy,
            batch_rows=BATCH_ROWS,
        )

    def run_each() -> None:
        for one in background.split(1):
            run(one)

    run(background)
    together, alone = [], []
    for _ in range(rounds):
        together.append(cpu_seconds(lambda: run(background)) / bout.draws / bout.rows)
        alone.append(cpu_seconds(run_each) / bout.draws / bout.rows)
    what = f"{case.name}, {bout.accuracy.kind}"
    return _compared(what, bout.draws, together, alone)


def job_line(rounds: int, rows: int, draws: int) -> tuple[str, ...]:
    """A job whose rows have so many baselines, and one whose rows have one, in turns: what its
    worker took from reading to the table of results.
    """
    together, alone = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder / "rows", rows)
        for turn in range(rounds):
            for count, seconds in ((draws, together), (1, alone)):
                manifest = run_job(
                    drawn_job(folder, count, turn),
                    base=place,
                    operator=Operator(trusted=("models",)),
                    cluster=Cluster("local"),
                )
                assert manifest.complete
                seconds.append(manifest.seconds["compute"] / count / rows)
    what = "a job of MLP-96 GELU, adaptive (wall)"
    return _compared(what, draws, together, alone)


def drawn_job(folder: Path, draws: int, turn: int) -> AttributeSpec:
    return parse_spec(
        {
            "name": "draws",
            "source": {"uri": str(folder / "rows"), "row_id": "id"},
            "model": {
                "kind": "factory",
                "entrypoint": "models:mlp",
                "code": [str(Path(__file__).parent / "models.py")],
            },
            "inputs": [{"name": "x", "columns": FEATURES, "range": [-1, 1]}],
            "baseline": {"kind": "uniform", "draws": draws},
            "accuracy": {"kind": "adaptive", "tolerance": 1e-3},
            "output": {"uri": str(folder / f"out-{draws}-{turn}")},
            "compute": {"workers": 1, "threads": 1, "batch_rows": BATCH_ROWS},
        }
    )


def _compared(
    what: str, draws: int, together: Sequence[float], alone: Sequence[float]
) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(together, alone, strict=True)]
    return (
        what,
        str(draws),
        spread([1e3 * s for s in together], ".3g"),
        spread([1e3 * s for s in alone], ".3g"),
        spread(ratios, ".2f", "×"),
    )


def draws_sheet(rounds: int, *, smoke: bool) -> Sheet:
    found = []
    for bout in DRAWS:
        try:
            found.append(draws_line(bout.reduced() if smoke else bout, rounds))
        except Missing as missing:
            found.append((str(missing), *[""] * (len(DRAWS_COLUMNS) - 1)))
    found.append(job_line(rounds, *((64, 2) if smoke else (JOB_ROWS, 8))))
    return Sheet("Cost of a draw, one thread", DRAWS_COLUMNS, tuple(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[*BOUTS, "draws"], action="append")
    parser.add_argument(
        "--smoke", action="store_true", help="a few rows, one round: whether it runs, not how fast"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if options.smoke else options.rounds
    for name in options.only or [*BOUTS, "draws"]:
        if name == "draws":
            draws_sheet(rounds, smoke=options.smoke).show(markdown=options.markdown)
            continue
        bout = BOUTS[name].reduced() if options.smoke else BOUTS[name]
        title = f"{bout.rows} rows, {bout.baselines} baselines, one thread, {rounds} rounds"
        Sheet(title, COLUMNS, tuple(lines(bout, rounds)), REMARKS).show(markdown=options.markdown)


if __name__ == "__main__":
    main()
