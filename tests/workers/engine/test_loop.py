"""Rows come and go in step batches of one shape; what is kept of them is bounded; sums are taken in
node order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.loop import GradientStore, Loop, Stage, TrackGroup
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.steps import Step
from integrand.workers.engine.tracks import Tracks, live_rows
from integrand.workers.methods.attribution import Attribution
from integrand.workers.models.row_tensors import RowTensors
from tests.plugins.explaining import attribute_untried

F64 = torch.float64
ACCURACIES = [Adaptive(tolerance=1e-5, max_evaluations=200), FixedSteps(steps=9)]


class Diary:
    """For every step batch, the row of each item; rows are told by a forward_arg of their own."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward
        self.batches: list[list[int]] = []

    def __call__(self, x: Tensor, number: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.batches.append(number.tolist())
        return self.forward(x)

    def explain(self, x: Tensor, **options: Any) -> Attribution:
        return attribute_untried(self, x, forward_args=torch.arange(len(x)), **options)

    def spans(self) -> dict[int, list[int]]:
        """The batches in which each row had items."""
        found = defaultdict(list)
        for i, batch in enumerate(self.batches):
            for row in set(batch):
                found[row].append(i)
        return found


def mixed(x: Tensor) -> Tensor:
    """Smooth for most rows; kinked where the first feature is negative."""
    return (2 * x).sin().sum(1) + torch.where(
        x[:, 0] < 0, ((x * 7) % 2 - 1).abs().sum(1), 0 * x[:, 0]
    )


def points(rows: int) -> Tensor:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x[:, 0] = torch.where(torch.arange(rows) % 4 == 0, -x[:, 0].abs(), x[:, 0].abs())
    return x


@pytest.mark.parametrize("accuracy", ACCURACIES, ids=["adaptive", "fixed"])
@pytest.mark.parametrize("batch_rows", [8, 100])
def test_rows_under_way_are_bounded(accuracy: Any, batch_rows: int) -> None:
    """Between its first batch and its last a row holds a slot: as many as a batch takes rows twice
    over, however many rows there are, and however long one of them stays.
    """
    diary = Diary(mixed)
    found = diary.explain(points(200), accuracy=accuracy, batch_rows=batch_rows)
    spans = diary.spans()
    assert set(spans) == set(range(200))
    live = [sum(at[0] <= i <= at[-1] for at in spans.values()) for i in range(len(diary.batches))]
    assert max(live) <= live_rows(batch_rows, 9 if isinstance(accuracy, FixedSteps) else 7)
    assert len(set(found.evaluations.tolist())) > (1 if isinstance(accuracy, Adaptive) else 0)


def test_rows_start_in_their_order_and_leave_when_they_are_done() -> None:
    diary = Diary(mixed)
    found = diary.explain(points(200), accuracy=ACCURACIES[0], batch_rows=32)
    spans = diary.spans()
    assert [spans[row][0] for row in range(200)] == sorted(spans[row][0] for row in range(200))
    longest = int(found.evaluations.argmax())
    others = [
        row
        for row in range(longest + 1, 200)
        if found.evaluations[row] < found.evaluations[longest] / 4
    ]
    assert sum(spans[row][-1] < spans[longest][-1] for row in others) > 10


@pytest.mark.parametrize("accuracy", ACCURACIES, ids=["adaptive", "fixed"])
def test_every_batch_is_full_as_long_as_rows_are_waiting(accuracy: Any) -> None:
    """Only a few batches are padded; the padding of a batch repeats its last item."""
    diary = Diary(mixed)
    found = diary.explain(points(150), accuracy=accuracy, batch_rows=16)
    assert {len(batch) for batch in diary.batches} == {16}
    assert len(diary.batches) * 16 == found.evaluations.sum() + found.padded
    assert found.padded < 0.06 * found.evaluations.sum()


def test_without_rows_there_is_nothing_to_do() -> None:
    problem = Problem(mixed, RowTensors((points(3),), (torch.zeros(1, 3, dtype=F64),)), 8)
    assert list(Loop(Evaluator(problem), lambda room: None).run()) == []


# --- stores ------------------------------------------------------------------------------------


def test_a_store_takes_no_memory_until_it_is_used() -> None:
    store = GradientStore(1 << 20, 1 << 10, 1 << 20, F64, torch.device("cpu"))  # 8 exabytes
    assert store.shape == (1 << 20, 1 << 10, 1 << 20)


def test_a_store_keeps_gradients_and_values_where_they_belong() -> None:
    store = GradientStore(3, 4, 2, torch.float32, torch.device("cpu"))
    slots, columns = np.array([0, 2, 2]), np.array([3, 0, 1])
    gradients = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    store.keep(slots, columns, Step(gradients, torch.tensor([7.0, 8, 9])))
    np.testing.assert_array_equal(store.read(slots, 4)[[0, 1, 2], columns], gradients.numpy())
    np.testing.assert_array_equal(store.values[slots, columns], [7, 8, 9])
    assert not store.read(np.array([1]), 4).any()
    store.clear(np.array([2]))
    assert not store.read(np.array([2]), 4).any()
    assert store.read(np.array([0]), 4).any()


def test_sums_do_not_depend_on_where_batches_were_cut() -> None:
    """Item after item within a slot: one call or many give the same bits."""
    draw = np.random.default_rng(0)
    slots, columns = draw.integers(0, 3, 200), draw.integers(0, 2, 200)
    gradients = torch.from_numpy(
        draw.standard_normal((200, 5)) * 10.0 ** draw.integers(-8, 8, (200, 1))
    )
    sums = []
    for cuts in ([0, 200], [0, 1, 2, 77, 200], list(range(0, 201, 5))):
        store = GradientStore(3, 2, 5, F64, torch.device("cpu"))
        for start, stop in pairwise(cuts):
            store.add(slots[start:stop], columns[start:stop], gradients[start:stop])
        sums.append(store.read(np.arange(3), 2))
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], sums[2])
    exact = np.zeros((3, 2, 5))
    for slot, column, gradient in zip(slots, columns, gradients.numpy(), strict=True):
        exact[slot, column] += gradient
    np.testing.assert_array_equal(sums[0], exact)


