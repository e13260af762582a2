"""The step-batch loop: groups cut by step batches anywhere, whose samples are the gradients of
their own nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from integrand.workers.engine import evaluator as evaluators
from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.groups import TrackGroup
from integrand.workers.engine.loop import Entrance, Loop
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.steps import ForwardPass, Items, forward_pass
from integrand.workers.engine.tracks import Tracks, whole_paths
from integrand.workers.models.row_tensors import RowTensors

F64 = torch.float64


def points(rows: int) -> Tensor:
    return torch.linspace(1, 2, rows, dtype=F64)[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def cubes(v: Tensor) -> Tensor:
    """Output t is (t + 1)·Σv³, whose gradient at αx is (t + 1)·3α²x²."""
    total = v.pow(3).sum(1, keepdim=True)
    return total * torch.arange(1.0, 4, dtype=v.dtype)


def setup(rows: int, batch_rows: int, targets: int = 1) -> tuple[Evaluator, Tracks]:
    x, table = points(rows), torch.arange(targets)[None, :, None].expand(rows, targets, 1)
    tensors = RowTensors((x,), (torch.zeros(1, 3, dtype=F64),), target=table)
    problem = Problem(cubes, tensors, batch_rows)
    zeros = torch.zeros(rows, targets, dtype=F64)
    return Evaluator(problem), whole_paths(problem, torch.arange(rows), zeros, zeros)


def groups_of(
    evaluator: Evaluator, parts: Sequence[Tracks], nodes: Sequence[float], *, apart: bool = False
) -> list[TrackGroup[int]]:
    return [
        TrackGroup(evaluator.problem, part, np.array(nodes), number, apart=apart)
        for number, part in enumerate(parts)
    ]


def expected(group: TrackGroup[int], nodes: Sequence[float]) -> Tensor:
    """[tracks, nodes, 3]."""
    tracks = group.tracks
    alphas = tracks.start[:, None] + tracks.width[:, None] * torch.tensor(nodes, dtype=F64)
    factors = torch.from_numpy(tracks.target + 1)[:, None, None]
    square = points(int(tracks.row.max()) + 1)[tracks.rows].square()
    return factors * 3 * alphas.square()[:, :, None] * square[:, None]


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 7, 64])
@pytest.mark.parametrize("targets", [1, 3])
def test_a_group_comes_back_once_when_all_its_items_are_in(batch_rows: int, targets: int) -> None:
    evaluator, tracks = setup(5, batch_rows, targets)
    nodes = [0.25, 0.5, 1.0]
    entering = iter(groups_of(evaluator, [tracks, tracks, tracks], nodes))
    loop: Loop[int] = Loop(evaluator, lambda: next(entering, None))
    seen = []
    for group in loop:
        seen.append(group.stage)
        samples = group.samples()
        torch.testing.assert_close(samples.gradients, expected(group, nodes), rtol=1e-14, atol=0)
        values = samples.gradients * points(5)[tracks.rows][:, None] / 3
        assert samples.values.shape == (5 * targets, 3)
        torch.testing.assert_close(
            samples.values, (values * torch.tensor(nodes, dtype=F64)[:, None]).sum(2)
        )
    assert seen == [0, 1, 2]


def test_groups_that_are_added_come_before_rows_that_wait() -> None:
    """The last one first: what was begun is finished."""
    evaluator, tracks = setup(2, 4)
    first, second, third, waiting = groups_of(evaluator, [tracks] * 4, [0.5, 1.0])
    entering = iter([waiting])
    loop: Loop[int] = Loop(evaluator, lambda: next(entering, None))
    loop.add(first)
    seen = []
    for group in loop:
        seen.append(group.stage)
        if group is first:
            loop.add(second)
            loop.add(third)
    assert seen == [0, 2, 1, 3]


def test_a_piece_of_the_path_has_its_own_nodes() -> None:
    evaluator, tracks = setup(1, 4)
    ones = torch.ones(1, dtype=F64)
    piece = replace(tracks, start=0.6 * ones, width=0.2 * ones)
    (group,) = groups_of(evaluator, [piece], [0.5])
    loop: Loop[int] = Loop(evaluator, lambda: None)
    loop.add(group)
    (found,) = list(loop)
    samples = found.samples()
    square = 3 * 0.7**2 * points(1)[0] ** 2
    torch.testing.assert_close(samples.gradients[0, 0], square, rtol=1e-14, atol=0)
    assert samples.values[0, 0] == pytest.approx(0.7**3 * float((points(1) ** 3).sum()))


def test_targets_that_are_done_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their backward passes are not asked for, and nothing is given for them."""
    evaluator, tracks = setup(2, 4, targets=3)
    asked: list[int] = []

    def spied(problem: Problem, items: Items) -> ForwardPass:
        passed = forward_pass(problem, items)
        real = passed.step

        def step(target: int, *, last: bool):
            asked.append(target)
            return real(target, last=last)

        object.__setattr__(passed, "step", step)
        return passed

    monkeypatch.setattr(evaluators, "forward_pass", spied)
    some = tracks.take(np.array([0, 5]))  # row 0 of target 0, row 1 of target 2
    (group,) = groups_of(evaluator, [some], [1.0])
    assert group.wanted == [0, 2]
    assert len(group.items) == 2
    loop: Loop[int] = Loop(evaluator, lambda: None)
    loop.add(group)
    (found,) = list(loop)
    assert asked == [0, 2]
    torch.testing.assert_close(found.samples().gradients, expected(found, [1.0]))


