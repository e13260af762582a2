"""Processes that a test starts, and whatever those start: told apart by a mark in their
environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tests.plugins.jobs import JobFolder

NAME = "INTEGRAND_TEST"


class Family:
    """Give `environment()` to a process; `living()` are then it and its descendants,
    orphans too.
    """

    def __init__(self) -> None:
        self.mark = uuid4().hex

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment without its Ray settings, with the mark."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return kept | {NAME: self.mark} | more

    def living(self) -> dict[int, str]:
        """Command lines by pid."""
        found = {
            int(name): self._command(Path("/proc", name))
            for name in os.listdir("/proc")
            if name.isdigit()
        }
        return {pid: command for pid, command in found.items() if command}

    def left(self, within: float) -> dict[int, str]:
        """Who still lives after so many seconds; returns sooner if nobody does."""
        ends = time.monotonic() + within
        while (found := self.living()) and time.monotonic() < ends:
            time.sleep(0.1)
        return found

    def kill(self, *names: str) -> None:
        """SIGKILL to all of them, or to those that have one of the names in their command line."""
        for pid in [
            pid
            for pid, command in self.living().items()
            if not names or any(n in command for n in names)
        ]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _command(self, process: Path) -> str:
        try:
            if f"{NAME}={self.mark}".encode() not in (process / "environ").read_bytes().split(
                b"\0"
            ):
                return ""
            return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return ""


def start(
    family: Family,
    job: JobFolder,
    spec: Path,
    *options: str,
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    """`integrand run` in a process of its own, maybe under a program that comes before it, on Ray
    unless options say otherwise.
    """
    pool = () if "--pool" in options else ("--pool", "ray")
    command = [
        *before,
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        str(spec),
        "--trust-model-code",
        job.module,
    ]
    return subprocess.Popen(
        [*command, *pool, *options],
        env=family.environment(**environment),
        cwd="/",
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def end(
    driver: subprocess.Popen[str], signum: int | None = None, seconds: float = 120
) -> tuple[int, str]:
    """Its exit code and all that it printed, after a signal if one is given."""
    if signum is not None:
        driver.send_signal(signum)
    output, _ = driver.communicate(timeout=seconds)
    return driver.returncode, output


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """AssertionError if it does not happen in time."""
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, f"it did not happen within {seconds} s"
        time.sleep(0.02)
