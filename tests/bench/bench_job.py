"""What orchestration costs, what a second worker brings, and what a user would write today.

Run by `make bench`; prints the tables of README. One machine, one run; every round interleaves the contestants.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from models import FEATURES, errors, mlp, reference, rows, write_rows  # noqa: E402

from integrand.schemas.specs import AttributeSpec, parse_spec  # noqa: E402
from integrand.service.jobs import _open_run as open_folder  # noqa: E402
from integrand.service.jobs import run_job  # noqa: E402
from integrand.service.planner import Request, make_plan  # noqa: E402
from integrand.service.pools import RayPool  # noqa: E402
from integrand.service.query import open_run  # noqa: E402
from integrand.service.runner import Dispatch, read_ledger  # noqa: E402
from integrand.workers import attribute  # noqa: E402
from integrand.workers.store import Store  # noqa: E402
from integrand.workers.worker import Setup  # noqa: E402

TRUSTED = ("models",)
QUIET = Console(quiet=True)
ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}
SAME_NODES = {"kind": "fixed", "rule": "gauss_legendre", "steps": 50}


def job(
    folder: Path, count: int, activation: str, accuracy: dict[str, object], workers: int, shard_rows: int
) -> AttributeSpec:
    return parse_spec({
        "name": "bench", "source": {"uri": str(folder / f"rows-{count}"), "row_id": "id"},
        "model": {"kind": "factory", "entrypoint": "models:mlp", "arguments": {"activation": activation},
                  "code": [str(HERE / "models.py")]},
        "inputs": [{"name": "x", "columns": FEATURES}], "accuracy": accuracy, "output": {"uri": str(folder / "out")},
        "compute": {"workers": workers, "shard_rows": shard_rows, "threads": 1},
    })  # fmt: skip


def ray_rows_per_second(spec: AttributeSpec, salt: str) -> dict[str, float]:
    """The job on Ray, timed from ready workers to the last commit; start-up and the driver's CPU apart."""
    pool, store, began = RayPool(), Store(), time.perf_counter()
    plan, code = make_plan(Request(spec, "/", store, TRUSTED, salt), pool)
    run = open_folder(Request(spec, "/", store, TRUSTED, salt), plan, QUIET)
    pool.start(Setup(run.stored, run.uri, store.access, TRUSTED, code), spec.compute, len(plan.shards), 600)
    while len(pool.idle()) < spec.compute.worker_range.max:
        pool.wait(1)
    ready, cpu = time.perf_counter(), cpu_outside_workers()
    done = Dispatch(pool, plan, read_ledger(store, run.uri, plan), [], lambda tally: None).run()
    wall = time.perf_counter() - ready
    outside = cpu_outside_workers() - cpu
    pool.close()
    busy = sum(sum(f.seconds.values()) for f in done.values()) / spec.compute.worker_range.max
    return {"rows/s": plan.rows / wall, "start": ready - began, "outside": outside / wall, "busy": busy / wall,
            "shard_s": wall * spec.compute.worker_range.max / len(plan.shards)}  # fmt: skip


def cpu_outside_workers() -> float:
    """CPU seconds so far of this process and of Ray's daemons below it, the worker processes left out."""
    tick, total = os.sysconf("SC_CLK_TCK"), 0.0
    family = {os.getpid()}
    found = [(p, p.read_text()) for p in Path("/proc").glob("[0-9]*/stat") if p.exists()]
    stats = {int(text.split(" ", 1)[0]): text.rpartition(")")[2].split() for _, text in found}
    names = {int(text.split(" ", 1)[0]): text.partition("(")[2].rpartition(")")[0] for _, text in found}
    for _ in range(4):  # driver → raylet → agents
        family |= {pid for pid, fields in stats.items() if int(fields[1]) in family}
    for pid in family:
        if not names.get(pid, "").startswith("ray::"):
            total += (int(stats[pid][11]) + int(stats[pid][12])) / tick
    return total


def resident_rows_per_second(count: int, spec: AttributeSpec, batch_rows: int) -> float:
    """The same engine on tensors in this process, one thread."""
    torch.set_num_threads(1)
    model, x = mlp("gelu").requires_grad_(False), torch.from_numpy(rows(count))
    started = time.perf_counter()
    attribute(model, x, accuracy=spec.accuracy, batch_rows=batch_rows)
    return count / (time.perf_counter() - started)


