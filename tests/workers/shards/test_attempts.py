"""Calls about the same rows, as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from integrand.workers.shards.attempts import side_by_side
from tests.plugins.explaining import explained

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def forward(v: Tensor) -> Tensor:
    return torch.stack([v.sin().sum(1), v.cos().sum(1)], 1)


def greedy(v: Tensor) -> Tensor:
    if len(v) > 4:
        raise MemoryError
    return forward(v)


@pytest.mark.parametrize(
    ("models", "halved"),
    [([forward, forward], None), ([forward, greedy], 4), ([greedy, greedy], 4)],
    ids=["never", "once", "always"],
)
def test_the_fewest_rows_of_a_batch_are_those_of_all_targets(
    models: list, halved: int | None
) -> None:
    calls = [explained(f, X, target=[0], batch_rows=16) for f in models]
    found = side_by_side(calls, planned=16)
    assert (found.halved, found.padded) == (halved, sum(call.padded for call in calls))
    assert found.rows.status.shape == (4,)
