"""Tracks: what each is about, and what is made of all of a group at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from integrand.workers.engine.evaluator import Evaluator
from integrand.workers.engine.parts import PART_BYTES, in_parts, part_rows, wave_rows
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import EVERY, Tracks, attributions, masked, whole_paths
from integrand.workers.models.row_tensors import RowTensors

F64 = torch.float64
X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
BASELINES = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def problem(targets: int = 1, batch_rows: int = 8) -> Problem:
    table = torch.zeros(10, targets, 1, dtype=torch.int64)
    return Problem(lambda v: v, RowTensors((X,), (BASELINES,), target=table), batch_rows)


def tracks(targets: int = 1, rows: int = 10) -> Tracks:
    ends = torch.arange(10.0 * targets, dtype=F64).reshape(10, targets)[-rows:]
    return whole_paths(problem(targets), torch.arange(10)[-rows:], ends + 0.5, -ends)


def test_a_track_knows_its_row_target_and_ends() -> None:
    held = tracks(targets=2, rows=4)
    assert held.row.tolist() == [6, 7, 8, 9] * 2
    assert held.target.tolist() == [0] * 4 + [1] * 4
    for place, (row, target) in enumerate(zip(held.row, held.target, strict=True)):
        value = 2.0 * row + target
        known = [c[place].item() for c in (held.f_start, held.f_end, held.change, held.magnitude)]
        assert known == [-value, value + 0.5, 2 * value + 0.5, 2 * value + 0.5]
        own = [c[place].item() for c in (held.rows, held.start, held.width, held.spent, held.depth)]
        assert own == [row, 0, 1, 0, 0]


def test_some_tracks_are_taken_with_all_that_is_known_of_them() -> None:
    held = tracks(targets=2)
    assert held.take(EVERY) is held
    for which in (slice(3, 7), np.array([4, 4, 0])):
        some = held.take(which)
        assert some.row.tolist() == held.row[which].tolist()
        assert some.rows.tolist() == held.rows[which].tolist()
        assert some.f_end.tolist() == held.f_end[which].tolist()


def test_attributions_are_gradients_times_the_pieces_part_of_the_difference() -> None:
    held = tracks(rows=3)
    held = replace(held, width=torch.tensor([1, 0.25, 1], dtype=F64))
    expected = (X - BASELINES)[-3:] * torch.tensor([[1], [0.25], [1]], dtype=F64)
    difference = held.difference(problem())
    torch.testing.assert_close(difference, expected)
    sums = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    found, _ = attributions(Evaluator(problem()), held, sums.clone(), difference)
    torch.testing.assert_close(found, sums * expected[:, None, :])


def test_infinite_gradients_of_features_that_do_not_move_count_as_zero() -> None:
    inf, nan = torch.inf, torch.nan
    gradients = torch.tensor([[[inf, -1.0, nan], [nan, 2.0, 3.0]]])
    difference = torch.tensor([[0.0, 0.0, 1.0]])
    found = masked(gradients, difference)
    np.testing.assert_array_equal(found, [[[0, -1, nan], [0, 2, 3]]])
    finite = torch.ones(2, 2, 3)
    assert masked(finite, torch.zeros(2, 3)) is finite


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(5, 5), (1, 4), (4, 2), (5, 2), (9, 4)])
def test_parts_have_one_size(count: int, size: int) -> None:
    """So that what is computed of a track does not depend on how many are there."""
    numbers = np.arange(count)
    seen = []
    for part, real in in_parts(count, size):
        own = numbers[part]
        assert len(own) == size
        assert (own[real:] == count - 1).all()
        seen += own[:real].tolist()
    assert seen == numbers.tolist()


@pytest.mark.parametrize(
    ("most", "numbers", "expected"),
    [
        (256, 1000, 256),
        (250, 1000, 240),  # in sixteens
        (256, PART_BYTES.cpu // 8 // 40, 32),  # what working arrays may take
        (256, PART_BYTES.cpu, 1),
        (9, 10, 9),
        (0, 10, 1),
    ],
)
def test_a_part_is_as_large_as_asked_within_the_memory(
    most: int, numbers: int, expected: int
) -> None:
    assert part_rows(Evaluator(problem()), numbers, most) == expected


def test_parts_shrink_with_the_step_batch_where_memory_runs_out() -> None:
    evaluator = Evaluator(problem(batch_rows=1024))
    evaluator.capacity = 256
    assert part_rows(evaluator, 1000, 256) == 64
    assert part_rows(evaluator, PART_BYTES.cpu // 8 // 40, 256) == 10


@pytest.mark.parametrize(
    ("targets", "batch_rows", "expected"),
    [(1, 1024, 192), (1, 4096, 585), (2000, 8, 1), (100, 8, 32)],
)
def test_rows_enter_by_the_step_batch_or_as_long_as_they_are_small(
    targets: int, batch_rows: int, expected: int
) -> None:
    assert wave_rows(problem(targets, batch_rows), 7) == expected