def bench_overhead(folder: Path, count: int, rounds: int, console: Console) -> None:
    one = job(folder, count, "gelu", SAME_NODES, 1, count // 8)
    two = job(folder, count, "gelu", SAME_NODES, 2, count // 8)
    batch_rows = make_plan(Request(one, "/", Store(), TRUSTED), RayPool())[0].numerics.batch_rows
    local, first, second = [], [], []
    for r in range(rounds):
        local.append(resident_rows_per_second(count, one, batch_rows))
        first.append(ray_rows_per_second(one, f"a{r}-{time.time()}"))
        second.append(ray_rows_per_second(two, f"b{r}-{time.time()}"))
    table = Table(title=f"Orchestration: {count} rows, 50 evaluations each, shards of {first[0]['shard_s']:.1f} s, "
                        f"median of {rounds} rounds (range)")  # fmt: skip
    for name in ("", "rows/s", "ratio", "start-up s", "CPU outside workers"):
        table.add_column(name)
    overhead = [1 - f["rows/s"] / loc for f, loc in zip(first, local, strict=True)]
    gain = [s["rows/s"] / f["rows/s"] for s, f in zip(second, first, strict=True)]
    table.add_row("engine on resident tensors, 1 thread", spread(local, ".0f"), "1", "", "")
    table.add_row("Ray job, 1 worker", spread([f["rows/s"] for f in first], ".0f"), f"overhead {spread(overhead, '.1%')}",
                  spread([f["start"] for f in first], ".1f"), spread([f["outside"] for f in first], ".1%"))  # fmt: skip
    table.add_row("Ray job, 2 workers", spread([s["rows/s"] for s in second], ".0f"), f"{spread(gain, '.2f')}× one worker",
                  spread([s["start"] for s in second], ".1f"), spread([s["outside"] for s in second], ".1%"))  # fmt: skip
    console.print(table)


def bench_today(folder: Path, count: int, rounds: int, console: Console) -> None:
    """End to end, start-up included, against Ray Data with Captum, at equal or better error."""
    table = Table(title=f"End to end: {count} rows, MLP 96-256-256-1, 2 workers of 1 thread, start-up included, "
                        f"median of {rounds} rounds (range)")  # fmt: skip
    for name in ("model", "who", "seconds", "rows/s", "p99 error", "max error", "ratio"):
        table.add_column(name)
    for activation, accuracy, label in (("gelu", ADAPTIVE, "adaptive 1e-3"), ("relu", SAME_NODES, "the same 50 nodes")):
        sample = rows(count)[:256]
        exact = reference(mlp(activation), torch.from_numpy(sample)).numpy()
        ours, peer = [], []
        for r in range(rounds):
            seconds, mine = our_job(folder, count, activation, accuracy, f"c{r}-{time.time()}")
            ours.append(seconds)
            seconds, theirs = peer_job(folder, count, activation)
            peer.append(seconds)
        ratio = [p / o for p, o in zip(peer, ours, strict=True)]
        for who, times, frame, told in ((f"Integrand, {label}", ours, mine, f"{spread(ratio, '.2f')}×"),
                                        ("Ray Data + Captum, 50 nodes", peer, theirs, "1")):  # fmt: skip
            found = frame.sort_values("id")[[f"attr.{f}" for f in FEATURES]].to_numpy()[:256]
            p99, largest = errors(found, exact)
            table.add_row(activation, who, spread(times, ".1f"), spread([count / t for t in times], ".0f"),
                          f"{p99:.1e}", f"{largest:.1e}", told)  # fmt: skip
    console.print(table)


def our_job(
    folder: Path, count: int, activation: str, accuracy: dict[str, object], salt: str
) -> tuple[float, pd.DataFrame]:
    """A fresh process, from its start to its end."""
    script = ("import sys; sys.path.insert(0, sys.argv[1]); import bench_job, pathlib; "
              "bench_job.run_once(pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6])")  # fmt: skip
    kind = "adaptive" if accuracy is ADAPTIVE else "fixed"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(HERE), str(folder), str(count), activation, kind, salt], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    seconds = time.perf_counter() - started
    return seconds, open_run(folder / "out").to_pandas().rename(columns={"row_id": "id"})


def run_once(folder: Path, count: int, activation: str, kind: str, salt: str) -> None:
    spec = job(folder, count, activation, ADAPTIVE if kind == "adaptive" else SAME_NODES, 2, count // 16)
    manifest = run_job(spec, trusted=TRUSTED, salt=salt, console=QUIET)
    assert manifest.complete


def peer_job(folder: Path, count: int, activation: str) -> tuple[float, pd.DataFrame]:
    target = folder / "peer"
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, str(HERE / "peer_ray_data.py"), str(folder / f"rows-{count}"), str(target), activation,
                    "2"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900)  # fmt: skip
    return time.perf_counter() - started, pd.read_parquet(target)


def spread(values: Sequence[float], form: str) -> str:
    """Median, and the range where there is more than one round."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({format(min(values), form)}–{format(max(values), form)})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["overhead", "today"])
    options = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="integrand-bench-") as name:
        folder = Path(name)
        write_rows(folder / f"rows-{options.rows}", options.rows)
        console.print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, numpy {np.__version__}")
        if options.only != "today":
            bench_overhead(folder, options.rows, options.rounds, console)
        if options.only != "overhead":
            bench_today(folder, options.rows, options.rounds, console)


if __name__ == "__main__":
    main()
