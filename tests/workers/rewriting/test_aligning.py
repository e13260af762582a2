"""Linear layers of whole vectors give what the layers give that they were made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.aligning import AlignedLinear, align, alignable
from integrand.workers.rewriting.choosing import with_alignment
from integrand.workers.rewriting.savings import ALIGN, HOIST, Savings, apply


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 2), (16, 3), (5, 16), (33, 17)])
def test_values_and_gradients_are_the_layers_own(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    x = torch.randn(6, 3, inputs, dtype=torch.float64, requires_grad=True)
    aligned = align(layer)
    assert isinstance(aligned, AlignedLinear)
    for one, other in zip(
        torch.autograd.grad(layer(x).sin().sum(), x),
        torch.autograd.grad(aligned(x).sin().sum(), x),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(aligned(x), layer(x))


def test_only_layers_of_odd_widths_are_touched_and_the_model_is_not() -> None:
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5), nn.TransformerEncoderLayer(5, 1, 7)
    )
    aligned = align(model)
    assert [type(m).__name__ for m in aligned.children()] == [
        "Linear",
        "ReLU",
        "AlignedLinear",
        "TransformerEncoderLayer",
    ]
    assert not any(isinstance(m, AlignedLinear) for m in [*model.modules(), *aligned[3].modules()])
    assert alignable(model)
    assert not alignable(nn.Sequential(nn.Linear(16, 32), nn.GRU(3, 3)))


class Reading(nn.Module):
    """Reads the weight of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layer.weight.T


def against_zeros(x: torch.Tensor, table: torch.Tensor) -> RowTensors:
    return RowTensors((x,), (torch.zeros_like(x[:1]),), target=table)


def test_alignment_is_verified_like_a_saving_and_goes_with_others() -> None:
    torch.manual_seed(0)
    x, table = torch.randn(6, 300), torch.ones(6, 1, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(300, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    kept = with_alignment(model, Savings((HOIST.name,)), against_zeros(x, table))
    assert kept is not None
    assert kept.names == (ALIGN.name, HOIST.name)
    torch.testing.assert_close(apply(model, kept, [x]).forward(x), model(x))
    narrow, whole = against_zeros(x[:, :7], table), against_zeros(x[:, :16], table)
    assert with_alignment(Reading().eval(), Savings(), narrow) is None
    assert with_alignment(nn.Sequential(nn.Linear(16, 16)).eval(), Savings(), whole) is None
    assert with_alignment(lambda v: v, Savings(), against_zeros(x, table)) is None
