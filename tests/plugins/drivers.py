"""Drivers in processes of their own, forked from one that has imported everything: each starts in
milliseconds.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from integrand.schemas.errors import IntegrandError
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.workers import failpoints
from tests.plugins.jobs import JobFolder

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["integrand.service.running.jobs", "tests.plugins.drivers", "rich.live"]
)


@dataclass(frozen=True)
class Drive:
    """A driver with one worker in its own process."""

    spec: AttributeSpec
    base: str
    trusted: str

    def __call__(self) -> None:
        torch.set_num_threads(1)
        run_job(
            self.spec,
            base=self.base,
            operator=Operator(trusted=(self.trusted,)),
            cluster=Cluster("local"),
        )


def start(job: JobFolder, points: str = "", **changes: object) -> ForkServerProcess:
    """Run a job under strikes of `failpoints`. Exit codes are the command line's, or -SIGNAL."""
    return fork(
        Drive(job.spec(**changes), str(job.path), job.module), points, job.path / "driver.log"
    )


def fork(work: Callable[[], None], points: str, log: Path) -> ForkServerProcess:
    """Some work in a process of its own; what it raises is written to `log`."""
    process = _FORKS.Process(target=_run, args=(work, points, log))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 120) -> int:
    """Its exit code; AssertionError if it does not end in time."""
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"a driver did not end within {seconds} s")
    process.close()
    return code


def _run(work: Callable[[], None], points: str, log: Path) -> None:
    failpoints.arm(points)
    try:
        work()
    except IntegrandError as error:
        log.write_text(traceback.format_exc())
        raise SystemExit(error.exit_code) from None
    except Exception:
        log.write_text(traceback.format_exc())
        raise
