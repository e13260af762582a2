"""What rows cost, by method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.service.planning.cost import evaluations_per_row, seconds_per_row, worker_bytes
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors

SAMPLE = RowTensors((torch.randn(4, 3, dtype=torch.float64),), (torch.zeros(1, 3),))


def evaluations(accuracy: Accuracy, batch_s: float) -> float:
    prepared = Prepared(lambda x: x.square().sum(1))
    return evaluations_per_row(method_of(accuracy), prepared, SAMPLE, 16, batch_s)


@pytest.mark.parametrize(
    ("accuracy", "batch_s", "expected"),
    [
        (Adaptive(), 1e-6, 7.0),
        (Adaptive(max_evaluations=99), 100.0, 99.0),
        (FixedSteps(rule="trapezoid", steps=9), 1e-6, 10.0),
        (Exact(), 1e-6, 1.0),
    ],
    ids=["tried", "too slow to try", "fixed", "exact"],
)
def test_rows_that_differ_are_tried_where_that_is_quick(
    accuracy: Any, batch_s: float, expected: float
) -> None:
    assert evaluations(accuracy, batch_s) == expected


def test_a_row_takes_its_evaluations_and_its_ends() -> None:
    assert seconds_per_row(7, 16, 1.6) == pytest.approx(8 * 0.1 * 1.2)


def test_a_plain_sum_keeps_less_than_a_certificate() -> None:
    wide = RowTensors((torch.zeros(1, 1 << 20),))
    fixed, adaptive = (
        worker_bytes(method_of(a), wide, 1, 16) for a in (FixedSteps(steps=7), Adaptive())
    )
    assert adaptive - fixed > 7 * 60 * 8 << 20
