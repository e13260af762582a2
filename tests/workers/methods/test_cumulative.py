"""Cumulative attributions meet f along the path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from integrand.workers.methods.cumulative import attribute_along

F64 = torch.float64
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
BASELINE = torch.full((1, 5), 0.3, dtype=F64)
ASKED = Adaptive(tolerance=1e-8)


def saturating(x: Tensor) -> Tensor:
    return torch.tanh(3 * x).sum(1) + x[:, 0] * x[:, 1]


def test_sums_meet_f_everywhere_on_the_path() -> None:
    found = attribute_along(saturating, X, baselines=BASELINE, accuracy=ASKED)
    assert found.sums.shape == (11, 4)
    torch.testing.assert_close(found.sums, found.f - found.f_baseline, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.f[0], found.f_baseline)
    torch.testing.assert_close(found.f[-1], saturating(X))
    assert set(found.status.flat) == {RowStatus.ok}


def test_the_whole_path_is_the_attribution() -> None:
    found = attribute_along(saturating, X, baselines=BASELINE, accuracy=ASKED, alphas=(0.5, 1.0))
    whole = attribute(saturating, X, baselines=BASELINE, accuracy=ASKED)
    assert torch.equal(found.attributions[0][-1], whole.attributions)


def test_each_part_is_a_naive_sum_over_its_nodes() -> None:
    found = attribute_along(saturating, X, baselines=BASELINE, accuracy=ASKED, alphas=(0.4,))
    nodes = (torch.arange(4000, dtype=F64) + 0.5) / 4000 * 0.4
    points = (BASELINE + nodes[:, None, None] * (X - BASELINE)).requires_grad_()
    (gradients,) = torch.autograd.grad(saturating(points.flatten(0, 1)).sum(), points)
    exact = 0.4 * (X - BASELINE) * gradients.mean(0)
    torch.testing.assert_close(found.attributions[0][0], exact, rtol=1e-6, atol=1e-7)


def test_expected_gradients_after_some_draws_meet_the_mean_of_f_so_far() -> None:
    background = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    for draws in range(1, 7):
        some = background[:draws]
        found = attribute(saturating, X, baselines=some, draws=draws, accuracy=ASKED)
        assert isinstance(found.attributions, Tensor)
        change = saturating(X) - saturating(some).mean()
        torch.testing.assert_close(found.attributions.sum(1), change, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alphas", [(), (0.5, 1.5), (-0.1,)])
def test_places_off_the_path_are_refused(alphas: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="places from 0 to 1"):
        attribute_along(saturating, X, alphas=alphas)