# --- groups ------------------------------------------------------------------------------------


def setup(rows: int, batch_rows: int, targets: int = 1) -> tuple[Evaluator, Tracks, GradientStore]:
    """f_t(v) = (t + 1)·Σv³, so that ∂f_t at αx is 3(t + 1)α²x²."""

    def cubes(v: Tensor) -> Tensor:
        return (v**3).sum(1, keepdim=True) * torch.arange(1, targets + 1)

    x, table = points(rows), torch.arange(targets)[None, :, None].expand(rows, targets, 1)
    tensors = RowTensors((x,), (torch.zeros(1, 3, dtype=F64),), target=table)
    problem = Problem(cubes, tensors, batch_rows)
    zeros = np.zeros((rows, targets))
    tracks = Tracks(problem, torch.arange(rows), zeros, zeros, live=rows)
    return Evaluator(problem), tracks, GradientStore(tracks.slots, 3, 3, F64, torch.device("cpu"))


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 7, 64])
def test_a_group_is_judged_once_when_all_its_items_are_in(batch_rows: int) -> None:
    """Groups of several stages and pieces of the path, cut by step batches anywhere."""
    evaluator, tracks, store = setup(5, batch_rows)
    nodes, judged = np.array([0.25, 0.5, 1.0]), []
    stage = Stage(nodes, np.array([0, 1, 0]), store, np.array([1.0, 10.0, 100.0]), ((2, 2),))

    def judge(slots: np.ndarray) -> None:
        judged.append(sorted(tracks.row[slots].tolist()))
        assert all(store.tensor[slot].any() for slot in slots)

    loop = Loop(evaluator, lambda room: tracks.admit(2, stage, judge))
    for _ in loop.run():
        pass
    assert judged == [[0, 1], [2, 3], [4]]
    square = 3 * points(5).numpy() ** 2
    found = store.read(np.array([tracks.row.tolist().index(row) for row in range(5)]), 3)
    np.testing.assert_allclose(found[:, 0], (0.25**2 + 100) * square, rtol=1e-14)
    np.testing.assert_allclose(found[:, 1], 10 * 0.5**2 * square, rtol=1e-14)
    # the last node's own gradient, without its weight
    np.testing.assert_allclose(found[:, 2], square, rtol=1e-14)


def test_a_piece_of_the_path_has_its_own_nodes() -> None:
    evaluator, tracks, store = setup(1, 4)
    first = tracks.admit(1, Stage(np.array([0.5]), np.array([0]), store), lambda slots: None)
    assert first is not None
    first.start[:], first.width[:] = 0.6, 0.2
    loop = Loop(evaluator, lambda room: None)
    loop.queue.append(first)
    assert len(list(loop.run())) == 1
    np.testing.assert_allclose(
        store.read(np.array([0]), 1)[0, 0], 3 * 0.7**2 * points(1).numpy()[0] ** 2, rtol=1e-14
    )
    assert store.values[0, 0] == pytest.approx(0.7**3 * float((points(1) ** 3).sum()))


def test_targets_that_are_done_are_left_out() -> None:
    """−1 stands for no slot: the target's backward pass is not asked for, and nothing is stored for
    it.
    """
    evaluator, tracks, store = setup(2, 4, targets=3)
    judged = []
    stage = Stage(np.array([1.0]), np.array([0]), store)
    tracks.admit(2, stage, judged.append)
    slots = np.array([[_slot(tracks, 0, 0), -1, -1], [-1, -1, _slot(tracks, 1, 2)]])
    asked = []
    real = evaluator.gradients

    def spied(rows: Tensor, alphas: Tensor, wanted: list[int]) -> list[Step]:
        asked.append(list(wanted))
        return real(rows, alphas, wanted)

    evaluator.gradients = spied  # type: ignore[method-assign]
    loop = Loop(evaluator, lambda room: None)
    loop.queue.append(
        TrackGroup(np.array([0, 1]), slots, np.zeros(2), np.ones(2), stage, judged.append)
    )
    assert len(list(loop.run())) == 1
    assert asked == [[0, 2]]
    assert [sorted(s.tolist()) for s in judged] == [sorted(slots[slots >= 0].tolist())]
    square = 3 * points(2).numpy() ** 2
    np.testing.assert_allclose(store.read(slots[0, :1], 1)[0, 0], square[0], rtol=1e-14)
    np.testing.assert_allclose(store.read(slots[1, 2:], 1)[0, 0], 3 * square[1], rtol=1e-14)
    assert int(store.tensor.any(-1).sum()) == 2


def _slot(tracks: Tracks, row: int, target: int) -> int:
    return int(np.flatnonzero((tracks.row == row) & (tracks.target == target))[0])
