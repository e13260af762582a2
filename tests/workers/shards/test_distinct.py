"""Rows told apart by every bit that the model gets."""

from __future__ import annotations

import torch

from integrand.workers.shards.distinct import distinct_rows

X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])


def test_a_row_is_known_by_the_first_that_equals_it() -> None:
    found = distinct_rows([X], torch.arange(5))
    assert found.first.tolist() == [0, 1]
    assert found.copied.tolist() == [0, 1, 0, 1, 0]
    assert found.duplicates == 3


def test_what_goes_along_tells_rows_apart() -> None:
    mask = torch.tensor([True, True, True, False, False])
    assert distinct_rows([X, mask], torch.arange(5)).first.tolist() == [0, 1, 3, 4]


def test_rows_that_are_left_out_are_nobodys_first() -> None:
    found = distinct_rows([X], torch.tensor([2, 3, 4]))
    assert (found.first.tolist(), found.copied.tolist()) == ([2, 3], [0, 1, 0])


def test_signed_zeros_are_two_and_equal_nans_are_one() -> None:
    x = torch.tensor([0.0, -0.0, torch.nan, torch.nan])
    assert distinct_rows([x], torch.arange(4)).copied.tolist() == [0, 1, 2, 2]


def test_no_rows_are_no_rows() -> None:
    found = distinct_rows([X], torch.tensor([], dtype=torch.int64))
    assert (len(found.first), found.first.dtype, found.duplicates) == (0, torch.int64, 0)
