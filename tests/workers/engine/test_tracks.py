"""Slots: who holds which, for how long, and which part of its path it is about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import GradientStore, Stage, TrackGroup
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import Tracks, attributions, live_rows, masked
from integrand.workers.models.row_tensors import RowTensors

F64 = torch.float64
X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
BASELINES = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def tracks(live: int, targets: int = 1, rows: int = 10) -> Tracks:
    table = torch.zeros(10, targets, 1, dtype=torch.int64)
    problem = Problem(lambda v: v, RowTensors((X,), (BASELINES,), target=table), 8)
    ends = np.arange(10.0 * targets).reshape(10, targets)
    return Tracks(problem, torch.arange(10)[-rows:], ends[-rows:] + 0.5, -ends[-rows:], live)


def admit(held: Tracks, most: int) -> TrackGroup | None:
    return held.admit(most, Stage(np.array([0.5]), np.array([0]), STORE), lambda slots: None)


STORE = GradientStore(1, 1, 3, F64, torch.device("cpu"))


@pytest.mark.parametrize("targets", [1, 3])
def test_rows_enter_as_long_as_there_are_slots_for_all_their_targets(targets: int) -> None:
    held = tracks(live=4, targets=targets)
    first, second = admit(held, 3), admit(held, 3)
    assert first is not None
    assert second is not None
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 1, 2], [3])
    assert admit(held, 3) is None
    held.release(first.slots[1])
    third = admit(held, 3)
    assert third is not None
    assert third.rows.tolist() == [4]
    assert sorted(third.slots.flatten()) == sorted(first.slots[1])


def test_every_row_enters_once_and_then_nobody() -> None:
    held, seen = tracks(live=2), []
    while (group := admit(held, 5)) is not None:
        seen += group.rows.tolist()
        held.release(group.slots.flatten())
    assert seen == list(range(10))


def test_a_slot_knows_its_row_target_and_ends() -> None:
    held = tracks(live=10, targets=2, rows=4)
    group = admit(held, 4)
    assert group is not None
    assert group.rows.tolist() == [6, 7, 8, 9]
    for row, slots in zip(group.rows, group.slots, strict=True):
        for target, slot in enumerate(slots):
            value = 2.0 * row + target
            assert (held.row[slot], held.target[slot]) == (row, target)
            assert (held.f_start[slot], held.f_end[slot], held.change[slot]) == (
                -value,
                value + 0.5,
                2 * value + 0.5,
            )
            assert (held.start[slot], held.width[slot], held.spent[slot]) == (0, 1, 0)


def test_what_a_slot_was_before_is_forgotten() -> None:
    held = tracks(live=1)
    slot = admit(held, 1).slots[0]  # type: ignore[union-attr]
    held.start[slot], held.width[slot], held.spent[slot] = 0.3, 0.1, 99
    held.release(slot)
    group = admit(held, 1)
    assert group is not None
    assert (group.start.tolist(), group.width.tolist(), held.spent[slot].item()) == ([0], [1], 0)


def test_slots_are_grouped_by_row() -> None:
    held = tracks(live=10, targets=3)
    slots = admit(held, 4).slots  # type: ignore[union-attr]
    some = np.array([slots[2, 1], slots[0, 0], slots[2, 2], slots[3, 0]])
    assert held.grouped(some).tolist() == [
        [slots[0, 0], -1, -1],
        [-1, slots[2, 1], slots[2, 2]],
        [slots[3, 0], -1, -1],
    ]
    single = tracks(live=10)
    order = admit(single, 5).slots[::-1, 0]  # type: ignore[union-attr]
    assert single.grouped(order).tolist() == order[:, None].tolist()


def test_attributions_are_gradients_times_the_pieces_part_of_the_difference() -> None:
    held = tracks(live=10)
    slots = admit(held, 3).slots[:, 0]  # type: ignore[union-attr]
    held.width[slots[1]] = 0.25
    difference = held.difference(slots)
    expected = (X - BASELINES).numpy()[:3] * np.array([[1], [0.25], [1]])
    np.testing.assert_allclose(difference, expected, rtol=1e-15)
    sums = np.random.default_rng(0).standard_normal((3, 2, 3))
    found = attributions(Evaluator(held.problem), held, slots, sums.copy(), difference, 7)
    np.testing.assert_allclose(found, sums * expected[:, None, :], rtol=1e-15)


def test_infinite_gradients_of_features_that_do_not_move_count_as_zero() -> None:
    gradients = np.array([[[np.inf, 1.0, np.nan], [np.nan, 2.0, 3.0]]])
    found = masked(gradients, np.array([[0.0, 5.0, 1.0]]))
    np.testing.assert_array_equal(found, [[[0, 1, np.nan], [0, 2, 3]]])
    finite = np.ones((2, 2, 3))
    assert masked(finite, np.zeros((2, 3))) is finite


@pytest.mark.parametrize(
    ("batch_rows", "nodes", "expected"),
    [(1, 7, 3), (7, 7, 3), (8, 7, 5), (512, 7, 149), (64, 100, 3)],
)
def test_live_rows(batch_rows: int, nodes: int, expected: int) -> None:
    """Twice the rows whose first nodes fill a batch, and one more."""
    assert live_rows(batch_rows, nodes) == expected
