"""What orchestration costs, what a second worker brings, and what a user would write today.

Run by `make bench`; prints the tables of workers/README.md. One machine, one run; every round
interleaves the contestants.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from models import FEATURES, errors, mlp, reference, rows, write_rows

from integrand.schemas.records import Plan, Shard
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.planning.planner import make_plan
from integrand.service.planning.request import Request
from integrand.service.pools.ray import RayPool
from integrand.service.running.folder import create_folder, open_folder
from integrand.service.running.jobs import run_job
from integrand.service.running.kinds import ATTRIBUTION
from integrand.service.running.ledger import Ledger, read_ledger
from integrand.service.running.runner import Dispatch
from integrand.service.runs.manifest import without_shards
from integrand.service.runs.query import open_run
from integrand.service.runs.totals import Committed
from integrand.workers.shards.numerics import pin_numerics
from integrand.workers.shards.worker import Setup
from integrand.workers.storage.store import Store
from tests.plugins.explaining import attribute_untried

TRUSTED = ("models",)
ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}
SAME_NODES = {"kind": "fixed", "rule": "gauss_legendre", "steps": 50}


def job(
    folder: Path,
    count: int,
    activation: str,
    accuracy: dict[str, object],
    workers: int,
    shard_rows: int,
) -> AttributeSpec:
    return parse_spec(
        {
            "name": "bench",
            "source": {"uri": str(folder / f"rows-{count}"), "row_id": "id"},
            "model": {
                "kind": "factory",
                "entrypoint": "models:mlp",
                "arguments": {"activation": activation},
                "code": [str(HERE / "models.py")],
            },
            "inputs": [{"name": "x", "columns": FEATURES}],
            "accuracy": accuracy,
            "output": {"uri": str(folder / "out")},
            "compute": {"workers": workers, "shard_rows": shard_rows, "threads": 1},
        }
    )


@dataclass(frozen=True)
class Crew:
    """Workers of one run, up and waiting; a round gives them a few of its shards."""

    pool: RayPool
    plan: Plan
    ledger: Ledger
    start_s: float

    def rows_per_second(self, shards: Sequence[Shard]) -> tuple[float, float, float]:
        """Rows per second from first dispatch to last commit, CPU seconds per second outside
        workers, and the share of the workers' time that was not spent in the engine.
        """
        part = self.plan.model_copy(update={"shards": tuple(shards)})
        cpu = cpu_outside_workers()
        began = time.perf_counter()
        dispatch = Dispatch(
            ATTRIBUTION, Lasting(self.pool), part, self.ledger, Committed(), lambda tally: None
        )
        dispatch.run()
        wall = time.perf_counter() - began
        busy = dispatch.stats.seconds["compute"] / self.plan.spec.compute.worker_range.max
        return part.rows / wall, (cpu_outside_workers() - cpu) / wall, 1 - busy / wall


class Lasting:
    """A pool whose workers stay for the next round."""

    def __init__(self, pool: RayPool) -> None:
        self.pool = pool

    def __getattr__(self, name: str) -> object:
        return (lambda worker: None) if name == "retire" else getattr(self.pool, name)


def hire(spec: AttributeSpec, salt: str) -> Crew:
    """Plan a run and wait until all its workers are up."""
    began, store, pool = time.perf_counter(), Store(), RayPool(cpus=4)
    request = Request(spec, "/", store, TRUSTED, salt)
    plan, code = make_plan(request, pool)
    create_folder(ATTRIBUTION, request, plan, lambda event: None)
    run = open_folder(ATTRIBUTION, request, plan.run_id)
    pool.start(
        Setup(
            plan=without_shards(run.plan),
            plan_sha256=run.plan_sha256,
            run=run.uri,
            access=store.access,
            trusted=TRUSTED,
            code=code,
        ),
        spec.compute,
        len(plan.shards),
        600,
    )
    while len(pool.idle()) < spec.compute.worker_range.max:
        pool.wait(1)
    return Crew(pool, plan, read_ledger(store, run.uri, plan), time.perf_counter() - began)


def cpu_outside_workers() -> float:
    """CPU seconds so far of this process and of Ray's daemons below it, the worker processes left
    out.
    """
    tick, total = os.sysconf("SC_CLK_TCK"), 0.0
    family = {os.getpid()}
    found = [(p, p.read_text()) for p in Path("/proc").glob("[0-9]*/stat") if p.exists()]
    stats = {int(text.split(" ", 1)[0]): text.rpartition(")")[2].split() for _, text in found}
    names = {
        int(text.split(" ", 1)[0]): text.partition("(")[2].rpartition(")")[0] for _, text in found
    }
    for _ in range(4):  # driver → raylet → agents
        family |= {pid for pid, fields in stats.items() if int(fields[1]) in family}
    for pid in family:
        if not names.get(pid, "").startswith("ray::"):
            total += (int(stats[pid][11]) + int(stats[pid][12])) / tick
    return total


@cache
def resident_model() -> torch.nn.Module:
    pin_numerics(1)
    return mlp("gelu").requires_grad_(False)


def attribute_resident(task: tuple[int, int]) -> int:
    """The same engine on `count` rows of tensors in this process, one thread, with the workers'
    switches.
    """
    count, batch_rows = task
    x = torch.from_numpy(rows(count))
    attribute_untried(resident_model(), x, accuracy=FixedSteps(steps=50), batch_rows=batch_rows)
    return count


def timed_rows_per_second(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def bench_overhead(folder: Path, rounds: int, console: Console) -> None:
    """One worker against the engine alone, two workers against one: in turns, on the same
    shards.
    """
    each, per_shard = 8, 2048
    count = rounds * each * per_shard
    write_rows(folder / f"rows-{count}", count, per_file=per_shard)
    one, two = (hire(job(folder, count, "gelu", SAME_NODES, n, per_shard), f"{n}") for n in (1, 2))
    task = (each * per_shard, one.plan.numerics.batch_rows)
    half = (each * per_shard // 2, task[1])
    local, pair, first, second, outside, outside_engine = [], [], [], [], [], []
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        processes.map(attribute_resident, [(512, task[1])] * 2, chunksize=1)
        attribute_resident((512, task[1]))
        for r in range(rounds):
            shards = slice(r * each, (r + 1) * each)
            local.append(timed_rows_per_second(lambda: attribute_resident(task)))
            alone, _, idle = one.rows_per_second(one.plan.shards[shards])
            first.append(alone)
            outside_engine.append(idle)
            pair.append(
                timed_rows_per_second(
                    lambda: sum(processes.map(attribute_resident, [half] * 2, chunksize=1))
                )
            )
            both, cpu, _ = two.rows_per_second(two.plan.shards[shards])
            second.append(both)
            outside.append(cpu)
    one.pool.close()
    table = Table(
        title=(
            f"Orchestration: {count} rows, 50 evaluations each, shards of"
            f" {per_shard / statistics.median(first):.1f} s on one worker, median of {rounds}"
            " rounds (range)"
        )
    )
    for name in ("", "rows/s", "against", "ratio"):
        table.add_column(name)
    table.add_row("1 engine process on resident tensors", spread(local, ".0f"), "", "")
    table.add_row(
        "2 engine processes on resident tensors",
        spread(pair, ".0f"),
        "1 process: the machine's limit",
        ratio(pair, local),
    )
    table.add_row(
        "Ray job, 1 worker", spread(first, ".0f"), "1 engine process", ratio(first, local)
    )
    table.add_row(
        "Ray job, 2 workers", spread(second, ".0f"), "Ray job, 1 worker", ratio(second, first)
    )
    table.add_row("", "", "2 engine processes", ratio(second, pair))
    console.print(table)
    console.print(
        "one worker's time outside the engine (waiting, reading, encoding):"
        f" {spread(outside_engine, '.1%')}"
    )
    console.print(
        f"CPU outside the workers, 2 workers busy: {spread(outside, '.1%')} of one core; start-up"
        f" to all workers ready: {one.start_s:.1f} s with Ray's own start, {two.start_s:.1f} s"
        " without"
    )


def ratio(these: Sequence[float], those: Sequence[float]) -> str:
    return spread([a / b for a, b in zip(these, those, strict=True)], ".2f") + "×"


def bench_today(folder: Path, count: int, rounds: int, console: Console) -> None:
    """End to end, start-up included, against Ray Data with Captum, at equal or better error."""
    table = Table(
        title=(
            f"End to end: {count} rows, MLP 96-256-256-1, 2 workers of 1 thread, start-up included,"
            f" median of {rounds} rounds (range)"
        )
    )
    for name in ("model", "who", "seconds", "rows/s", "p99 error", "max error", "ratio"):
        table.add_column(name)
    for activation, accuracy, label in (
        ("gelu", ADAPTIVE, "adaptive 1e-3"),
        ("relu", SAME_NODES, "the same 50 nodes"),
    ):
        sample = rows(count)[:256]
        exact = reference(mlp(activation), torch.from_numpy(sample)).numpy()
        ours, peer = [], []
        for r in range(rounds):
            seconds, mine = our_job(folder, count, activation, accuracy, f"c{r}-{time.time()}")
            ours.append(seconds)
            seconds, theirs = peer_job(folder, count, activation)
            peer.append(seconds)
        for who, times, frame, told in (
            (f"Integrand, {label}", ours, mine, ratio(peer, ours)),
            ("Ray Data + Captum, 50 nodes", peer, theirs, "1"),
        ):
            found = frame.sort_values("id")[[f"attr.{f}" for f in FEATURES]].to_numpy()[:256]
            p99, largest = errors(found, exact)
            table.add_row(
                activation,
                who,
                spread(times, ".1f"),
                spread([count / t for t in times], ".0f"),
                f"{p99:.1e}",
                f"{largest:.1e}",
                told,
            )
    console.print(table)


def our_job(
    folder: Path, count: int, activation: str, accuracy: dict[str, object], salt: str
) -> tuple[float, pd.DataFrame]:
    """A fresh process, from its start to its end."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_job, pathlib;"
        " bench_job.run_once(pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5],"
        " sys.argv[6])"
    )
    kind = "adaptive" if accuracy is ADAPTIVE else "fixed"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", script, str(HERE), str(folder), str(count), activation, kind, salt],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    return seconds, open_run(folder / "out").to_pandas().rename(columns={"row_id": "id"})


