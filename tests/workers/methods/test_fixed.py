"""A plain rule for every row: what it sums, in which precision, and what it says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import FixedSteps
from integrand.workers.methods.attribution import attribute
from integrand.workers.quadrature.rules import PLAIN, plain_rule
from tests.plugins.explaining import attribute_untried
from tests.toys import rows

F64 = torch.float64
RULES = [*PLAIN]


def forward(v: Tensor) -> Tensor:
    return torch.stack([(2 * v).sin().sum(1), v.exp().prod(1)], 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_attributions_are_the_weighted_sum_of_gradients(rule: Any, batch_rows: int) -> None:
    """Against a plain loop over the nodes, between two points each row has for itself."""
    x, baselines = rows(9), rows(18)[9:]
    accuracy = FixedSteps(rule=rule, steps=6)
    expected = torch.zeros_like(x)
    data = plain_rule(accuracy)
    for node, weight in zip(data.nodes, data.weights[0], strict=True):
        point = (baselines + node * (x - baselines)).requires_grad_()
        expected += weight * torch.autograd.grad(forward(point)[:, 1].sum(), point)[0]
    found = attribute(
        forward, x, baselines=baselines, target=1, accuracy=accuracy, batch_rows=batch_rows
    )
    torch.testing.assert_close(
        found.attributions, expected * (x - baselines), rtol=1e-13, atol=1e-13
    )
    assert found.evaluations.tolist() == [len(data.nodes)] * 9
    assert set(found.status) == {"unchecked"}
    assert found.error_estimate.isnan().all()


def test_several_targets_share_the_nodes() -> None:
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return forward(v)

    x, accuracy = rows(20), FixedSteps(steps=8)
    both = attribute_untried(counted, x, target=[0, 1], accuracy=accuracy, batch_rows=16)
    assert sum(calls) == 20 * 8 // 16
    for target in (0, 1):
        alone = attribute(forward, x, target=target, accuracy=accuracy, batch_rows=16)
        assert torch.equal(both.attributions[:, target], alone.attributions)
        assert torch.equal(both.gap[:, target], alone.gap)


def test_a_row_with_an_infinite_gradient_has_no_attribution() -> None:
    """√v has one at its left end, α = 0, which the left rule evaluates and the midpoint rule does
    not.
    """
    x = torch.tensor([[1.0], [4.0]], dtype=F64)
    left, midpoint = (
        attribute(lambda v: v.sqrt().sum(1), x, accuracy=FixedSteps(rule=rule, steps=100))
        for rule in ("left", "midpoint")
    )
    assert left.status == ("nonfinite",) * 2
    assert left.attributions.isnan().all()
    assert midpoint.status == ("unchecked",) * 2
    np.testing.assert_allclose(midpoint.attributions[:, 0], [1, 2], rtol=0.05)
