"""Encoded pictures through a whole worker against the engine on resident tensors: what decoding
costs once it is overlapped with computing.

Run by `make bench`. One machine, one process, one thread of torch's; both take the same step
batches in turns.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from models import convnet

from integrand.schemas.records import Shard
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.service.planning.planner import make_plan
from integrand.service.planning.request import Request
from integrand.service.pools.local import LocalPool
from integrand.service.running.folder import create_folder, open_folder
from integrand.service.running.kinds import ATTRIBUTION
from integrand.service.runs.manifest import without_shards
from integrand.workers.data.pictures import pixels_of
from integrand.workers.shards.numerics import pin_numerics
from integrand.workers.shards.worker import Setup, Worker
from integrand.workers.storage.store import Store
from tests.plugins.explaining import attribute_untried

TRUSTED = ("models",)
STEPS = 50
PER_SHARD = 16
HEIGHT, WIDTH = 375, 500
"""Of a picture of ImageNet, about."""


def photograph(seed: int) -> bytes:
    """A JPEG of about 50 kB: slow colours under some grain."""
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8))
    large = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    grainy = (large + draws.integers(-8, 9, large.shape)).clip(0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(grainy).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def spec(folder: Path) -> AttributeSpec:
    return parse_spec(
        {
            "name": "bench",
            "source": {"uri": str(folder / "rows"), "row_id": "id"},
            "model": {
                "kind": "factory",
                "entrypoint": "models:convnet",
                "code": [str(HERE / "models.py")],
            },
            "inputs": [{"name": "image", "image": "image", "preprocess": "imagenet"}],
            "target": {"kind": "index", "index": 0},
            "accuracy": {"kind": "fixed", "rule": "gauss_legendre", "steps": STEPS},
            "output": {"uri": str(folder / "out"), "store": {"kind": "channel_sum"}},
            "compute": {"shard_rows": PER_SHARD, "threads": 1},
        }
    )


class Contest:
    """A worker with its shards, and the same pictures as tensors."""

    def __init__(self, folder: Path, count: int) -> None:
        data = [photograph(seed) for seed in range(count)]
        self.bytes = statistics.mean(map(len, data))
        (folder / "rows").mkdir()
        table = pa.table({"id": range(count), "image": data})
        pq.write_table(table, folder / "rows" / "part.parquet", row_group_size=PER_SHARD)
        store = Store()
        request = Request(spec(folder), "/", store, TRUSTED)
        self.plan, code = make_plan(request, LocalPool())
        create_folder(ATTRIBUTION, request, self.plan, lambda event: None)
        run = open_folder(ATTRIBUTION, request, self.plan.run_id)
        self.worker = Worker(
            Setup(
                plan=without_shards(run.plan),
                plan_sha256=run.plan_sha256,
                run=run.uri,
                access=store.access,
                trusted=TRUSTED,
                code=code,
            )
        )
        steps = self.plan.spec.inputs[0]
        began = time.perf_counter()
        pixels = np.stack([pixels_of(one, steps) for one in data])
        self.decoding = count / (time.perf_counter() - began)
        self.pixels = torch.from_numpy(pixels.astype(np.float32) / 255)
        self.model = convnet().requires_grad_(False)

    def pipeline(self, shards: list[Shard]) -> float:
        """Pictures a second, read, decoded, attributed, encoded and committed."""
        began = time.perf_counter()
        for shard, following in zip(shards, [*shards[1:], None], strict=True):
            self.worker.run(shard, following)
        return sum(shard.rows for shard in shards) / (time.perf_counter() - began)

    def engine(self, rows: slice) -> float:
        """Pictures a second of resident tensors, shard by shard."""
        parts = self.pixels[rows].split(PER_SHARD)
        began = time.perf_counter()
        for part in parts:
            attribute_untried(
                self.model,
                part,
                target=0,
                accuracy=FixedSteps(steps=STEPS),
                batch_rows=self.plan.numerics.batch_rows,
            )
        return sum(map(len, parts)) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=4, help="of a round")
    asked = parser.parse_args()
    pin_numerics(1)
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), (asked.rounds + 1) * asked.shards * PER_SHARD)
        whole, alone = [], []
        for k in range(asked.rounds + 1):
            first = k * asked.shards
            shards = list(contest.plan.shards[first : first + asked.shards])
            rows = slice(first * PER_SHARD, (first + asked.shards) * PER_SHARD)
            alone.append(contest.engine(rows))
            whole.append(contest.pipeline(shards))
        ratios = [a / b for a, b in zip(whole[1:], alone[1:], strict=True)]  # the first warms up
        kilobytes = contest.bytes / 1e3
        print(
            f"{HEIGHT}×{WIDTH} JPEGs of {kilobytes:.0f} kB to 224×224, {STEPS} evaluations each:"
            f" {statistics.median(whole[1:]):.2f} pictures/s through a worker,"
            f" {statistics.median(alone[1:]):.2f} by the engine on tensors:"
            f" {statistics.median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%});"
            f" decoding alone {contest.decoding:.0f} pictures/s"
        )


if __name__ == "__main__":
    main()
