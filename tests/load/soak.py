"""Jobs that run while their workers, drivers and clusters are killed and storage fails. `make
soak`, or --minutes M.

One job after another, each a run of its own on SeaweedFS, through a proxy that spoils one request
in twenty. Whenever a driver ends, for whatever reason, it is started again, as people and
schedulers do, until its run is complete. Then every row must be there once, with the bits of a run
without faults, and nothing else may be left, in storage or alive.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from integrand.schemas.records import RunManifest
from integrand.schemas.uris import Uri
from integrand.service.runs.query import open_run
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import Family
from tests.plugins.proxy import Rule, fault_proxy
from tests.plugins.seaweed import BUCKET, S3Server, serve

KILL_EVERY_S = 20.0
KINDS: dict[Kind, float] = {"worker": 0.7, "driver": 0.2, "cluster": 0.1}
"""How often each is killed: drivers and clusters seldom enough that some drivers live for minutes.
"""

FAULTS = (
    *(Rule(fault, share=0.01, times=None) for fault in ("503", "500", "reset", "lost_ack")),
    *(Rule(fault, "GET", share=0.005, times=None) for fault in ("truncated", "flipped")),
    Rule("delay", share=0.01, times=None),
    Rule("hang", share=0.001, times=None),
)
RETRYABLE = 4
ENDS_S = 180.0
"""Seconds in which a driver must end once its cluster is gone, and whatever a dead driver started
with it.
"""

MOST_SLOPE = 1.0
WARM_UP_S, LEAST_OBSERVED_S = 20.0, 300.0
"""A driver's memory is watched from so many seconds after its first worker is up, and judged if
seen for so long in all.
"""

SLEEP = "INTEGRAND_SOAK_SLEEP"
FORWARD = f"time.sleep(float(os.environ.get('{SLEEP}', '0')))\nreturn self.logits(x)"
WORKER = "ray::TaskActor"
KEPT = re.compile(
    r"data/part-\d+\.parquet|_plan\.json|_manifest\.json|_progress\.json|_stats/\w+\.json|_attempts/\d+/\d+\.json"
)
Kind = Literal["worker", "driver", "cluster"]


@dataclass
class Soak:
    """What happened so far."""

    seed: int
    folder: Path
    server: S3Server
    proxied: str
    job: JobFolder
    ends: float
    kills: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    resident: list[list[tuple[float, float]]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.next_kill = time.monotonic() + KILL_EVERY_S

    @property
    def store(self) -> Store:
        """Beside the proxy: what is checked must not fail."""
        return Store(self.server.access)


# --- one driver --------------------------------------------------------------------------------


@dataclass
class Driver:
    """`integrand run` in a process of its own, with all that it starts."""

    process: subprocess.Popen[bytes]
    family: Family
    working_since: float | None = None

    def workers(self) -> list[int]:
        return [
            pid
            for pid, command in sorted(self.family.living().items())
            if command.startswith(WORKER)
        ]

    def megabytes(self) -> float:
        with suppress(FileNotFoundError, ProcessLookupError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def kill(self, kind: Kind, worker: int) -> None:
        """One worker; the driver; or all of Ray's processes, daemons and workers, but not the
        driver.
        """
        cluster = [pid for pid in self.family.living() if pid != self.process.pid]
        for pid in {"worker": [worker], "driver": [self.process.pid], "cluster": cluster}[kind]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start(soak: Soak, spec: Path, salt: str, log: Path) -> Driver:
    family = Family()
    command = [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        str(spec),
        "--pool",
        "ray",
        "--fresh",
        salt,
        "--trust-model-code",
        soak.job.module,
    ]
    environment = family.environment(
        INTEGRAND_CONFIG=str(soak.folder / "config.toml"), **{SLEEP: "0.1"}
    )
    with open(log, "ab") as output:
        return Driver(
            subprocess.Popen(command, stdout=output, stderr=output, env=environment), family
        )


def live(soak: Soak, driver: Driver) -> int:
    """Watch a driver to its end, and kill what the seed says; its exit code."""
    seen: list[tuple[float, float]] = []
    soak.resident.append(seen)
    struck: float | None = None
    while (code := driver.process.poll()) is None:
        time.sleep(0.5)
        now, workers = time.monotonic(), driver.workers()
        driver.working_since = driver.working_since or (now if workers else None)
        if (
            driver.working_since
            and workers
            and struck is None
            and now - driver.working_since > WARM_UP_S
        ):
            seen.append((now, driver.megabytes()))
        if workers and struck is None and soak.next_kill <= now < soak.ends:
            struck = now if strike(soak, driver, workers) == "cluster" else None
        if struck is not None and now - struck > ENDS_S:
            soak.wrong.append(f"a driver lived on for {ENDS_S:g} s without its cluster")
            driver.process.kill()
    left = driver.family.left(within=ENDS_S)
    if left:
        soak.wrong.append(f"strays: {left}")
        driver.family.kill()
    soak.exits[code] += 1
    return code


def strike(soak: Soak, driver: Driver, workers: list[int]) -> Kind:
    """Kill something of a driver that has workers: killed while it starts, again and again, it
    would never end.
    """
    kind = soak.random.choices(list(KINDS), list(KINDS.values()))[0]
    driver.kill(kind, soak.random.choice(workers))
    soak.kills[kind] += 1
    soak.next_kill = time.monotonic() + KILL_EVERY_S
    return kind


# --- one job -----------------------------------------------------------------------------------


def run_to_the_end(soak: Soak, number: int) -> Uri:
    """One job, its driver started again and again until the run is complete; its output root."""
    root = Uri("s3", f"{BUCKET}/soak-{number}")
    spec = soak.job.write_spec(**fields(soak.job, source=str(source()), out=str(root)))
    log = soak.folder / f"job-{number}.log"
    while True:
        killed = sum(soak.kills.values()) - soak.kills["worker"]
        code = live(soak, start(soak, spec, f"{soak.seed}-{number}", log))
        killed = sum(soak.kills.values()) - soak.kills["worker"] - killed
        if code == 0:
            return root
        if code != RETRYABLE and not killed:
            raise SystemExit(f"a driver ended with {code}, unprovoked:\n{log.read_text()[-4000:]}")


def source() -> Uri:
    return Uri("s3", f"{BUCKET}/soak-source")


def fields(job: JobFolder, source: str, out: str) -> dict[str, Any]:
    compute = {"shard_rows": 10, "batch_rows": 16, "workers": 2, "attempts": 20, "stall_s": 60}
    return {"source": {"uri": source, "row_id": "id"}, "output": {"uri": out}, "compute": compute}


def check(soak: Soak, root: Uri, undisturbed: RunManifest) -> None:
    """Every row once, bit by bit what it is without faults; and nothing beside the run in its
    folder.
    """
    run = open_run(str(root), access=soak.server.access)
    ids = Counter(run.to_pandas(["row_id"])["row_id"])
    lost, doubled = undisturbed.rows_in - len(ids), sum(count - 1 for count in ids.values())
    if (lost, doubled, run.complete) != (0, 0, True):
        soak.wrong.append(f"{root}: {lost} rows lost, {doubled} doubled, complete: {run.complete}")
    if (run.manifest.digest, run.manifest.statuses) != (undisturbed.digest, undisturbed.statuses):
        soak.wrong.append(
            f"{root}: {run.manifest.statuses} and digest {run.manifest.digest}, not"
            f" {undisturbed.digest}"
        )
    names = [e.uri.path.removeprefix(f"{root.path}/") for e in soak.store.list(root)]
    inside = [n.removeprefix(f"{run.manifest.run_id}/") for n in names if n != "_latest/test.json"]
    probes = [n for n in inside if re.fullmatch(r"_probe-\w+", n)]
    strange = [n for n in inside if n not in probes and not KEPT.fullmatch(n)]
    if strange or len(probes) > soak.kills["driver"] + soak.kills["cluster"]:
        soak.wrong.append(f"{root}: left over: {strange + probes}")


def open_uploads(endpoint: str) -> list[str]:
    """Multipart uploads that nobody completed or aborted."""
    import s3fs

    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    return [
        upload["Key"]
        for upload in filesystem.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads", [])
    ]


def slope(lives: list[list[tuple[float, float]]]) -> tuple[float, float]:
    """MB a minute that drivers grow by, each from where it stood; and the seconds that they were
    watched for.
    """
    centred = [np.array(life) - np.mean(life, axis=0) for life in lives if len(life) > 2]
    if not centred:
        return 0.0, 0.0
    times, sizes = np.concatenate(centred).T
    return 60 * float(times @ sizes / (times @ times)), sum(
        life[-1][0] - life[0][0] for life in lives if len(life) > 2
    )


# --- the soak ----------------------------------------------------------------------------------


@contextmanager
def prepared(folder: Path, seed: int, minutes: float, rows: int) -> Iterator[Soak]:
    """Store, proxy with its faults, rows in a bucket and a model in a folder."""
    (folder / "weed").mkdir()
    job = JobFolder(folder, module="soak_model")
    source_file = job.write_rows(count=rows)
    job.write_model(FORWARD)
    with serve(folder / "weed") as server, fault_proxy(server.endpoint_url, seed) as proxy:
        Store(server.access).create(source().child("rows.parquet"), source_file.read_bytes())
        config = f'[storage]\nendpoint_url = "{proxy.endpoint_url}"\n'
        (folder / "config.toml").write_text(config)
        proxy.inject(*FAULTS)
        soak = Soak(seed, folder, server, proxy.endpoint_url, job, time.monotonic() + 60 * minutes)
        yield soak
        soak.kills.update({f"storage {fault}": count for fault, count in proxy.injected.items()})


def main(minutes: float, seed: int, rows: int, folder: Path) -> int:
    print(f"seed {seed}: the kills and faults of this soak are drawn from it", flush=True)
    with prepared(folder, seed, minutes, rows) as soak:
        undisturbed = soak.job.run(output={"uri": "undisturbed"})
        jobs = 0
        while time.monotonic() < soak.ends:
            check(soak, run_to_the_end(soak, jobs), undisturbed)
            jobs += 1
            print(
                f"job {jobs}: {dict(soak.kills)}, exits {dict(soak.exits)}, wrong:"
                f" {soak.wrong or 'nothing'}",
                flush=True,
            )
        uploads = open_uploads(soak.server.endpoint_url)
        soak.wrong += [f"open multipart uploads: {uploads}"] if uploads else []
    grown, watched = slope(soak.resident)
    if watched > LEAST_OBSERVED_S and grown > MOST_SLOPE:
        soak.wrong.append(f"drivers grow by {grown:.2f} MB a minute")
    table = Table("", "", title=f"soak of {minutes:g} minutes, seed {seed}", show_header=False)
    for name, value in {
        "jobs": jobs,
        "rows each": rows,
        **soak.kills,
        "driver exits": dict(soak.exits),
        "RSS slope, MB/min": f"{grown:.2f} over {watched:.0f} s",
        "wrong": soak.wrong or "nothing",
    }.items():
        table.add_row(name, str(value))
    Console().print(table)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--rows", type=int, default=3000, help="of each job; ten make a shard")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="integrand-soak-") as place:
        sys.exit(main(asked.minutes, asked.seed, asked.rows, Path(place)))
