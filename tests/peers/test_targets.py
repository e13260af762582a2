"""Which output is explained: every form of a target on every shape of output, and which of them
must raise.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.methods.attribution import attribute
from tests.peers.models import F64, mlp, multidim, normal

N = 4
X = normal(N, 3)
Target = int | tuple[int, ...] | Tensor | None


def outputs(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[rows, *shape]`: element k of a row is (k + 1) Σ x², so attributions name the target that
    was explained.
    """
    factors = torch.arange(1, 1 + torch.Size(shape).numel()).to(x)
    return (x.square().sum(1, keepdim=True) * factors).reshape(len(x), *shape)


VALID: list[tuple[tuple[int, ...], Target, list[int]]] = [
    ((), None, [1]),
    ((1,), None, [1]),
    ((1,), 0, [1]),
    ((1, 1), None, [1]),
    ((5,), 3, [4]),
    ((5,), (3,), [4]),
    ((5,), torch.tensor(3), [4]),
    ((5,), torch.tensor([0, 4, 4, 2]), [1, 5, 5, 3]),
    ((5,), torch.tensor([[0], [4], [4], [2]]), [1, 5, 5, 3]),
    ((5,), torch.tensor([0, 4, 4, 2], dtype=torch.uint8), [1, 5, 5, 3]),
    ((2, 3), (1, 0), [4]),
    ((2, 3), torch.tensor([[1, 2], [0, 0], [0, 2], [1, 0]]), [6, 1, 3, 4]),
    ((2, 3, 2), (1, 2, 1), [12]),
]


@pytest.mark.parametrize(("shape", "target", "factors"), VALID, ids=str)
def test_a_target_that_fits(shape: tuple[int, ...], target: Target, factors: list[int]) -> None:
    found = attribute(lambda x: outputs(x, shape), X, target=target)
    torch.testing.assert_close(
        found.attributions, X.square() * torch.tensor(factors, dtype=F64).reshape(-1, 1)
    )
    torch.testing.assert_close(found.f_input, X.square().sum(1) * torch.tensor(factors, dtype=F64))


REFUSED: list[tuple[tuple[int, ...], Target]] = [
    ((5,), None),
    ((2, 3), None),
    ((5,), 5),
    ((5,), -1),
    ((5,), torch.tensor([0, 1, 2])),
    ((5,), torch.tensor([0, 1, 2, 3, 4])),
    ((5,), torch.tensor([0, 1, 2, 5])),
    ((5,), torch.tensor([0, -1, 2, 3])),
    ((5,), torch.tensor([[0, 1], [0, 1], [0, 1], [0, 1]])),
    ((5,), torch.tensor([0.0, 1, 2, 3])),
    ((5,), torch.tensor([True, False, True, False])),
    ((5,), True),
    ((5,), (1, 0)),
    ((), 0),
    ((2, 3), 1),
    ((2, 3), (2, 0)),
    ((2, 3), (0, 3)),
    ((2, 3), (0, -1)),
    ((2, 3), (0, 0, 0)),
    ((2, 3), torch.tensor([0, 1, 0, 1])),
    ((2, 3), torch.tensor([[0, 0], [0, 1], [0, 2], [2, 0]])),
    ((2, 3), torch.tensor([[[0, 0]], [[0, 1]], [[0, 2]], [[1, 0]]])),
]


@pytest.mark.parametrize(("shape", "target"), REFUSED, ids=str)
def test_a_target_that_does_not_fit_is_refused_and_named(
    shape: tuple[int, ...], target: Target
) -> None:
    """Case 43, and more. Nothing is taken from the end of an axis, cut short or repeated."""
    with pytest.raises(SpecError, match=r"^target") as refused:
        attribute(lambda x: outputs(x, shape), X, target=target)
    assert refused.value.next_step


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("kind", ["index", "table", "tuple"])
def test_a_batch_with_targets_is_its_rows_one_by_one(kind: str) -> None:
    """Case 27."""
    model, x = (mlp(), normal(6, 5)) if kind != "tuple" else (multidim, normal(6, 3).abs())
    target: Target = {"index": 2, "table": torch.tensor([2, 0, 1, 1, 0, 2]), "tuple": (1, 0, 1)}[
        kind
    ]
    whole = attribute(model, x, target=target, batch_rows=16)
    for i in range(len(x)):
        of_row = target[i : i + 1] if isinstance(target, Tensor) else target
        alone = attribute(model, x[i : i + 1], target=of_row, batch_rows=16)
        assert torch.equal(alone.attributions[0], whole.attributions[i])
        assert alone.f_input[0] == whole.f_input[i]


def test_targets_of_other_rows_do_not_reach_a_row() -> None:
    model, x = mlp(), normal(6, 5)
    one, other = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 2, 1, 1, 0, 0])
    found = [attribute(model, x, target=t, batch_rows=16).attributions for t in (one, other)]
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