def test_targets_of_one_row_share_their_path_unless_they_lie_apart() -> None:
    evaluator, tracks = setup(4, 4, targets=3)
    (together,) = groups_of(evaluator, [tracks], [0.5, 1.0])
    (apart,) = groups_of(evaluator, [tracks], [0.5, 1.0], apart=True)
    assert (len(together.items), len(apart.items)) == (4 * 2, 12 * 2)
    for group in (together, apart):
        loop: Loop[int] = Loop(evaluator, lambda: None)
        loop.add(group)
        (found,) = list(loop)
        torch.testing.assert_close(found.samples().gradients, expected(found, [0.5, 1.0]))


# --- rows that enter ---------------------------------------------------------------------------


def waves(evaluator: Evaluator, tracks: Tracks) -> Iterator[Tracks]:
    """As they enter."""
    entrance: Entrance[int] = Entrance(evaluator, tracks, wave=146, part=16)
    nodes = np.array([0.5])

    def group(wave: Tracks) -> TrackGroup[int]:
        return TrackGroup(evaluator.problem, wave, nodes, 0)

    while (entered := entrance.next_group(group)) is not None:
        yield entered.tracks


@pytest.mark.parametrize("targets", [1, 3])
def test_every_row_enters_once_with_all_its_targets(targets: int) -> None:
    evaluator, tracks = setup(20_000, 1024, targets)
    seen, sizes = [], []
    for wave in waves(evaluator, tracks):
        assert np.array_equal(np.bincount(wave.target), np.full(targets, len(wave) // targets))
        seen += wave.row[wave.target == 0].tolist()
        sizes.append(len(wave) // targets)
    assert seen == list(range(20_000))
    assert set(sizes[:-1]) == {144}


def test_a_wave_that_cannot_be_made_has_not_entered() -> None:
    evaluator, tracks = setup(100, 1024)
    entrance: Entrance[int] = Entrance(evaluator, tracks, wave=146, part=16)

    def fail(wave: Tracks) -> TrackGroup[int]:
        raise MemoryError

    with pytest.raises(MemoryError):
        entrance.next_group(fail)
    assert entrance.entered == 0


def test_fewer_rows_enter_once_memory_ran_out() -> None:
    evaluator, tracks = setup(1000, 1024)
    entering = waves(evaluator, tracks)
    before = len(next(entering))
    evaluator.capacity = 256
    assert (before, len(next(entering))) == (144, 32)
