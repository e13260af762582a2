"""Gradients of explained outputs, and tensors side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.models.gradients import SideBySide, gradients_at, gradients_of
from integrand.workers.models.outputs import target_table

F64 = torch.float64
X = torch.arange(12, dtype=F64).reshape(3, 4)
IMAGE = torch.arange(12, dtype=F64).reshape(3, 2, 2) + 100


def test_tensors_side_by_side_come_apart_again():
    joined = SideBySide.join([X, IMAGE])
    assert joined.shape == (3, 8)
    back = SideBySide.like([X, IMAGE]).split(joined)
    assert [torch.equal(a, b) for a, b in zip(back, (X, IMAGE), strict=True)] == [True, True]


def test_each_row_gets_the_gradient_of_its_own_target():
    def forward(x: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([x.sum(1), (image * scale[:, None, None]).sum((1, 2))], 1)

    scale = torch.tensor([2.0, 3.0, 5.0], dtype=F64)
    table = target_table(torch.tensor([0, 1, 1]), 3)
    out, found = gradients_at(forward, [X, IMAGE], [scale], table)
    assert not out.requires_grad
    assert torch.equal(out, forward(X, IMAGE, scale))
    assert found.tolist() == [[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [3.0] * 4, [0.0] * 4 + [5.0] * 4]


def test_what_is_given_is_neither_written_to_nor_made_to_require_gradients():
    x = X.clone()
    gradients_at(lambda v: v.mul_(2).sum(1), [x], [], None)
    assert torch.equal(x, X)
    assert not x.requires_grad


def test_points_that_do_not_matter_get_zeros():
    one, other = X.clone().requires_grad_(), IMAGE.clone().requires_grad_()
    found = gradients_of((one * 2).sum(), [one, other], required=True)
    assert [f.unique().tolist() for f in found] == [[2.0], [0.0]]


def test_an_output_that_depends_on_no_point_raises_where_that_is_required():
    one, weight = X.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    assert not gradients_of(weight.sum(), [one])[0].any()
    with pytest.raises(SpecError, match="no gradient path to any input"):
        gradients_of(weight.sum(), [one], required=True)
