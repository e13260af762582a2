"""Verdicts of the closed form: zeros are zeros, and what rounding has spoilt is no `ok`."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact
from integrand.workers.methods.attribution import attribute

ACCURACIES = [Adaptive(), Exact()]


def dead(*sizes: int) -> nn.Sequential:
    """A network whose last ReLU is shut wherever features are positive."""
    layers: list[nn.Module] = []
    for width, outputs in pairwise(sizes):
        layers += [nn.Linear(width, outputs), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        model[-2].weight.fill_(-1.0)
    return model


@pytest.mark.parametrize("accuracy", ACCURACIES, ids=lambda a: a.kind)
@pytest.mark.parametrize("sizes", [(2, 1), (2, 4, 1), (2, 4, 3)], ids=str)
def test_a_row_whose_attributions_are_all_zero_has_zeros(
    accuracy: Accuracy, sizes: tuple[int, ...]
) -> None:
    """They were NaN, under `ok` and without a reason."""
    x = torch.tensor([[1.0, 3.0], [2.0, 4.0], [0.0, 0.0]])
    found = attribute(dead(*sizes), x, target=None if sizes[-1] == 1 else 1, accuracy=accuracy)
    assert found.status == ("ok",) * 3
    assert found.evaluations.tolist() == [0, 0, 0], "the closed form was meant"
    for values in (found.attributions, found.gap, found.error_estimate, found.f_input):
        assert torch.equal(values, torch.zeros_like(values))


def test_rows_with_and_without_attributions_stand_beside_each_other() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.zero_()
    found = attribute(model, torch.tensor([[-1.0], [3.0], [0.0]]), accuracy=Exact())
    assert found.attributions.tolist() == [[0.0], [6.0], [0.0]]
    assert found.gap.tolist() == [0, 0, 0]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-9])
def test_a_row_above_the_tolerance_is_what_rounding_allows(tolerance: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    found = attribute(model, torch.randn(4, 3), accuracy=Adaptive(tolerance=tolerance))
    assert set(found.status) == {"ok" if tolerance > 1e-6 else "at_precision_floor"}
    assert [bool(reason) for reason in found.reason] == [tolerance < 1e-6] * 4


class Steep(nn.Module):
    """Weights beyond float64 once they are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
        with torch.no_grad():
            self.first.weight.fill_(1e200)
            self.last.weight.fill_(1e200)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def test_what_is_not_finite_is_nonfinite() -> None:
    found = attribute(Steep().eval(), torch.ones(2, 2, dtype=torch.float64), accuracy=Adaptive())
    assert set(found.status) == {"nonfinite"}
    assert found.attributions.isnan().all()
