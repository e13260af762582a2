"""Models that take only some numbers of rows, given those."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor

from integrand.workers.models.portions import find_portion, in_portions

X = torch.arange(14.0).reshape(7, 2)


class Picky:
    def __init__(self, taken: Collection[int], refused: float | None = None) -> None:
        self.taken, self.refused = taken, refused

    def __call__(self, x: Tensor, factor: Tensor) -> Tensor:
        if len(x) not in self.taken or (
            self.refused is not None and (x[:, 0] == self.refused).any()
        ):
            raise RuntimeError("not these")
        return x.sum(1) * factor


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_rows_go_in_portions_and_come_out_in_order(rows: int) -> None:
    points = X.clone().requires_grad_()
    out = in_portions(Picky({rows}), rows)(points, torch.arange(7.0))
    out.sum().backward()
    assert torch.equal(out, X.sum(1) * torch.arange(7.0))
    assert points.grad is not None
    assert torch.equal(points.grad, torch.arange(7.0)[:, None].expand(7, 2))


def test_a_model_that_takes_any_number_stays_itself() -> None:
    model = Picky(range(1000))
    assert in_portions(model, None) is model


@pytest.mark.parametrize(
    ("taken", "asked", "portion"),
    [
        (range(1, 2000), (), None),
        (range(2, 17), (), None),
        ((8,), (), 8),
        ((5,), (), 5),
        ((1,), (), 1),
        ((512,), (), 512),
        ((77,), (), None),
        ((77,), (77,), 77),
        (range(1, 8), (), 7),
        (range(1, 8), (3,), 3),
    ],
)
def test_the_number_is_found(
    taken: Collection[int], asked: tuple[int, ...], portion: int | None
) -> None:
    assert find_portion(Picky(taken), [X, torch.ones(7)], asked) == portion


@pytest.mark.parametrize("rows", [24, 200, 1024])
def test_one_row_that_is_broadcast_to_more_is_no_portion(rows: int) -> None:
    """A state of 24 rows takes one row too, and gives 24."""
    state = torch.zeros(rows, 2)
    assert find_portion(lambda x: x + state, [X], ()) == rows


def test_a_row_on_which_the_model_raises_is_another_matter() -> None:
    assert find_portion(Picky(range(100), refused=0.0), [X, torch.ones(7)], ()) is None
    assert find_portion(Picky((8,), refused=0.0), [X, torch.ones(7)], ()) == 8
