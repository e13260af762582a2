"""The model and rows that every benchmark here shares: a 96-256-256-1 MLP over uniform rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

FEATURES = [f"f{i:02d}" for i in range(96)]


def mlp(activation: str = "gelu") -> nn.Module:
    """Fitted for a moment to SEEDS-like data (32 rising, 32 falling, 32 noise features): weights
    with structure.
    """
    torch.manual_seed(0)
    act = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]
    model = nn.Sequential(nn.Linear(96, 256), act(), nn.Linear(256, 256), act(), nn.Linear(256, 1))
    coefficients = torch.cat([torch.arange(1, 33) / 32, -torch.arange(1, 33) / 32, torch.zeros(32)])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(200):
        x = torch.rand(512, 96) * 2 - 1
        loss = ((model(x)[:, 0] - x @ coefficients) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 96)).astype(np.float32)


def write_rows(folder: Path, count: int, per_file: int = 4096) -> None:
    """Parquet files of named columns with an id."""
    folder.mkdir(parents=True, exist_ok=True)
    values = rows(count)
    for start in range(0, count, per_file):
        part = values[start : start + per_file]
        columns = {"id": np.arange(start, start + len(part))} | {
            f: part[:, i] for i, f in enumerate(FEATURES)
        }
        pq.write_table(pa.table(columns), folder / f"part-{start:07d}.parquet", row_group_size=1024)


def reference(model: nn.Module, x: Tensor, panels: int = 256, nodes: int = 8) -> Tensor:
    """Integrated Gradients in float64 by composite Gauss-Legendre, zero baseline."""
    exact, x = model.double(), x.double()
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros_like(x)
    for panel in range(panels):
        for node, weight in zip(points, weights, strict=True):
            at = (x * ((panel + (node + 1) / 2) / panels)).requires_grad_()
            total += weight / 2 / panels * torch.autograd.grad(exact(at).sum(), at)[0]
    model.float()
    return total * x


def errors(found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """p99 and maximum over rows of ‖a − a*‖₁ / ‖a*‖₁."""
    relative = np.abs(found - exact).sum(1) / np.abs(exact).sum(1)
    return float(np.quantile(relative, 0.99)), float(relative.max())


def convnet() -> nn.Module:
    """Of pictures `[rows, 3, 224, 224]`, about a fifth of a ResNet-18's work; random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*layers, *head).eval()
