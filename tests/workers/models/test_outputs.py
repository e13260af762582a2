"""Targets and outputs: every kind becomes a table of indices, and what does not fit is refused in
words.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.workers.models.outputs import (
    check_output,
    select,
    target_table,
    target_tables,
    transformed,
)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (2, [[2], [2], [2]]),
        ((1, 0), [[1, 0]] * 3),
        (torch.tensor(1), [[1]] * 3),
        (torch.tensor([0, 2, 1]), [[0], [2], [1]]),
        (torch.tensor([0, 2, 1], dtype=torch.int32), [[0], [2], [1]]),
        (torch.tensor([[0, 1], [1, 1], [1, 0]]), [[0, 1], [1, 1], [1, 0]]),
    ],
)
def test_targets_become_one_index_row_each(target: Any, expected: list[list[int]]) -> None:
    table = target_table(target, 3)
    assert table is not None
    assert table.dtype == torch.int64
    assert table.tolist() == expected


@pytest.mark.parametrize(
    "target",
    [
        True,
        1.0,
        "1",
        [0, 1, 2],
        (1.5,),
        ("a",),
        (True,),
        torch.ones(3),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64),
        torch.tensor([0, 1]),
        torch.zeros(3, 1, 1, dtype=torch.int64),
    ],
    ids=repr,
)
def test_other_targets_are_refused(target: Any) -> None:
    with pytest.raises(SpecError) as refused:
        target_table(target, 3)
    assert all(
        [refused.value.where, refused.value.expected, refused.value.seen, refused.value.next_step]
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (2, [[[2]]] * 3),
        ([2], [[[2]]] * 3),
        ([2, 0], [[[2], [0]]] * 3),
        ([(1, 0), (0, 1)], [[[1, 0], [0, 1]]] * 3),
        ([torch.tensor([0, 1, 2]), 1], [[[0], [1]], [[1], [1]], [[2], [1]]]),
        (None, None),
        ([1, 1], [[[1], [1]]] * 3),
    ],
    ids=repr,
)
def test_lists_of_targets_become_one_table(
    target: Any, expected: list[list[list[int]]] | None
) -> None:
    table = target_tables(target, 3)
    assert (None if table is None else table.tolist()) == expected


@pytest.mark.parametrize(
    "target", [[], [0, (0, 1)], [0, None], [None], [[0]], [0, True], [torch.ones(3)]], ids=repr
)
def test_lists_of_unlike_targets_are_refused(target: Any) -> None:
    with pytest.raises(SpecError) as refused:
        target_tables(target, 3)
    assert all(
        [refused.value.where, refused.value.expected, refused.value.seen, refused.value.next_step]
    )


@pytest.mark.parametrize(
    ("out", "target"),
    [
        ((torch.zeros(3, 2),), 0),
        (torch.tensor(1.0), None),
        (torch.zeros(2, 2), 0),
        (torch.zeros(3, 2).long(), 0),
        (torch.zeros(3, 2), None),
        (torch.zeros(3), 0),
        (torch.zeros(3, 2), (0, 0)),
        (torch.zeros(3, 2), 2),
        (torch.zeros(3, 2), -1),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2])),
        (torch.zeros(3, 2, 2), (0, 2)),
    ],
    ids=str,
)
def test_outputs_that_do_not_fit_are_refused(out: Any, target: Any) -> None:
    with pytest.raises(SpecError) as refused:
        check_output(out, 3, target_table(target, 3))
    assert all(
        [refused.value.where, refused.value.expected, refused.value.seen, refused.value.next_step]
    )


def test_the_first_row_with_a_wrong_target_is_named() -> None:
    with pytest.raises(SpecError, match=r"target of row 2\n  expected: from 0 to 1\n  seen: 2"):
        check_output(torch.zeros(3, 2), 3, target_table(torch.tensor([0, 1, 2]), 3))


def test_select_takes_each_rows_own_output() -> None:
    out = torch.arange(12.0).reshape(3, 2, 2)
    assert select(out, target_table(torch.tensor([[0, 0], [1, 0], [1, 1]]), 3)).tolist() == [
        0,
        6,
        11,
    ]
    assert select(out[:, 0, :1], None).tolist() == [0, 4, 8]
    assert select(out[:, 0, 0], None).tolist() == [0, 4, 8]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid"])
def test_transforms_act_on_the_outputs_of_a_row(name: str) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    expected = {
        "softmax": x.exp() / x.exp().sum(1, True),
        "sigmoid": 1 / (1 + (-x).exp()),
        "log_softmax": x - x.exp().sum(1, True).log(),
    }[name]
    torch.testing.assert_close(transformed(lambda v: v, name)(x), expected)
    assert torch.equal(transformed(torch.neg, "none")(x), -x)
