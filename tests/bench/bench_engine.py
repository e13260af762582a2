"""The engine against Captum, the articles' loop and the machine's own limit, on one thread.

Run by `make bench`; prints the tables of workers/README.md. One process; in every round the limit
and all contenders of a model take turns; medians and ranges are of per-round figures. Accuracy is
against the float64 references of references.py. Captum runs at the fastest of a few sizes; "tuned"
is an oracle's Captum, with the fewest nodes that meet the tolerance on other rows. Peak memory is
each contender's own, in a fresh process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import zoo
from limits import prepare
from memory import peak_bytes
from peers import Captum, Contender, Integrand, Outcome, PlainLoop, best_sizes, tuned
from references import Reference, reference, relative_error, relative_gap
from sheet import Sheet, spread
from zoo import Case, Missing

from integrand.schemas.specs.accuracy import Adaptive, Exact, FixedSteps

SAME_NODES = Integrand(FixedSteps(rule="gauss_legendre", steps=50), "Integrand, the same 50 nodes")
COLUMNS = (
    "model",
    "who",
    "p99 error",
    "max error",
    "max gap",
    "evaluations/row",
    "rows/s",
    "faster than Captum-50",
    "than Captum tuned",
    "ρ",
    "peak MiB",
    "uncertified",
)
REMARKS = (
    (
        "error: ‖a − a*‖₁ / ‖a*‖₁; gap: |Σa − (f(x) − f(x'))| / ‖a*‖₁. Medians, and ranges over"
        " rounds."
    ),
    (
        "ρ: seconds that the contender's own evaluations take at the machine's limit (batch norm"
        " folded, channels-last, a first affine layer hoisted, best batch size) over the seconds it"
        " took."
    ),
    (
        "Captum tuned: the fewest of 5 … 500 nodes that meet the tolerance on other rows; no line"
        " where 500 do not."
    ),
)


@dataclass(frozen=True)
class Bout:
    """A model, how many rows are timed, checked against a reference and used for tuning, and what
    is asked of it.

    loop   the articles' loop takes part
    exact  Integrand's exact mode takes part
    most   nodes that a reference may take
    """

    build: Callable[[int], Case]
    timed: int
    checked: int
    calibrated: int
    tolerances: tuple[float, ...]
    loop: bool = False
    exact: bool = False
    most: int = 8192

    def reduced(self) -> Bout:
        """The same in seconds, for smoke tests."""
        few = (
            (min(self.timed, 8), min(self.checked, 2), min(self.calibrated, 2))
            if self.timed > 16
            else (1, 1, 1)
        )
        most = min(self.most, 128 if few[0] == 1 else 2048)
        return replace(
            self,
            timed=few[0],
            checked=few[1],
            calibrated=few[2],
            tolerances=self.tolerances[:1],
            most=most,
        )


BOUTS = {
    "mlp-gelu": Bout(partial(zoo.mlp96, "gelu"), 1024, 256, 512, (1e-3,), loop=True),
    "mlp-relu": Bout(partial(zoo.mlp96, "relu"), 1024, 256, 512, (1e-2,), loop=True, exact=True),
    "probability": Bout(
        partial(zoo.ten_outputs, "gelu", probability=True), 1024, 256, 512, (1e-3,)
    ),
    "ten-outputs": Bout(partial(zoo.ten_outputs, "gelu"), 256, 32, 64, (1e-3,)),
    "digits": Bout(zoo.digits, 64, 64, 64, (1e-2,)),
    "reviews": Bout(zoo.reviews, 12, 8, 8, (1e-2, 1e-3), most=512),
    "photos": Bout(zoo.photos, 2, 1, 1, (1e-2,), most=2187),
}


@dataclass(frozen=True)
class Entry:
    """A contender, the tuned Captum that meets the same tolerance, and whether its time goes into
    gradients alone.
    """

    contender: Contender
    rival: Captum | None = None
    sampling: bool = True


@dataclass(frozen=True, eq=False)
class Race:
    """Seconds of each entry and seconds of the limit at its evaluations, by entry and round."""

    seconds: dict[str, list[float]]
    limits: dict[str, list[float]]
    outcomes: dict[str, Outcome]


def enter(bout: Bout, case: Case, spare: Case) -> list[Entry]:
    """Everyone who takes part: Captum-50 first, since the others are compared with it."""
    fifty = best_sizes(spare)
    entries = [Entry(fifty), Entry(SAME_NODES)]
    if case.lengths is not None:
        entries.append(Entry(best_sizes(spare, by_length=True)))
    known = reference(spare, min(bout.tolerances), most=bout.most)
    for tolerance in bout.tolerances:
        rival = tuned(spare, known, tolerance, by_length=case.lengths is not None)
        # Of a module with a closed form the adaptive mode takes that: a function hides it, and
        # shows what sampling costs.
        name = f"Integrand, certified {tolerance:g}{', as a function' * bout.exact}"
        entries.append(
            Entry(Integrand(Adaptive(tolerance=tolerance), name, opaque=bout.exact), rival)
        )
        entries += [Entry(rival)] if rival else []
    if bout.exact:
        entries.append(Entry(Integrand(Exact(), "Integrand, exact"), rival, sampling=False))
    return entries


def race(entries: list[Entry], case: Case, rounds: int) -> Race:
    """All in turns, after one round that does not count."""
    limit = prepare(case)
    contenders = {entry.contender.name: entry.contender for entry in entries}
    outcomes = {name: contender(case) for name, contender in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    limits: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        costs = limit.costs()
        order = list(contenders) if turn % 2 else list(contenders)[::-1]
        for name in order:
            started = time.perf_counter()
            outcome = contenders[name](case)
            seconds[name].append(time.perf_counter() - started)
            limits[name].append(limit.seconds(costs, outcome.evaluations))
    return Race(seconds, limits, outcomes)


def lines(bout: Bout, rounds: int) -> Iterator[tuple[str, ...]]:
    """The rows of the table that one bout gives."""
    every = bout.build(bout.timed + bout.calibrated)
    case, spare = every.take(slice(0, bout.timed)), every.take(slice(bout.timed, None))
    checked = case.take(slice(0, bout.checked))
    exact = reference(checked, min(bout.tolerances), most=bout.most)
    entries = enter(bout, case, spare)
    result = race(entries, case, rounds)
    for entry in entries:
        name = entry.contender.name
        yield (
            case.name,
            name,
            *accuracy(checked, result.outcomes[name], exact),
            *speed(entry, entries[0], result, case),
            _mebibytes(peak_bytes(entry.contender, case)),
            uncertified(result.outcomes[name]),
        )
    if bout.loop:
        yield loop_line(case, checked, exact, rounds, result.seconds[entries[0].contender.name])
    yield (case.name, "the reference itself", "", f"≤ {float(exact.error.max()):.1e}", *[""] * 8)


def speed(entry: Entry, fifty: Entry, result: Race, case: Case) -> tuple[str, str, str, str]:
    """Rows per second, times faster than Captum-50 and than Captum tuned, and ρ."""
    name = entry.contender.name
    taken = result.seconds[name]
    rival = _ratios(result.seconds[entry.rival.name], taken) if entry.rival else None
    return (
        spread([case.rows / s for s in taken], ".3g"),
        (
            "1"
            if entry is fifty
            else spread(_ratios(result.seconds[fifty.contender.name], taken), ".2f", "×")
        ),
        spread(rival, ".2f", "×") if rival else "",
        spread(_ratios(result.limits[name], taken), ".2f") if entry.sampling else "",
    )


def accuracy(case: Case, outcome: Outcome, exact: Reference) -> tuple[str, str, str, str]:
    """p99 and maximum error, maximum gap, evaluations per row: of the rows that have a reference,
    and of all.
    """
    found = outcome.attributions[: len(exact.error)]
    error = relative_error(found, exact.attributions)
    gap = relative_gap(case, found, exact.attributions)
    return (
        f"{float(error.quantile(0.99)):.1e}",
        f"{float(error.max()):.1e}",
        f"{float(gap.max()):.1e}",
        f"{float(outcome.evaluations.double().mean()):.1f}",
    )


def uncertified(outcome: Outcome) -> str:
    """Share of rows that the contender does not vouch for; peers and fixed rules vouch for none."""
    if outcome.certified is None or not outcome.certified.any():
        return "all"
    return f"{1 - float(outcome.certified.double().mean()):.1%}"


def loop_line(
    case: Case, checked: Case, exact: Reference, rounds: int, fifty: list[float]
) -> tuple[str, ...]:
    """The articles' loop on a few rows only: it is that slow."""
    few, contender = checked.take(slice(0, 16)), PlainLoop()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        outcome = contender(few)
        taken.append((time.perf_counter() - started) * case.rows / few.rows)
    known = Reference(
        exact.attributions[: few.rows * few.repeats], exact.error[: few.rows * few.repeats]
    )
    return (
        case.name,
        contender.name,
        *accuracy(few, outcome, known),
        spread([case.rows / s for s in taken], ".3g"),
        spread(_ratios(fifty, taken), ".3f", "×"),
        "",
        "",
        "",
        "all",
    )


def _ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]


def _mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.0f}"


def sheet(bout: Bout, rounds: int) -> Sheet:
    """One bout's table, or a line that says what is missing."""
    try:
        rows = tuple(lines(bout, rounds))
    except Missing as missing:
        rows = ((str(missing), *[""] * (len(COLUMNS) - 1)),)
    return Sheet(f"{bout.timed} rows, one thread, {rounds} rounds in turns", COLUMNS, rows, REMARKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", choices=[*BOUTS], action="append", help="may be given several times"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a few rows, one round: whether it runs, not how fast"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only or BOUTS:
        bout = BOUTS[name].reduced() if options.smoke else BOUTS[name]
        sheet(bout, 1 if options.smoke else options.rounds).show(markdown=options.markdown)


if __name__ == "__main__":
    main()
