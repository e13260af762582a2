"""A run of 100,000 shards without an engine: what its driver costs. `make load`, or with --shards
N.

Plan, dispatch, actors, objects, footers, blocks and manifest are real; nothing is attributed. The
run is interrupted before its last shards, looked at and resumed, each in a process of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray import cloudpickle
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from integrand.schemas.ids import NUMERICS_VERSION, add_digests, shard_object
from integrand.schemas.records import (
    InputShape,
    Numerics,
    Plan,
    Projection,
    SourceFile,
)
from integrand.schemas.specs.compute import Compute
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.tasks import Task
from integrand.schemas.uris import Uri
from integrand.service.planning.cutting import cut
from integrand.service.planning.request import Request
from integrand.service.pools.base import Outcome
from integrand.service.pools.ray import RayPool
from integrand.service.progress import Event
from integrand.service.running.finish import finish
from integrand.service.running.folder import create_folder, open_folder
from integrand.service.running.kinds import ATTRIBUTION
from integrand.service.runs.manifest import load_manifest, without_shards
from integrand.service.runs.totals import read_committed
from integrand.workers.models.code import CodeBundle
from integrand.workers.shards.worker import Setup
from integrand.workers.storage.store import Access, Store
from integrand.workers.task_workers import WorkerSetup
from tests.load import noop

ROWS = 10
FEATURES = ("a", "b")
HELD_BACK = 100
MB = 1_000_000
MOST_RSS, MOST_GROWTH = 500 * MB, 50 * MB
"""Bytes. Python, torch, pyarrow and Ray take 340 MB before there is a plan."""

MOST_IN_FLIGHT, MOST_OVERHEAD_S, MOST_PLANNING_S = 64, 0.020, 30.0
Found = TypeVar("Found")
_STATUS = Path("/proc/self/status")


def ignore(event: Event) -> None:
    """What a driver tells is not shown."""


@dataclass(frozen=True)
class Load:
    """A run to be made below `folder`."""

    folder: Path
    shards: int
    workers: int
    address: str | None = None

    @property
    def request(self) -> Request:
        return Request(self.spec, "/", Store(), (), "")

    @property
    def spec(self) -> AttributeSpec:
        return parse_spec(
            {
                "name": "load",
                "source": {"uri": str(self.folder / "source")},
                "model": {"kind": "factory", "entrypoint": "none:build"},
                "inputs": [{"name": "features", "columns": FEATURES}],
                "target": {"kind": "scalar"},
                "output": {"uri": str(self.folder)},
                "compute": {"workers": self.workers, "shard_rows": ROWS},
            }
        )

    @property
    def uri(self) -> Uri:
        return Uri("file", str(self.folder / "run"))


@dataclass(frozen=True)
class Driven:
    """One driver's pass, as it saw itself: seconds, bytes."""

    shards: int
    planning_s: float
    first_dispatch_s: float
    seconds: float
    cpu_s: float
    most_rss: int
    growth: float
    most_in_flight: int
    spent: noop.Spent
    complete: bool


@dataclass
class NoOpPool(RayPool):
    """Real actors that attribute nothing; the driver is interrupted once so many shards are
    done.
    """

    shards: int = sys.maxsize
    began: float = 0.0
    planning_s: float = 0.0
    first_dispatch_s: float = 0.0
    settled: int = 0
    most_in_flight: int = 0
    spent: noop.Spent = field(default_factory=noop.Spent)

    def start(self, setup: WorkerSetup, compute: Compute, tasks: int, stall_s: float) -> None:
        self.planning_s = time.perf_counter() - self.began
        super().start(setup, compute, tasks, stall_s)

    def _actor_class(self, compute: Compute) -> Any:
        cloudpickle.register_pickle_by_value(noop)  # workers do not see the tests
        return ray.remote(noop.NoOp).options(num_cpus=0.01)

    def submit(self, worker: int, task: Task, prefetch: Task | None) -> None:
        self.first_dispatch_s = self.first_dispatch_s or time.perf_counter() - self.began
        super().submit(worker, task, prefetch)
        self.most_in_flight = max(
            self.most_in_flight, sum(slot.task is not None for slot in self._slots.values())
        )

    def wait(self, timeout_s: float) -> list[Outcome]:
        outcomes = super().wait(timeout_s)
        self.settled += len(outcomes)
        if self.settled >= self.shards:
            raise KeyboardInterrupt
        return outcomes

    def retire(self, worker: int) -> None:
        self.spent += ray.get(self._slots[worker].actor.report.remote())
        super().retire(worker)

    def close(self) -> None:
        for worker in list(self._slots):
            self.retire(worker)
        super().close()


