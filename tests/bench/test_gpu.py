"""The script that measures on a GPU runs to its end, and says so where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("gpu.py")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_runs_on_a_cpu_to_show_that_it_runs() -> None:
    done = run("--device", "cpu", "--smoke")
    assert done.returncode == 0, done.stderr
    for words in ("the limit", "Captum, 50 nodes", "the same 50 nodes", "adaptive 0.01"):
        assert done.stdout.count(words) >= 4
    checked = done.stdout.split("Certificates")[1]
    assert all(name in checked for name in ("MLP-96 GELU", "MLP-96 ReLU", "MNIST CNN", "MiniLM"))
    assert "no figure here is one of a GPU" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so() -> None:
    done = run()
    assert done.returncode == 1
    assert "no CUDA device here" in done.stderr
    assert "--device cpu --smoke" in done.stderr
