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
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from gpu_bouts import BOUTS, Bout, explained, peak_of, placed, seconds_of
from gpu_contenders import Captum, Contender, Limit, Outcome, best_limit, contenders, ours
from references import composite_gauss, midpoints, relative_error
from sheet import Sheet, spread
from torch import Tensor
from zoo import Case

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