class Scale:
    """Resident bytes of this process over time, from a thread of its own."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Scale:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def growth(self, since: float) -> float:
        """By a straight line through what was seen from `since` on: bytes from its start to its
        end.
        """
        times, sizes = np.array([s for s in self.seen if s[0] >= since] or [(0, 0)]).T
        if len(times) < 3:
            return 0.0
        return float(np.polyfit(times, sizes, 1)[0] * (times[-1] - times[0]))

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.seen.append((time.perf_counter(), resident("VmRSS")))


def resident(name: str) -> int:
    """Of this process: `VmRSS` now, `VmHWM` at most so far."""
    return next(
        int(line.split()[1]) << 10
        for line in _STATUS.read_text().splitlines()
        if line.startswith(name)
    )


def prepare(load: Load) -> None:
    """The run folder with its plan: files of 1,000 rows, in row groups of a shard each."""
    files = tuple(
        SourceFile(
            path=f"{i:04d}.parquet",
            uri=str(load.folder / "source" / f"{i:04d}.parquet"),
            rows=ROWS * count,
            size=1000,
            fingerprint="0" * 64,
            row_groups=(ROWS,) * count,
        )
        for i, count in enumerate(
            len(part) for part in np.array_split(range(load.shards), -(-load.shards // 100))
        )
    )
    planned = Plan(
        run_id="run",
        spec=load.spec,
        files=files,
        source_columns=FEATURES,
        row_id_type="string",
        inputs=(InputShape(name="features", columns=FEATURES, shape=(2,), named=True),),
        numerics=Numerics(
            numerics_version=NUMERICS_VERSION,
            batch_rows=ROWS,
            threads=1,
            precision="float32",
            device="cpu",
            torch_build="none",
        ),
        artefacts=(),
        code_sha256=None,
        shards=cut(files, ROWS),
        created="2026-01-01T00:00:00+00:00",
        versions={},
        projection=Projection(
            seconds_per_row=0,
            evaluations_per_row=7,
            batch_seconds=0,
            output_bytes=0,
            memory_bytes=0,
            seconds=0,
        ),
    )
    assert len(planned.shards) == load.shards
    create_folder(ATTRIBUTION, load.request, planned, ignore)


def drive(load: Load, shards: int = sys.maxsize) -> Driven:
    """Open the run folder and run what is missing of it, but for an interruption after `shards`."""
    began, cpu = time.perf_counter(), time.process_time()
    run = open_folder(ATTRIBUTION, load.request, "run")
    setup = Setup(
        plan=without_shards(run.plan),
        plan_sha256=run.plan_sha256,
        run=run.uri,
        access=Access(),
        trusted=(),
        code=CodeBundle(),
    )
    pool = NoOpPool(load.address, shards=shards, began=began)
    complete = False
    with Scale() as scale:
        with suppress(KeyboardInterrupt):
            complete = finish(run, setup, pool, ignore, "2026-01-01").complete
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pool.close()
    steady = began + pool.first_dispatch_s + 0.1 * (seconds - pool.first_dispatch_s)
    return Driven(
        pool.settled,
        pool.planning_s,
        pool.first_dispatch_s,
        seconds,
        cpu,
        resident("VmHWM"),
        scale.growth(steady),
        pool.most_in_flight,
        pool.spent,
        complete,
    )


def look(load: Load) -> tuple[int, float]:
    """What `integrand status` reads of an unfinished run: its rows, and the seconds that it
    takes.
    """
    # pandas and DuckDB, which a driver does not load
    from integrand.service.runs.query import (
        open_run,
    )

    warnings.simplefilter("ignore", UserWarning)  # of being unfinished
    began = time.perf_counter()
    run = open_run(load.uri)
    return run.manifest.rows_in, time.perf_counter() - began


def look_again_without(load: Load, count: int) -> float:
    """Seconds to read what is committed where blocks are of little use: objects are gone here and
    there.
    """
    lost = random.Random(0).sample(range(load.shards), count)
    for number in lost:
        Path(load.uri.child(shard_object(f"{number:05d}")).path).unlink()
    run = open_folder(ATTRIBUTION, load.request, "run")
    began = time.perf_counter()
    assert len(read_committed(run).shards) == load.shards - count
    return time.perf_counter() - began


def check(load: Load) -> None:
    """Every row is in the finished run once."""
    manifest = load_manifest(Store(), load.uri)
    assert manifest is not None
    rows = ROWS * load.shards
    expected = add_digests(noop.digest_of(f"{i:05d}") for i in range(load.shards))
    assert (manifest.complete, manifest.rows_in, manifest.statuses) == (True, rows, {"ok": rows})
    assert (manifest.digest, manifest.evaluations) == (expected, 7 * rows)


@dataclass(frozen=True)
class Figure:
    """One measured value and, where it is promised, its bound."""

    what: str
    value: float
    form: str
    most: float | None = None

    @property
    def kept(self) -> bool:
        return self.most is None or self.value <= self.most


def figures(first: Driven, second: Driven, status_s: float) -> list[Figure]:
    spent, driven = first.spent, first.seconds - first.first_dispatch_s
    return [
        Figure(
            "driver RSS at most, MB",
            max(first.most_rss, second.most_rss) / MB,
            ".0f",
            MOST_RSS / MB,
        ),
        Figure(
            "  growth over the last nine tenths, MB", first.growth / MB, ".1f", MOST_GROWTH / MB
        ),
        Figure("calls in flight at most", first.most_in_flight, "d", MOST_IN_FLIGHT),
        Figure(
            "a worker between two shards, ms",
            1e3 * spent.waiting / spent.shards,
            ".1f",
            1e3 * MOST_OVERHEAD_S,
        ),
        Figure(
            "driver CPU per shard, ms",
            1e3 * first.cpu_s / first.shards,
            ".1f",
            1e3 * MOST_OVERHEAD_S,
        ),
        Figure("  encoding a shard, ms", 1e3 * spent.encoding / spent.shards, ".1f"),
        Figure("  creating its object, ms", 1e3 * spent.creating / spent.shards, ".1f"),
        Figure("shards per second", first.shards / driven, ".0f"),
        Figure("status of the unfinished run, s", status_s, ".1f"),
        Figure("resume planned, s", second.planning_s, ".1f", MOST_PLANNING_S),
        Figure("resume, its first shard given out, s", second.first_dispatch_s, ".1f"),
        Figure("resume to the manifest, s", second.seconds, ".1f"),
    ]


def show(found: list[Figure], title: str) -> None:
    table = Table("", "measured", "at most", title=title)
    for figure in found:
        most = "" if figure.most is None else format(figure.most, "g")
        table.add_row(
            figure.what, format(figure.value, figure.form), most, style="" if figure.kept else "red"
        )
    Console().print(table)


def apart(function: Callable[..., Found], *arguments: object) -> Found:
    """Call it in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main(shards: int, workers: int, folder: Path) -> int:
    load = Load(folder, shards, workers)
    apart(prepare, load)
    first = apart(drive, load, shards - HELD_BACK)
    rows, status_s = apart(look, load)
    assert rows >= ROWS * (shards - HELD_BACK)
    second = apart(drive, load)
    check(load)
    found = figures(first, second, status_s)
    found.append(
        Figure(
            "status with 100 objects lost at random, s", apart(look_again_without, load, 100), ".1f"
        )
    )
    show(found, f"{shards} shards, {workers} workers")
    return 0 if all(figure.kept for figure in found) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="integrand-load-") as place:
        sys.exit(main(asked.shards, asked.workers, Path(place)))
