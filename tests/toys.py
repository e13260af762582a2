"""Small things that many tests are about: rows, files of them, and networks with weights drawn at
random.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from integrand.schemas.records import SourceFile
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.workers.data.inspection import inspect_file
from integrand.workers.storage.store import Store

F64 = torch.float64


def rows(count: int, features: int = 3, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Standard normal numbers `[count, features]`, the same in every dtype but for rounding."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=draw, dtype=F64).to(dtype)


def mlp(
    activation: type[nn.Module] = nn.GELU,
    features: int = 3,
    outputs: int = 2,
    *,
    seed: int = 0,
    gain: float = 1.5,
    dtype: torch.dtype = F64,
) -> nn.Sequential:
    """Two hidden layers of 32 whose weights are `gain` times what keeps the size of numbers."""
    net = nn.Sequential(
        nn.Linear(features, 32),
        activation(),
        nn.Linear(32, 32),
        activation(),
        nn.Linear(32, outputs),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            width = math.sqrt(p.shape[-1]) if p.ndim > 1 else 3.0
            p.copy_(gain * torch.randn(p.shape, generator=generator) / width)
    return net.to(dtype).eval()


def put(root: Path, path: str, table: pa.Table, group: int = 10) -> SourceFile:
    """A Parquet file of the table, in row groups of so many rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    (root / path).write_bytes(sink.getvalue())
    store = Store()
    return inspect_file(store, store.info(Uri("file", str(root / path))), path)[0]


def opaque(net: nn.Module) -> Callable[..., Tensor]:
    """The same function, whose layers nobody can read: no closed form applies."""
    return lambda *arguments: net(*arguments)


def assert_close(actual: Tensor, expected: Any, **tolerances: float) -> None:
    torch.testing.assert_close(
        actual.double(),
        torch.as_tensor(expected, dtype=F64),
        check_device=False,
        **({"rtol": 1e-12, "atol": 1e-12} | tolerances),
    )


def spec(*inputs: dict[str, Any], **fields: Any) -> AttributeSpec:
    """The least that a job must say, about these inputs."""
    least = {
        "name": "t",
        "source": {"uri": "/d"},
        "model": {"kind": "factory", "entrypoint": "m:f"},
        "inputs": list(inputs),
        "output": {"uri": "/o"},
    }
    return parse_spec(least | fields)
