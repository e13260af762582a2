"""Failpoints: what a strike says, when it strikes, and that nothing happens where none is set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integrand.workers import failpoints

REACH = (
    "from integrand.workers.failpoints import reach; [reach('shard.read') for _ in range({times})];"
    " print('alive')"
)


def passing(strikes: str, times: int = 1) -> subprocess.Popen[str]:
    """A process that comes to one point so many times, and then says that it lives."""
    environment = os.environ | {failpoints.VARIABLE: strikes}
    return subprocess.Popen(
        [sys.executable, "-c", REACH.format(times=times)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.strip()


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.mark.parametrize(
    ("strikes", "times", "signal_number"),
    [
        ("", 9, None),
        ("shard.computed=kill", 9, None),
        ("shard.read=kill", 1, signal.SIGKILL),
        ("shard.computed=hang;shard.read=segfault", 1, signal.SIGSEGV),
        ("shard.read=kill#3", 2, None),
        ("shard.read=kill#3", 3, signal.SIGKILL),
        ("*=kill#3", 3, signal.SIGKILL),
    ],
)
def test_a_process_dies_where_it_is_told_to(
    strikes: str, times: int, signal_number: signal.Signals | None
):
    alive = (0, "alive") if signal_number is None else (-signal_number, "")
    assert end_of(passing(strikes, times)) == alive


def test_a_token_is_for_one_process_and_holds_its_id(tmp_path: Path):
    strikes = tmp_path / "strikes"
    strikes.write_text(f"shard.read=kill@{tmp_path}/token")
    processes = [passing(f"@{strikes}") for _ in range(3)]
    ends = [end_of(process) for process in processes]
    assert sorted(ends) == [(-signal.SIGKILL, ""), (0, "alive"), (0, "alive")]
    struck = processes[ends.index((-signal.SIGKILL, ""))]
    assert (tmp_path / "token").read_text() == str(struck.pid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["strikes", "token"]


@pytest.mark.parametrize("action", ["hang", "spin", "wait:{folder}/go"])
def test_a_process_that_is_held_lives_and_comes_no_further(tmp_path: Path, action: str):
    process = passing(f"shard.read={action}@{tmp_path}/token".replace("{folder}", str(tmp_path)))
    while not (tmp_path / "token").exists():
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    (tmp_path / "go").touch()
    if not action.startswith("wait"):
        process.kill()
    assert end_of(process) == ((0, "alive") if action.startswith("wait") else (-signal.SIGKILL, ""))


@pytest.mark.parametrize(
    "strikes", ["shard.raed=kill", "shard.read=die", "shard.read", "shard.read=kill#x"]
)
def test_a_misspelt_strike_is_refused(strikes: str):
    with pytest.raises(ValueError, match=r"INTEGRAND_FAILPOINTS.*" + strikes):
        failpoints.arm(strikes)


@pytest.mark.usefixtures("disarmed")
def test_arming_takes_the_place_of_what_was_armed(tmp_path: Path):
    failpoints.arm(f"shard.read=wait:{tmp_path}#2@{tmp_path}/first")
    failpoints.reach("shard.read")
    failpoints.arm(f"shard.begun=wait:{tmp_path}@{tmp_path}/second")
    failpoints.reach("shard.read")
    failpoints.reach("shard.read")
    failpoints.reach("shard.begun")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
