"""How often the error estimate is wrong: adaptive rows of small MLPs against float64 references.

Run by `make bench`. The nets are 8-32-32-3 with weight gains 1, 2 and 4 and several seeds, in float64, explained at
a logit and at a softmax probability. The reference is composite Gauss-Legendre, 8 nodes on each of 256 panels.
"""

from __future__ import annotations

import argparse
import math
from itertools import product

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from integrand.schemas import Adaptive
from integrand.workers import attribute

PANELS, NODES = 256, 8
KINDS = {"GELU": nn.GELU, "tanh": nn.Tanh, "SiLU": nn.SiLU, "ReLU": nn.ReLU}


def net(activation: type[nn.Module], gain: float, seed: int, probability: bool) -> nn.Module:
    parts = [nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3)]
    model = nn.Sequential(*parts, *([nn.Softmax(1)] if probability else []))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(gain * torch.randn(p.shape, generator=generator) / (math.sqrt(p.shape[-1]) if p.ndim > 1 else 3))
    return model.double().eval().requires_grad_(False)


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """Integrated Gradients of output 1 against zero, `[rows, features]`."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    total = torch.zeros_like(x)
    for panel, (point, weight) in product(range(PANELS), zip(points, weights, strict=True)):
        at = (x * ((panel + (point + 1) / 2) / PANELS)).requires_grad_()
        total += weight / 2 / PANELS * torch.autograd.grad(model(at)[:, 1].sum(), at)[0]
    return total * x


def judge(activation: type[nn.Module], rows: int, seeds: int, tolerances: list[float]) -> dict[float, list[float]]:
    """Per tolerance: rows, rows ok, ok rows above the tolerance, the worst of them, rows estimated below half, evaluations."""
    counts = {t: [0.0] * 6 for t in tolerances}
    for gain, seed, probability in product((1.0, 2.0, 4.0), range(seeds), (False, True)):
        model = net(activation, gain, seed, probability)
        x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = reference(model, x)
        for tolerance, sums in counts.items():
            found = attribute(model, x, target=1, accuracy=Adaptive(tolerance=tolerance), batch_rows=512)
            error = (found.attributions - exact).abs().sum(1) / exact.abs().sum(1)
            certified = torch.tensor([s == "ok" for s in found.status])
            wrong = certified & (error > tolerance)
            new = [rows, int(certified.sum()), int(wrong.sum()), 0, int((found.error_estimate < error / 2).sum()),
                   int(found.evaluations.sum())]  # fmt: skip
            worst = float((error[wrong] / tolerance).max()) if wrong.any() else 0.0
            counts[tolerance] = [a + b for a, b in zip(sums, new, strict=True)]
            counts[tolerance][3] = max(sums[3], worst)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Adaptive rows against float64 references")
    for name in ("activation", "tolerance", "rows", "ok", "ok, yet above the tolerance", "worst / tolerance",
                 "estimate below half the error", "evaluations/row"):  # fmt: skip
        table.add_column(name)
    for name, activation in KINDS.items():
        tolerances = [1e-2] if name == "ReLU" else [1e-2, 1e-3]
        for tolerance, (n, ok, wrong, worst, low, spent) in judge(
            activation, options.rows, options.seeds, tolerances
        ).items():
            table.add_row(name, f"{tolerance:g}", f"{n:.0f}", f"{ok:.0f}", f"{wrong:.0f} ({wrong / max(1, ok):.2%})",
                          f"{worst:.2g}" if wrong else "-", f"{low:.0f} ({low / n:.2%})", f"{spent / n:.1f}")  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
