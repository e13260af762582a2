"""Real jobs in a folder of their own: a Parquet file, a file of model code, a plan and the job that
a worker runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from integrand.schemas.record import dump
from integrand.schemas.specs.job import parse_spec
from integrand.schemas.uris import Uri
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.workers.models.code import pack_code
from integrand.workers.shards.job import Job
from integrand.workers.shards.worker import Setup, load_job
from integrand.workers.storage.store import Access, Store

TOYS = '''
import torch
from torch import nn

def net(features, outputs, kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 16), kind(), nn.Linear(16, outputs)).eval()

def smooth(features=3, outputs=2):
    return net(features, outputs, nn.GELU)

def kinked(features=3, outputs=2):
    return net(features, outputs, nn.ReLU)

class Picky(nn.Module):
    """Raises on rows whose first feature is above 50."""
    def __init__(self):
        super().__init__()
        self.net = net(3, 2, nn.GELU)

    def forward(self, x):
        if (x[:, 0] > 50).any():
            raise RuntimeError("first feature is out of my range")
        return self.net(x)

def picky():
    return Picky().eval()

class Deadly(Picky):
    """Takes its CUDA context along on these rows, and so its process."""
    def forward(self, x):
        if (x[:, 0] > 50).any():
            raise RuntimeError("CUDA error: device-side assert")
        return self.net(x)

def deadly():
    return Deadly().eval()

class Masked(nn.Module):
    """f = sum of the unmasked squares of both inputs."""
    def forward(self, a, b, mask):
        return (a.square() * mask).sum(1) + b.square().flatten(1).sum(1)

def masked():
    return Masked().eval()
'''


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_setup(
    folder: Path,
    table: pa.Table,
    model: str | dict[str, Any],
    inputs: list[dict[str, Any]],
    fields: dict[str, Any],
) -> Setup:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "toys.py").write_text(TOYS)
    pq.write_table(table, folder / "data" / "rows.parquet", row_group_size=10)
    spec = parse_spec(
        {
            "name": "toy",
            "source": {"uri": "data", "row_id": "id"},
            "output": {"uri": "out"},
            "inputs": inputs,
            "model": (
                model
                if isinstance(model, dict)
                else {"kind": "factory", "entrypoint": f"toys:{model}", "code": ["toys.py"]}
            ),
            "compute": {"batch_rows": 16, "shard_rows": 10, "precision": "float64"},
            "target": {"kind": "index", "index": 1},
        }
        | fields
    )
    plan = plan_job(spec, base=str(folder), operator=Operator(trusted=("toys",)), ingest=True)
    code = pack_code(Store(), spec.model, str(folder))
    stored = dump(plan)
    digest, run = hashlib.sha256(stored).hexdigest(), Uri("file", str(folder / "out" / plan.run_id))
    return Setup(
        plan=stored,
        plan_sha256=digest,
        run=run,
        access=Access(),
        trusted=("toys",),
        code=code,
    )


FEATURES = [{"name": "f", "columns": ["a", "b", "c"]}]


@pytest.fixture
def make_setup(tmp_path: Path) -> Callable[..., Setup]:
    """`make_setup(table, model="smooth", inputs=FEATURES, place="job", **spec fields)` plans a job
    on `table`.
    """

    def make(
        table: pa.Table,
        model: str | dict[str, Any] = "smooth",
        inputs: list[dict[str, Any]] = FEATURES,
        place: str = "job",
        **fields: Any,
    ) -> Setup:
        return toy_setup(tmp_path / place, table, model, inputs, fields)

    return make


@pytest.fixture
def make_job(make_setup: Callable[..., Setup]) -> Callable[..., Job]:
    """Like `make_setup`, with the model loaded as a worker does it."""
    return lambda *arguments, **fields: load_job(make_setup(*arguments, **fields))