def run_once(folder: Path, count: int, activation: str, kind: str, salt: str) -> None:
    spec = job(
        folder, count, activation, ADAPTIVE if kind == "adaptive" else SAME_NODES, 2, count // 16
    )
    manifest = run_job(
        spec,
        operator=Operator(trusted=TRUSTED),
        salt=salt,
        listen=lambda event: None,
        cluster=Cluster("ray"),
    )
    assert manifest.complete


def peer_job(folder: Path, count: int, activation: str) -> tuple[float, pd.DataFrame]:
    target = folder / "peer"
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            str(HERE / "peer_ray_data.py"),
            str(folder / f"rows-{count}"),
            str(target),
            activation,
            "2",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=900,
    )
    return time.perf_counter() - started, pd.read_parquet(target)


def spread(values: Sequence[float], form: str) -> str:
    """Median, and the range where there is more than one round."""
    middle = format(statistics.median(values), form)
    return (
        middle
        if len(values) == 1
        else f"{middle} ({format(min(values), form)}–{format(max(values), form)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["overhead", "today"])
    options = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="integrand-bench-") as name:
        folder = Path(name)
        console.print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, numpy {np.__version__}")
        if options.only != "today":
            bench_overhead(folder, options.rounds, console)
        if options.only != "overhead":
            write_rows(folder / f"rows-{options.rows}", options.rows)
            bench_today(folder, options.rows, max(1, options.rounds // 2), console)


if __name__ == "__main__":
    main()
