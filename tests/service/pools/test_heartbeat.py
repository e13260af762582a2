"""A cluster that is gone is told, even while whoever should be told hangs inside Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from integrand.schemas.errors import TransientError
from integrand.service.pools import heartbeat
from integrand.service.pools.heartbeat import ClusterHeartbeat

GONE = "127.0.0.1:1"


def test_a_dead_raylet_ends_the_run_as_retryable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.02)
    found = ClusterHeartbeat(GONE, str(tmp_path / "raylet"))
    with pytest.raises(TransientError, match="raylet on this node is dead"):
        check_for(found, 20)
    found.close()


def check_for(found: ClusterHeartbeat, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found.check()
        time.sleep(0.02)


def test_a_process_that_hangs_in_ray_ends_with_a_word(tmp_path: Path):
    """Ray would end it a little later, with code 1 and none."""
    code = f"""
import time
from integrand.service.pools import heartbeat
heartbeat.EVERY_S, heartbeat.LAST_WORD_S = 0.05, 0.5
watching = heartbeat.ClusterHeartbeat({GONE!r}, {str(tmp_path / "raylet")!r})
time.sleep(120)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == TransientError.exit_code
    assert "TransientError: Ray at 127.0.0.1:1" in ended.stderr
    assert "it resumes" in ended.stderr
