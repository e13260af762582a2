"""The step-batch loop: what the model is shown, how often, and that a row's bits depend on the row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from integrand.schemas.specs import Adaptive, FixedSteps
from integrand.workers.attribution import Attribution, attribute
from integrand.workers.engine import batches
from integrand.workers.quadrature import nested_fejer


class Spy:
    """Records what it is called with, and whether gradients were wanted."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward
        self.seen: list[tuple[Tensor, bool]] = []

    def __call__(self, x: Tensor, *arguments: Tensor) -> Tensor:
        self.seen.append((x.detach().clone(), torch.is_grad_enabled()))
        return self.forward(x, *arguments)

    @property
    def plain(self) -> list[Tensor]:
        return [x for x, wanted in self.seen if not wanted]

    @property
    def stepped(self) -> list[Tensor]:
        """Step batches, without the first call, which tries one row."""
        return [x for x, wanted in self.seen if wanted][1:]


def wavy(x: Tensor) -> Tensor:
    return (3 * x).sin().sum(1)


X = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


@pytest.mark.parametrize("batch_rows", [1, 8, 16, 512])
@pytest.mark.parametrize("accuracy", [Adaptive(tolerance=1e-6), FixedSteps(steps=9)], ids=str)
def test_evaluations_are_what_the_model_was_asked(batch_rows: int, accuracy: Any) -> None:
    spy = Spy(wavy)
    found = attribute(spy, X, accuracy=accuracy, batch_rows=batch_rows)
    assert {len(x) for x in spy.plain + spy.stepped} == {batch_rows}
    assert len(spy.stepped) * batch_rows == found.evaluations.sum() + found.padded
    assert found.padded < batch_rows * 8
    assert len(spy.plain) == -(-len(X) // batch_rows) + 1


@pytest.mark.parametrize("batch_rows", [8, 64])
def test_the_points_of_a_row_are_the_nodes_of_its_path(batch_rows: int) -> None:
    """Every row is told by the direction of its difference; α is how far a point lies along it."""
    baseline, spy = torch.full((1, 4), 0.5, dtype=torch.float64), Spy(wavy)
    found = attribute(spy, X, baselines=baseline, accuracy=Adaptive(tolerance=1e-6), batch_rows=batch_rows)
    moved = torch.cat(spy.stepped) - baseline
    unit = nn.functional.normalize(X - baseline)
    owner = (nn.functional.normalize(moved) @ unit.T).argmax(1)
    nodes = nested_fejer(512).nodes
    for row in range(len(X)):
        alphas = torch.unique((moved[owner == row] @ unit[row] / (X[row] - baseline[0]).norm()).round(decimals=9))
        expected = np.sort(nodes[: int(found.evaluations[row])])
        np.testing.assert_allclose(alphas.numpy(), expected, atol=1e-8)
    assert len(set(found.evaluations.tolist())) > 1


def test_a_shared_baseline_is_evaluated_once() -> None:
    spy = Spy(wavy)
    attribute(spy, X, baselines=1.5, batch_rows=8)
    assert sum(bool((x == 1.5).all()) for x in spy.plain) == 1
    each = Spy(wavy)
    attribute(each, X, baselines=torch.full_like(X, 1.5), batch_rows=8)
    assert sum(bool((x == 1.5).all()) for x in each.plain) == 3


def test_forward_args_make_f_of_a_shared_baseline_differ_by_row() -> None:
    scale = torch.arange(23.0).double()
    found = attribute(lambda x, s: (x + 1).square().sum(1) * s, X, forward_args=scale, batch_rows=8)
    torch.testing.assert_close(found.f_baseline, 4 * scale)


def test_without_batch_rows_a_few_rows_take_one_batch() -> None:
    spy = Spy(wavy)
    found = attribute(spy, X[:2], accuracy=FixedSteps(steps=5))
    assert len(spy.stepped[-1]) == 16  # the power of two that holds 2 rows × 5 steps
    assert found.padded == 6


def test_progress_is_told_after_every_batch() -> None:
    ticks, spy = [], Spy(wavy)
    attribute(spy, X, batch_rows=8, tick=lambda: ticks.append(len(spy.seen)))
    assert len(ticks) == len(spy.seen) - 1  # all but the trial of one row


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 4), (9, 2)])
def test_batches_have_one_size(count: int, size: int) -> None:
    found = list(batches(torch.arange(count) + 10, size))
    assert {len(rows) for rows, _ in found} == {size}
    assert torch.cat([rows[:real] for rows, real in found]).tolist() == list(range(10, 10 + count))
    assert (found[-1][0][found[-1][1] :] == 9 + count).all()


# --- bits ----------------------------------------------------------------------------------------------------


def dense(activation: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), activation(), nn.Linear(40, 17), activation(), nn.Linear(17, 3)).eval()


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (1, 6, 1)), nn.Conv2d(1, 5, (3, 1)), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
                         nn.Linear(20, 3), nn.LogSoftmax(1)).eval()  # fmt: skip


def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Flatten(),
                         nn.Linear(6, 3)).eval()  # fmt: skip


MODELS = {"gelu": dense(nn.GELU), "relu": dense(nn.ReLU), "convolution": convolution(), "attention": attention()}
ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * 2
EACH = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
TARGETS = torch.arange(40) % 3


def explain(model: nn.Module, chosen: list[int], accuracy: Any) -> Attribution:
    return attribute(
        model, ROWS[chosen], baselines=EACH[chosen], target=TARGETS[chosen], accuracy=accuracy, batch_rows=32
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("accuracy", [Adaptive(tolerance=1e-3, max_evaluations=63), FixedSteps(rule="right", steps=11)],
                         ids=str)  # fmt: skip
@settings(max_examples=6, deadline=None)
@given(chosen=st.lists(st.integers(0, 39), min_size=1, max_size=40, unique=True))
def test_a_rows_bits_depend_on_the_row_alone(name: str, accuracy: Any, chosen: list[int]) -> None:
    """Any subset in any order, at one batch size: the same attributions, gap, estimate and evaluations."""
    everything, some = (explain(MODELS[name], rows, accuracy) for rows in (list(range(40)), chosen))
    assert torch.equal(some.attributions, everything.attributions[chosen])
    assert torch.equal(some.gap, everything.gap[chosen])
    assert torch.equal(some.error_estimate.nan_to_num(), everything.error_estimate[chosen].nan_to_num())
    assert torch.equal(some.evaluations, everything.evaluations[chosen])
    assert some.status == tuple(everything.status[i] for i in chosen)


@pytest.mark.parametrize("features", [1, 3, 1000])
def test_gap_and_estimate_do_not_depend_on_the_rows_beside(features: int) -> None:
    """They are sums over features: numpy must add them up alike for one row and for many."""
    x = torch.randn(30, features, generator=torch.Generator().manual_seed(3))
    together = attribute(wavy, x, batch_rows=16)
    for row in (0, 17, 29):
        alone = attribute(wavy, x[row : row + 1], batch_rows=16)
        assert (alone.gap[0], alone.error_estimate[0]) == (together.gap[row], together.error_estimate[row])


def test_sums_are_carried_in_float64() -> None:
    """1,000 float32 gradients of 0.1: a float32 running sum would be off by 1e-5."""
    found = attribute(lambda v: (0.1 * v).sum(1), torch.ones(1, 1), accuracy=FixedSteps(rule="left", steps=1000))
    assert found.attributions.item() == np.float32(0.1)
