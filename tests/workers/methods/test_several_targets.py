"""Several targets asked for together, each as if asked for alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import Attribution, attribute
from tests.plugins.explaining import attribute_untried
from tests.toys import rows
from tests.workers.methods.models import network, rooted, spiky

F64 = torch.float64
ONE = torch.tensor([[1.0, 0.5, -0.4]], dtype=F64)
DIAGNOSTICS = ("attributions", "f_input", "f_baseline", "gap", "error_estimate", "evaluations")


def many(v: Tensor) -> Tensor:
    """One output of every kind: smooth, kinked, a spike, without numbers on the path, at the floor,
    constant, linear.
    """
    kinked = network(nn.ReLU)(v).squeeze(1)
    return torch.stack(
        [
            network(nn.GELU)(v).squeeze(1),
            kinked,
            spiky(v),
            rooted(v),
            v.sin().sum(1) * 1e-3 + 1e5,
            v.sum(1) * 0 + 3,
            v.sum(1),
            (9 * v).sin().sum(1),
            20 * kinked.sin(),
        ],
        1,
    )


KINDS = 9


@pytest.fixture(scope="module")
def separate() -> list[Attribution]:
    return [_explain(target, 16) for target in range(KINDS)]


def _explain(target: Any, batch_rows: int, chosen: Any = slice(None)) -> Attribution:
    x = torch.cat(
        [
            rows(5).float(),
            ONE.float(),
            torch.ones(1, 3),
            torch.zeros(1, 3),
            torch.full((1, 3), torch.nan),
        ]
    )
    return attribute(
        many,
        x[chosen],
        target=target,
        batch_rows=batch_rows,
        accuracy=Adaptive(tolerance=1e-3, max_evaluations=300),
    )


@pytest.mark.parametrize(
    "targets", [list(range(KINDS)), [8, 0], [3, 1, 4], [2], [5, 2, 7], [1, 1]], ids=str
)
def test_targets_asked_for_together_are_those_asked_for_alone(
    targets: list[int], separate: list[Attribution]
) -> None:
    """To the bit, whatever becomes of the targets beside them."""
    found = _explain(targets, 16)
    for place, target in enumerate(targets):
        alone = separate[target]
        for name in DIAGNOSTICS:
            one, other = getattr(found, name)[:, place], getattr(alone, name)
            assert torch.equal(one.nan_to_num(), other.nan_to_num()), (name, target)
            assert torch.equal(one.isnan(), other.isnan()), (name, target)
        assert found.status[place :: len(targets)] == alone.status
        assert found.reason[place :: len(targets)] == alone.reason


def test_the_targets_are_of_every_status(separate: list[Attribution]) -> None:
    statuses = {status for found in separate for status in found.status}
    assert statuses == {
        RowStatus.ok,
        RowStatus.not_converged,
        RowStatus.nonfinite,
        RowStatus.at_precision_floor,
        RowStatus.bad_input,
    }
    assert len({count for found in separate for count in found.evaluations.tolist()}) >= 7


@settings(max_examples=3, deadline=None)
@given(chosen=st.permutations(range(9)), cut=st.integers(1, 9))
def test_targets_of_some_rows_in_any_order(chosen: list[int], cut: int) -> None:
    targets = [2, 1, 8, 3]
    whole, some = _explain(targets, 16), _explain(targets, 16, chosen[:cut])
    for name in DIAGNOSTICS:
        assert torch.equal(
            getattr(some, name).nan_to_num(), getattr(whole, name)[chosen[:cut]].nan_to_num()
        ), name
    assert np.array_equal(
        np.reshape(some.status, (cut, 4)), np.reshape(whole.status, (9, 4))[chosen[:cut]]
    )


def test_targets_share_their_forward_passes() -> None:
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(len(v))
        return torch.stack([(k * v).sin().sum(1) for k in range(1, 11)], 1)

    x = rows(40)
    together = attribute_untried(
        counted,
        x,
        target=list(range(10)),
        accuracy=Adaptive(tolerance=1e-6),
        batch_rows=32,
    )
    shared, longest = len(calls), int(together.evaluations.max(1).values.sum())
    calls.clear()
    for target in range(10):
        attribute_untried(
            counted,
            x,
            target=target,
            accuracy=Adaptive(tolerance=1e-6),
            batch_rows=32,
        )
    assert shared < 0.4 * len(calls)
    assert shared * 32 < 1.3 * longest + 32 * 6


def test_targets_of_tensor_outputs_and_one_for_each_row() -> None:
    """A list of tuples, and a list of tensors with one target per row."""

    def outputs(v: Tensor) -> Tensor:
        return torch.einsum("rf,g->rfg", v.square(), torch.arange(1.0, 3).to(v))

    x = rows(5)
    found = attribute(outputs, x, target=[(0, 0), (2, 1)])
    assert found.attributions.shape == (5, 2, 3)
    expected = torch.zeros(5, 2, 3, dtype=F64)
    expected[:, 0, 0], expected[:, 1, 2] = x[:, 0] ** 2, 2 * x[:, 2] ** 2
    torch.testing.assert_close(found.attributions, expected)
    each = [
        torch.tensor([[i % 3, 0] for i in range(5)]),
        torch.tensor([[i % 3, 1] for i in range(5)]),
    ]
    found = attribute(outputs, x, target=each)
    torch.testing.assert_close(found.attributions[:, 1], 2 * found.attributions[:, 0])
    assert found.status == ("ok",) * 10


def test_gradients_of_several_targets_count_where_no_batch_is_asked_for() -> None:
    """Ten of them take many times the gradients of a row; one is planned as before."""
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(4096, 10, generator=torch.Generator().manual_seed(1)) / 64
    sizes = [
        attribute(lambda v: torch.tanh(v) @ weights, x, target=list(range(count))).batch_rows
        for count in (1, 10)
    ]
    assert sizes == [256, 16]
