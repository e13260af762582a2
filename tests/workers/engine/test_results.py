"""Results put together: several calls about the same rows side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.results import beside
from integrand.workers.methods.attribution import attribute

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[2], X[4, 1] = 0, torch.nan
NAMES = ("f_input", "f_baseline", "gap", "error_estimate", "evaluations")


def forward(v: Tensor) -> Tensor:
    return torch.stack(
        [v.sin().sum(1), (v * 9).sin().sum(1), ((v * 9) % 2 - 1).abs().sum(1), v.sum(1)], 1
    )


def test_targets_of_two_calls_side_by_side_are_those_of_one() -> None:
    accuracy = Adaptive(tolerance=1e-3, max_evaluations=31)
    whole = attribute(forward, X, target=[0, 1, 2, 3], accuracy=accuracy, batch_rows=16)
    parts = [
        attribute(forward, X, target=some, accuracy=accuracy, batch_rows=16)
        for some in ([0], [1, 2], [3])
    ]
    found = beside(parts)
    torch.testing.assert_close(
        found.attributions, whole.attributions, rtol=0, atol=0, equal_nan=True
    )
    for name in NAMES:
        torch.testing.assert_close(
            getattr(found, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True
        )
    assert (found.status, found.reason) == (whole.status, whole.reason)
    assert {type(status) for status in found.status} == {RowStatus}
    assert {RowStatus.ok, RowStatus.bad_input, RowStatus.not_converged} == set(found.status)
    assert found.padded == sum(part.padded for part in parts)
    assert found.batch_rows == 16


def test_several_inputs_side_by_side() -> None:
    y = X[:, :2].clone()
    parts = [
        attribute(
            lambda a, b: forward(a) + b.sum(1, keepdim=True), (X, y), target=[t], batch_rows=16
        )
        for t in (0, 1)
    ]
    found = beside(parts)
    assert isinstance(found.attributions, tuple)
    assert [a.shape for a in found.attributions] == [(7, 2, 3), (7, 2, 2)]
    for place, part in enumerate(parts):
        for one, other in zip(found.attributions, part.attributions, strict=True):
            torch.testing.assert_close(one[:, place], other[:, 0], rtol=0, atol=0, equal_nan=True)


def test_the_fewest_rows_of_a_batch_are_told() -> None:
    def greedy(v: Tensor) -> Tensor:
        if len(v) > 4:
            raise MemoryError
        return forward(v)

    clean = X[:2]
    parts = [
        attribute(f, clean, target=[0], batch_rows=16, checked=True) for f in (forward, greedy)
    ]
    assert beside(parts).batch_rows == 4
