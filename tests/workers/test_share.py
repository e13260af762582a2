"""Several workers on one GPU."""

from __future__ import annotations

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
