"""What a notebook passes, as tensors of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.workers.methods.arguments import check_batch_rows, row_tensors

X = torch.ones(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("baselines", "shape"),
    [(None, (1, 2)), (1.5, (1, 2)), (np.float32(1.5), (1, 2)), (X[:1], (1, 2)), (2 * X, (3, 2))],
    ids=["none", "number", "numpy", "shared", "each"],
)
def test_baselines_are_shared_or_one_each(baselines: Any, shape: tuple[int, ...]) -> None:
    rows = row_tensors(X, baselines, (), None)
    assert rows.baselines[0].shape == shape
    assert rows.baselines[0].dtype == X.dtype
    assert (rows.rows, rows.forward_args, rows.target) == (3, (), None)


def test_targets_are_a_table_for_every_row() -> None:
    assert row_tensors(X, None, (), 1).target.tolist() == [[[1]]] * 3
    assert row_tensors(X, None, (), [0, 1]).target.tolist() == [[[0], [1]]] * 3


def test_what_was_made_in_inference_mode_is_copied() -> None:
    with torch.inference_mode():
        x = torch.ones(2, 2)
    assert not row_tensors(x, x[:1], x, None).inputs[0].is_inference()


def test_no_batch_has_no_rows() -> None:
    check_batch_rows(None)
    with pytest.raises(SpecError, match="at least 1, or None"):
        check_batch_rows(0)
