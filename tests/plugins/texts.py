"""Jobs over texts of ids: a small transformer, forty texts, and what a job says of them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.ids import FOOTER_KEY
from integrand.schemas.records import ShardFooter
from tests.plugins.jobs import JobFolder

MODELS = '''
import math
import torch
from torch import nn

class Text(nn.Module):
    """A one-layer transformer that honours its mask: three classes."""
    def __init__(self, width=8):
        super().__init__()
        self.words, self.positions = nn.Embedding(30, width), nn.Embedding(24, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, ids, mask):
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        scores = self.query(x) @ self.key(x).mT / math.sqrt(x.shape[-1])
        weights = scores.masked_fill(mask[:, None, :] == 0, -math.inf).softmax(-1)
        x = self.norm(x + weights @ self.value(x))
        weights = mask[..., None].to(x.dtype)
        return self.last(torch.nn.functional.gelu((x * weights).sum(1) / weights.sum(1)))

class Unmasked(Text):
    def forward(self, ids):
        return super().forward(ids, torch.ones_like(ids))

class Tabular(nn.Module):
    """Numbers, one category, and two categories that share a table."""
    def __init__(self):
        super().__init__()
        self.plan, self.city = nn.Embedding(4, 3), nn.Embedding(6, 2)
        self.net = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, numbers, plan, cities):
        return self.net(torch.cat([numbers, self.plan(plan), self.city(cities).flatten(1)], 1))

def build(name="Text"):
    torch.manual_seed(0)
    return globals()[name]().eval()
'''


TOKENS = {"name": "tokens", "ids": "ids", "embedding": "words", "pad": 0, "max_length": 20}


MASK = {"name": "mask", "mask_of": "tokens", "dtype": "int64"}


GAUSS = {"kind": "fixed", "rule": "gauss_legendre", "steps": 16}


@pytest.fixture
def texts(job: JobFolder) -> JobFolder:
    """Forty texts of 1 to 20 ids."""
    (job.path / f"{job.module}.py").write_text(MODELS)
    (job.path / "data" / "rows.parquet").unlink()
    random = np.random.default_rng(0)
    job.write_table(
        "rows.parquet",
        text_table([random.integers(1, 30, n).tolist() for n in random.integers(1, 21, 40)]),
    )
    return job


def text_table(ids: list[Any], **columns: Any) -> pa.Table:
    return pa.table(
        {"id": np.arange(len(ids)), "ids": pa.array(ids, pa.list_(pa.int32())), **columns}
    )


def text_fields(job: JobFolder, **changes: Any) -> dict[str, Any]:
    return {
        "inputs": [TOKENS],
        "forward_args": [MASK],
        "accuracy": GAUSS,
        "target": {"kind": "index", "index": 2},
        "compute": {"shard_rows": 10, "precision": "float64"},
    } | changes


def model(job: JobFolder, name: str = "Text") -> Any:
    found = importlib.util.spec_from_file_location("built", job.path / f"{job.module}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.build(name).double().requires_grad_(False)


def footers(job: JobFolder, manifest: Any, out: str = "out") -> list[ShardFooter]:
    return [
        ShardFooter.model_validate_json(pq.read_metadata(path).metadata[FOOTER_KEY.encode()])
        for path in job.objects(manifest, out)
    ]
