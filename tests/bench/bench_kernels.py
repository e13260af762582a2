"""What kernels cost that leave a row's place out of account: `python tests/bench/bench_kernels.py
[--markdown] [--smoke]`.

Kernels are chosen once in the life of a process, so each contestant is one; they take turns, and a
round's rates are held against each other. One gradient evaluation: a forward and a backward pass
over a step batch, its rows in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from sheet import Sheet, spread
from torch import Tensor, nn

from integrand.service.demos.models import digits_cnn
from integrand.workers import kernels
from integrand.workers.models.repeatability import measure_repeatability
from integrand.workers.models.row_tensors import RowTensors

SETTINGS: dict[str, dict[str, str]] = {
    "as torch comes": {kernels.MKL: ""},
    "AUTO,STRICT (`prefer`, `require`)": dict(kernels.STRICT),
    "AVX2,STRICT, ATen and oneDNN up to AVX2": (
        dict(kernels.PORTABLE) | {kernels.MKL: "AVX2,STRICT"}
    ),
    "`portable`": dict(kernels.PORTABLE),
}
SECONDS, ROUNDS = 2.0, 7


@dataclass(frozen=True, eq=False)
class Load:
    """A model, its rows, and how many a step batch takes."""

    model: nn.Module
    rows: Tensor


def loads() -> dict[str, Load]:
    """An MLP, where products are all, and the demo's CNN, where convolutions are."""
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 1)
    ).eval()
    odd = nn.Sequential(nn.Linear(7, 16), nn.GELU(), nn.Linear(16, 2)).eval()
    return {
        "MLP-96 GELU": Load(mlp, torch.rand(1024, 96)),
        "MNIST CNN": Load(digits_cnn().eval(), torch.rand(128, 1, 28, 28)),
        "7-16-2 GELU": Load(odd, torch.rand(1024, 7)),
    }


def measure(name: str, seconds: float) -> dict[str, float]:
    """Evaluations per second of one load in this process, and whether its rows keep their bits."""
    load = loads()[name]
    torch.set_num_threads(1)
    load.model.requires_grad_(False)
    table = torch.zeros(len(load.rows), 1, dtype=torch.int64)
    kept = measure_repeatability(
        load.model, RowTensors((load.rows,), target=table), len(load.rows)
    ).bitwise
    _evaluate(load)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        _evaluate(load)
        done += len(load.rows)
    return {"rate": done / (time.perf_counter() - started), "kept": float(kept)}


def _evaluate(load: Load) -> None:
    x = load.rows.clone().requires_grad_()
    torch.autograd.grad(load.model(x)[:, 0].sum(), x)


def contend(name: str, rounds: int, seconds: float) -> list[tuple[str, ...]]:
    """A line for each setting: rates, their ratio to torch's own in the same round, and whether
    bits were kept.
    """
    rates: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    kept: dict[str, bool] = {}
    for _ in range(rounds):
        for setting, variables in SETTINGS.items():
            command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
            done = subprocess.run(
                command, env=os.environ | variables, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout)
            rates[setting].append(found["rate"])
            kept[setting] = bool(found["kept"])
    first = rates["as torch comes"]
    return [
        (
            name,
            setting,
            spread(found, ",.0f"),
            spread([a / b for a, b in zip(found, first, strict=True)], ".2f", "×"),
            "yes" if kept[setting] else "no",
        )
        for setting, found in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.seconds)))
        return
    rounds, seconds = (1, 0.1) if asked.smoke else (ROUNDS, asked.seconds)
    rows = [row for name in loads() for row in contend(name, rounds, seconds)]
    columns = ("model", "kernels", "evaluations/s", "of torch's own", "rows keep their bits")
    Sheet("Kernels, one thread, processes taking turns", columns, tuple(rows)).show(
        markdown=asked.markdown
    )


if __name__ == "__main__":
    main()
