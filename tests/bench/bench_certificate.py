"""The certificate's record: rows that were certified, and what they were really wrong by.

Run by `make bench`; the tables of workers/README.md are what it prints. Families of random MLPs
(zoo.families), the fitted models of the speed benchmark, and a function made to fool the
certificate, against the float64 references of references.py. A row whose reference is not ten times
better than the tolerance judges nobody; such rows are counted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import zoo
from peers import Integrand
from references import Reference, reference, relative_error
from sheet import Sheet
from zoo import SMOOTH, Case, Missing

from integrand.schemas.specs.accuracy import Adaptive
from integrand.workers import Attribution

FINER = 10
"""References are asked to be so much better than they must be, since small errors are compared with
estimates too.
"""
BATCH = 20
"""Rows of one random net."""
RECORD = (
    "rows",
    "tolerance",
    "reference too coarse",
    "certified",
    "at the floor",
    "not converged",
    "false certificates",
    "95% bound",
    "worst error / tolerance",
    "estimate < error / 2",
    "evaluations/row",
    "p99",
)
CALIBRATION = ("rows", "certified", "0.1%", "1%", "median", "not converged", "0.1%", "1%", "median")


def judged(
    case: Case, tolerances: tuple[float, ...], group: str, *, opaque: bool = False, most: int = 8192
) -> pd.DataFrame:
    """A line for every row and tolerance: group, status, error, estimate, evaluations, whether its
    reference is good.
    """
    case, tightest = case.repeated(), min(tolerances)
    exact = reference(case, tightest / FINER if case.smooth and case.wide else tightest, most=most)
    return pd.concat(
        [
            _lines(part, places, exact, tolerance, group)
            for tolerance in tolerances
            for places, part in Integrand(Adaptive(tolerance=tolerance), group, opaque).explain(
                case
            )
        ]
    )


def _lines(
    found: Attribution, places: torch.Tensor, exact: Reference, tolerance: float, group: str
) -> pd.DataFrame:
    assert isinstance(found.attributions, torch.Tensor)
    width = found.attributions.shape[1]
    error = relative_error(found.attributions, exact.attributions[places][:, :width])
    return pd.DataFrame(
        {
            "group": group,
            "tolerance": tolerance,
            "status": [str(status) for status in found.status],
            "error": error.numpy(),
            "estimate": found.error_estimate.numpy(),
            "evaluations": found.evaluations.numpy(),
            "good": (
                Reference(exact.attributions[places], exact.error[places])
                .good(tolerance, error)
                .numpy()
            ),
        }
    )


def random_nets(
    activations: tuple[str, ...],
    rows: int,
    tolerance: float,
    suffix: str = "",
    *,
    opaque: bool,
    exact_only: bool = False,
) -> Iterator[pd.DataFrame]:
    """At least `rows` rows over all families of some activations, an equal number from each."""
    chosen = [f for f in zoo.families(activations) if f.exact or not exact_only]
    nets = math.ceil(rows / len(chosen) / BATCH)
    for number, family in enumerate(chosen):
        for net in range(nets):
            count = min(BATCH, math.ceil(rows / len(chosen) / nets))
            seed = 1000 * net + number
            case = family.case(count, seed)
            lines = judged(case, (tolerance,), f"{case.name}{suffix}", opaque=opaque)
            yield lines.assign(
                gain=family.gain, net=f"{family}, seed {seed}", row=range(len(lines))
            )


def fitted(smoke: bool) -> Iterator[pd.DataFrame]:
    """The models of the speed benchmark, as far as their packages are there."""
    few = 4 if smoke else 1
    yield judged(zoo.mlp96("gelu", 256 // few**2), (1e-3,), "MLP-96 GELU, fitted")
    yield judged(
        zoo.ten_outputs("gelu", 256 // few**2, probability=True),
        (1e-3,),
        "MLP-96 GELU probability, fitted",
    )
    yield judged(
        zoo.mlp96("relu", 256 // few**2), (1e-2,), "MLP-96 ReLU, fitted, as a function", opaque=True
    )
    yield judged(zoo.mlp96("relu", 256 // few**2), (1e-2,), "MLP-96 ReLU, fitted")
    yield judged(zoo.digits(100 // few**2), (1e-2,), "MNIST CNN")


def reviews(rows: int) -> Iterator[pd.DataFrame]:
    yield judged(zoo.reviews(rows), (1e-2, 1e-3), "MiniLM", most=1024)


def photos(rows: int, most: int) -> Iterator[pd.DataFrame]:
    if rows:
        yield judged(zoo.photos(rows), (1e-2,), "EfficientNet-Lite0", most=most)


def record(rows: pd.DataFrame, title: str) -> Sheet:
    """How many certificates were given, and how many were false."""
    groups = rows.groupby(["group", "tolerance"], sort=False)
    return Sheet(
        title,
        RECORD,
        tuple(_record_line(name, float(tolerance), part) for (name, tolerance), part in groups),
    )


def _record_line(name: str, tolerance: float, rows: pd.DataFrame) -> tuple[str, ...]:
    good = rows[rows["good"]]
    certified = good[good["status"] == "ok"]
    false = int((certified["error"] > tolerance).sum())
    low = int((good["estimate"] < good["error"] / 2).sum())
    status = rows["status"].value_counts()
    return (
        f"{name} ({len(rows):,})",
        f"{tolerance:g}",
        str(int((~rows["good"]).sum())),
        f"{len(certified):,}",
        str(status.get("at_precision_floor", 0)),
        f"{status.get('not_converged', 0):,}",
        str(false),
        f"{upper_bound(false, len(certified)):.2%}",
        f"{certified['error'].max() / tolerance:.2g}",
        f"{low} ({low / max(1, len(good)):.2%})",
        f"{rows['evaluations'].mean():.1f}",
        f"{rows['evaluations'].quantile(0.99):.0f}",
    )


def calibration(rows: pd.DataFrame, title: str) -> Sheet:
    """Quantiles of estimate / true error: below 1 the estimate is too low."""
    lines = []
    for (name, tolerance), part in rows[rows["good"]].groupby(["group", "tolerance"], sort=False):
        cells = [f"{name}, {tolerance:g}"]
        for status in ("ok", "not_converged"):
            some = part[part["status"] == status]
            ratio = some["estimate"] / some["error"]
            cells += [
                f"{len(some):,}",
                *(f"{ratio.quantile(q):.2g}" if len(some) else "" for q in (0.001, 0.01, 0.5)),
            ]
        lines.append(tuple(cells))
    return Sheet(title, CALIBRATION, tuple(lines))


def upper_bound(false: int, trials: int) -> float:
    """One-sided 95% bound of a rate after `false` of `trials`, Clopper & Pearson 1934; 3/trials
    where none was false.
    """
    if trials == 0 or false == trials:
        return 1.0
    low, high = false / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(false, trials, rate) > 0.05 else (low, rate)
    return high


def _at_most(false: int, trials: int, rate: float) -> float:
    """Probability of at most `false` events."""
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(false + 1)
    ]
    return sum(math.exp(value) for value in logs)


def spike_sheet() -> Sheet:
    """What fools it, as it must fool every rule that samples: see zoo.Spike."""
    case = Case("spike", zoo.Spike().eval(), torch.ones(1, 2), torch.zeros(1, 2))
    ((_, found),) = Integrand(Adaptive(tolerance=1e-3), "spike").explain(case)
    truth = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    cells = (
        str([round(v, 3) for v in found.attributions[0].tolist()]),
        str(truth[0].tolist()),
        f"{found.gap[0]:.1e}",
        f"{found.error_estimate[0]:.1e}",
        f"{float(relative_error(found.attributions, truth)[0]):.0%}",
        str(found.status[0]),
        str(int(found.evaluations[0])),
    )
    return Sheet(
        "A function made to fool it: two steps of width 1e-6 that cancel between the nodes",
        ("found", "truth", "gap", "error estimate", "true error", "status", "evaluations"),
        (cells,),
    )


def collect(parts: Iterator[pd.DataFrame], name: str) -> pd.DataFrame:
    """All lines of one source; a missing package is told, and gives none."""
    started, found = time.perf_counter(), []
    try:
        found.extend(parts)
    except Missing as missing:
        print(f"{name}: {missing}")
    print(
        f"{name}: {sum(map(len, found)):,} rows in {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=10800, help="smooth rows, and as many of ReLU nets"
    )
    parser.add_argument(
        "--images", type=int, default=0, help="photographs for EfficientNet-Lite0, ten minutes each"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a few rows: whether it runs, not what it finds"
    )
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, help="Parquet file for the lines behind the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = 600 if options.smoke else options.rows
    sources: dict[str, Callable[[], Iterator[pd.DataFrame]]] = {
        "smooth nets": lambda: random_nets(SMOOTH, rows, 1e-3, opaque=False),
        "ReLU nets": lambda: random_nets(("ReLU",), rows, 1e-2, opaque=True),
        "ReLU nets with a closed form": lambda: random_nets(
            ("ReLU",), rows // 10, 1e-2, ", closed form", opaque=False, exact_only=True
        ),
        "fitted models": lambda: fitted(options.smoke),
        "MiniLM": lambda: reviews(2 if options.smoke else 12),
        "EfficientNet-Lite0": lambda: photos(options.images, 81 if options.smoke else 6561),
    }
    found = {name: collect(parts(), name) for name, parts in sources.items()}
    every = pd.concat(found.values(), ignore_index=True)
    if options.out:
        every.to_parquet(options.out)
    for sheet in (
        *nets(found),
        record(every, "By model"),
        calibration(every, "Estimate over true error: certified rows, and rows that were given up"),
        spike_sheet(),
    ):
        sheet.show(markdown=options.markdown)


def nets(found: dict[str, pd.DataFrame]) -> Iterator[Sheet]:
    """The random nets as a whole, and by the size of their weights."""
    whole = pd.concat([found[name].assign(group=name) for name in ("smooth nets", "ReLU nets")])
    yield record(whole, "The record")
    yield record(
        whole.assign(group=whole["group"] + ", weights × " + whole["gain"].astype(str)),
        "By size of the weights",
    )


if __name__ == "__main__":
    main()
