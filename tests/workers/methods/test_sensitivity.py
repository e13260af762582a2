"""A feature that changed the output gets credit, where a gradient, or one baseline, sees nothing:
Sundararajan, Taly & Yan 2017, §2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact
from integrand.schemas.specs.methods import ExpectedGradients, Saliency
from integrand.workers.methods.attribution import attribute

F64 = torch.float64
CLOSE = Adaptive(tolerance=1e-9)


def found(forward: nn.Module, x: Tensor, accuracy: Accuracy) -> Tensor:
    result = attribute(forward, x, accuracy=accuracy)
    assert isinstance(result.attributions, Tensor)
    return result.attributions


class Flat(nn.Module):
    """F = 1 − ReLU(1 − x): flat beyond 1."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 1 - torch.relu(1 - x[:, 0])
        return out


def test_sensitivity_where_the_gradient_is_blind() -> None:
    """At x = 2 the gradient is 0; from 0 to there F rises by 1, and the one feature did it."""
    x = torch.tensor([[2.0]], dtype=F64)
    gradient = attribute(Flat().eval(), x, method=Saliency()).attributions
    assert gradient.tolist() == [[0]]
    credit = found(Flat().eval(), x, Adaptive(tolerance=1e-2))
    torch.testing.assert_close(credit, torch.ones_like(x), rtol=1e-2, atol=0)


def test_sensitivity_of_a_kinked_network_in_closed_form() -> None:
    layer = nn.Linear(1, 1).double()
    last = nn.Linear(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(-1)
        layer.bias.fill_(1)
        last.weight.fill_(-1)
        last.bias.fill_(1)
    model = nn.Sequential(layer, nn.ReLU(), last).eval()
    x = torch.tensor([[2.0]], dtype=F64)
    assert found(model, x, Exact()).tolist() == [[1]]


def test_baselines_on_average_see_what_one_is_blind_to() -> None:
    x = torch.full((1, 2), 0.7, dtype=F64)
    background = torch.tensor([[0.7, 0.2], [0.1, 0.7]], dtype=F64)
    product = ExpectedGradients(sampling="product")
    seen = attribute(
        lambda x: x.exp().sum(1), x, baselines=background, draws=2, method=product, accuracy=CLOSE
    )
    assert (seen.attributions > 0).all()
