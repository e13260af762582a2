"""Job folders as users have them: Parquet rows, a model file and a spec, small enough to run in a
second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from integrand.schemas.records import Plan, RunManifest
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.uris import Uri
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job, run_job
from integrand.service.running.ledger import Ledger, read_ledger
from integrand.service.runs.manifest import read_quarantined
from integrand.workers.storage.store import Store

COLUMNS = ("a", "b", "c")
MARK = 1000.0
"""Value of column `a` in marked rows: MARK for the first, MARK + 1 for the second. No other row
comes near.
"""

MODEL = '''
import ctypes, os, time
from pathlib import Path
import torch
from torch import nn
from integrand.schemas.errors import IntegrityError, SpecError, TransientError

def fail(error):
    raise error

def leave():
    raise SystemExit(0)

def nothing():
    return None

FAULTS = {
    "raise": lambda: fail(RuntimeError("CUDA error: no room for this row")),
    "transient": lambda: fail(TransientError("the store is busy")),
    "integrity": lambda: fail(IntegrityError("not what was planned")),
    "kill": lambda: os.kill(os.getpid(), 9),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "spin": lambda: spin(),
    # Holds the GIL: no thread of the process answers.
    "freeze": lambda: ctypes.PyDLL(None).sleep(3600),
}

def spin():
    while True:
        pass

class Model(nn.Module):
    """Marked rows bring the faults, in order; `fault:once` strikes once, in whichever process."""

    def __init__(self, outputs, faults, folder):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, outputs)
        self.faults, self.folder = faults.split(), Path(folder)

    def logits(self, x):
        for k, fault in enumerate(self.faults):
            if (x[:, 0] == 1000 + k).any() and (":once" not in fault or self.first_time(fault)):
                FAULTS[fault.split(":")[0]]()
        return self.last(torch.tanh(self.first(x)))

    def first_time(self, what):
        try:
            (self.folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forward(self, x, *more):
        {forward}

def build(outputs=2, faults="", folder=""):
    return Model(outputs, faults, folder){mode}

also = build
'''


@dataclass
class JobFolder:
    """A folder with rows and a model; its module name is its own, so that one process may load
    many.
    """

    path: Path
    module: str = field(default_factory=lambda: f"model_{uuid4().hex}")

    def write_rows(
        self,
        name: str = "rows.parquet",
        count: int = 20,
        *,
        start: int = 0,
        marks: tuple[int, ...] = (),
        row_group_size: int | None = None,
        write_page_checksum: bool = False,
        **columns: Any,
    ) -> Path:
        """`count` rows with ids from `start` and features a, b and c; the rows at `marks` are
        marked.
        """
        values = np.random.default_rng(start).normal(size=(count, 3)).astype(np.float32)
        for k, row in enumerate(marks):
            values[row, 0] = MARK + k
        table = {
            "id": np.arange(start, start + count),
            **dict(zip(COLUMNS, values.T, strict=True)),
            **columns,
        }
        return self.write_table(name, pa.table(table), row_group_size, write_page_checksum)

    def write_table(
        self,
        name: str,
        table: pa.Table,
        row_group_size: int | None = None,
        write_page_checksum: bool = False,
    ) -> Path:
        place = self.path / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table, place, row_group_size=row_group_size, write_page_checksum=write_page_checksum
        )
        return place

    def flip_bit(self, name: str, row_group: int) -> bytes:
        """One bit of a row group's first feature in a source file, its footer as it was; the sound
        bytes are returned.
        """
        source = self.path / "data" / name
        sound = source.read_bytes()
        with pq.ParquetFile(source) as parquet:
            group = parquet.metadata.row_group(row_group)
            column = next(
                c
                for c in map(group.column, range(group.num_columns))
                if c.path_in_schema == COLUMNS[0]
            )
            place = column.data_page_offset + column.total_compressed_size - 3
        source.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        return sound

    def write_model(self, forward: str = "return self.logits(x)", mode: str = ".eval()") -> Path:
        """The model file; `forward` is the body of its forward(x), one statement or lines joined by
        newlines.
        """
        place = self.path / f"{self.module}.py"
        body = MODEL.replace("{forward}", forward.replace("\n", "\n        ")).replace(
            "{mode}", mode
        )
        place.write_text(body)
        return place

    def write_weights(self, name: str = "weights.safetensors", seed: int = 1) -> Path:
        """Plain weights for the model of two outputs."""
        values = np.random.default_rng(seed)
        shapes = {
            "first.weight": (8, 3),
            "first.bias": (8,),
            "last.weight": (2, 8),
            "last.bias": (2,),
        }
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: values.normal(size=shape).astype(np.float32) for key, shape in shapes.items()},
            place,
        )
        return place

    def fields(self, **changes: Any) -> dict[str, Any]:
        """A spec over this folder; every change replaces a whole top-level field."""
        return {
            "kind": "attribute",
            "name": "test",
            "source": {"uri": "data", "row_id": "id"},
            "model": self.model(),
            "inputs": [{"name": "features", "columns": list(COLUMNS)}],
            "target": {"kind": "index", "index": 1},
            "accuracy": {"kind": "fixed", "rule": "gauss_legendre", "steps": 8},
            "output": {"uri": "out"},
            "compute": {"shard_rows": 10, "batch_rows": 16},
        } | changes

    def model(self, **arguments: Any) -> dict[str, Any]:
        return {
            "kind": "factory",
            "entrypoint": f"{self.module}:build",
            "code": [f"{self.module}.py"],
            "arguments": arguments,
        }

    def weighted(self, weights: str = "weights.safetensors") -> dict[str, Any]:
        return self.model() | {"weights": weights}

    def spec(self, **changes: Any) -> AttributeSpec:
        return parse_spec(self.fields(**changes))

    def write_spec(self, **changes: Any) -> Path:
        """spec.yaml (JSON is YAML) in this folder."""
        place = self.path / "spec.yaml"
        place.write_text(json.dumps(self.fields(**changes)))
        return place

    def plan(self, *, salt: str = "", ingest: bool = False, **changes: Any) -> Plan:
        return plan_job(
            self.spec(**changes),
            base=str(self.path),
            operator=Operator(trusted=(self.module,)),
            salt=salt,
            ingest=ingest,
        )

    def run(
        self, pool: Any = "local", *, address: str | None = None, **changes: Any
    ) -> RunManifest:
        return run_job(
            self.spec(**changes),
            base=str(self.path),
            operator=Operator(trusted=(self.module,)),
            cluster=Cluster(pool, address=address),
        )

    def run_uri(self, manifest: RunManifest, out: str = "out") -> Uri:
        return Uri("file", str(self.path / out / manifest.run_id))

    def objects(self, manifest: RunManifest, out: str = "out") -> list[Path]:
        return sorted((self.path / out / manifest.run_id / "data").glob("*"))

    def rows(self, manifest: RunManifest, out: str = "out") -> pd.DataFrame:
        """Every committed output row, in the order of the shards."""
        return pd.read_parquet(self.path / out / manifest.run_id / "data")

    def rows_of(self, name: str) -> pd.DataFrame:
        """A source file."""
        return pd.read_parquet(self.path / "data" / name)

    def ledger(self, manifest: RunManifest, plan: Plan, out: str = "out") -> Ledger:
        return read_ledger(Store(), self.run_uri(manifest, out), plan)

    def quarantined(self, manifest: RunManifest, out: str = "out") -> list[str]:
        return [q.shard for q in read_quarantined(Store(), self.run_uri(manifest, out))]


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    """A folder with twenty good rows and a good model."""
    folder = JobFolder(tmp_path)
    folder.write_rows()
    folder.write_model()
    return folder
