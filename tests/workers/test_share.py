"""Several workers on one GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from integrand.workers.share import keep_to_share


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("gpus", "kept"), [(0, []), (0.25, [0.25]), (1, []), (2, [])])
def test_a_process_keeps_to_its_part_of_a_gpu(
    gpus: float, kept: list[float], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    keep_to_share(gpus)
    assert told == (kept if there else [])


SEEN = """
import os, ray
ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)

class Seen:
    def of(self):
        there = ray.get_runtime_context().get_assigned_resources()
        return there.get("GPU", 0.0), os.environ.get("CUDA_VISIBLE_DEVICES")

def actors(count, gpus):
    made = [ray.remote(Seen).options(num_cpus=0.1, num_gpus=gpus).remote() for _ in range(count)]
    print(sorted(ray.get([one.of.remote() for one in made])))
    for one in made:
        ray.kill(one)

actors(3, 0.5)
actors(2, 1)
"""


@pytest.mark.ray
def test_what_ray_reserves_and_shows() -> None:
    """As many as there is room for on one GPU, then the next; whole ones alone."""
    done = subprocess.run([sys.executable, "-c", SEEN], capture_output=True, text=True, timeout=120)
    packed, whole = done.stdout.splitlines()[-2:]
    assert packed == "[(0.5, '0'), (0.5, '0'), (0.5, '1')]"
    assert whole == "[(1.0, '0'), (1.0, '1')]"
