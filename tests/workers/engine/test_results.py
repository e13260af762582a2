"""What a call returns, as columns of results."""

from __future__ import annotations

import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.row_results import NUMBERS, RowResults
from integrand.workers.methods.attribution import attribute
from tests.plugins.explaining import explained
from tests.plugins.results import assert_same

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[2], X[4, 1] = 0, torch.nan


def forward(v: Tensor) -> Tensor:
    return torch.stack(
        [v.sin().sum(1), (v * 9).sin().sum(1), ((v * 9) % 2 - 1).abs().sum(1), v.sum(1)], 1
    )


def test_targets_of_two_calls_side_by_side_are_those_of_one() -> None:
    accuracy = Adaptive(tolerance=1e-3, max_evaluations=31)
    whole = explained(forward, X, target=[0, 1, 2, 3], accuracy=accuracy, batch_rows=16)
    parts = [
        explained(forward, X, target=some, accuracy=accuracy, batch_rows=16)
        for some in ([0], [1, 2], [3])
    ]
    found = RowResults.concat([part.results for part in parts], axis=1)
    assert_same(found, whole.results)
    assert {type(status) for status in found.status.flat} == {RowStatus}
    assert {RowStatus.ok, RowStatus.bad_input, RowStatus.not_converged} == set(found.status.flat)


def test_several_inputs_side_by_side() -> None:
    y = X[:, :2].clone()

    def both(a: Tensor, b: Tensor) -> Tensor:
        return forward(a) + b.sum(1, keepdim=True)

    parts = [explained(both, (X, y), target=[t], batch_rows=16).results for t in (0, 1)]
    found = RowResults.concat(parts, axis=1)
    assert [a.shape for a in found.attributions] == [(7, 2, 3), (7, 2, 2)]
    rows = torch.arange(7).numpy()
    for place, part in enumerate(parts):
        assert_same(found.take((rows, rows * 0 + place)), part.flat())


def test_a_call_for_one_target_has_an_entry_per_row() -> None:
    one = attribute(forward, X, target=1, batch_rows=16)
    listed = attribute(forward, X, target=[1], batch_rows=16)
    assert (one.f_input.shape, one.attributions.shape) == ((7,), (7, 3))
    assert (listed.f_input.shape, listed.attributions.shape) == ((7, 1), (7, 1, 3))
    for name in ("attributions", *NUMBERS):
        same, each = getattr(one, name), getattr(listed, name)[:, 0]
        torch.testing.assert_close(same, each, rtol=0, atol=0, equal_nan=True)
    assert (one.status, one.reason) == (listed.status, listed.reason)


def test_inputs_of_two_dtypes_keep_theirs() -> None:
    found = attribute(lambda a, b: a.sum(1) * b.sum(1), (X, X.float()), batch_rows=16)
    assert [a.dtype for a in found.attributions] == [torch.float64, torch.float32]
