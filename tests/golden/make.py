"""Makes the golden run folder of the current format version: `python tests/golden/make.py
WORKING_FOLDER`.

Run once per FORMAT_VERSION, when it is raised; the folders of older versions stay as they are, and
readers open them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.ids import FORMAT_VERSION
from integrand.schemas.specs.job import parse_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job

MODEL = """\
import torch


class Product(torch.nn.Module):
    def forward(self, x, image):
        return torch.stack([x[:, 0] * x[:, 1], image.flatten(1).square().sum(1)], 1)


def build():
    return Product().eval()
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "golden_model.py").write_text(MODEL)
    pixels = [[float(i + j) for j in range(4)] for i in range(5)] + [None]
    columns = {"id": list("abcdef"), "a": [1.0, 2, 3, 4, 5, 6], "b": [2.0, 2, 2, 0, 1, 1]}
    table = pa.table(columns | {"pixels": pa.array(pixels, pa.list_(pa.float64()))})
    pq.write_table(table, folder / "rows.parquet")
    spec = parse_spec(
        {
            "name": "golden",
            "source": {"uri": "rows.parquet", "row_id": "id"},
            "model": {
                "kind": "factory",
                "entrypoint": "golden_model:build",
                "code": ["golden_model.py"],
            },
            "inputs": [
                {"name": "x", "columns": ["a", "b"]},
                {"name": "image", "column": "pixels", "shape": [1, 2, 2]},
            ],
            "target": {"kind": "all"},
            "output": {"uri": "out"},
            "compute": {"shard_rows": 3, "precision": "float64"},
        }
    )
    manifest = run_job(
        spec,
        base=str(folder),
        operator=Operator(trusted=("golden_model",)),
        cluster=Cluster("local"),
    )
    kept = Path(__file__).parent / f"v{FORMAT_VERSION}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(
        folder / "out" / manifest.run_id,
        kept,
        ignore=shutil.ignore_patterns("_tmp", "_progress.json"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
