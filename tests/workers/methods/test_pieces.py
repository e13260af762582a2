"""Paths cut into pieces: what is cut, what its pieces may spend, and how they add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import Tracks, whole_paths
from integrand.workers.methods.criteria import Judged, judged
from integrand.workers.methods.pieces import DEEPEST, Pieces, whole_again
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.kinked import KinkedEstimate
from integrand.workers.quadrature.smooth import SpectralLevel, spectral_levels

F64 = torch.float64
LEVELS = spectral_levels()
LAST = LEVELS[-1]
NO, YES = torch.tensor([False]), torch.tensor([True])


@pytest.fixture
def pieces() -> Pieces:
    return Pieces(LEVELS, most=1000)


@pytest.fixture
def track() -> Tracks:
    """One, from f = 0 to f = 1."""
    x = torch.ones(1, 2, dtype=F64)
    problem = Problem(lambda v: v.sum(1), RowTensors((x,), (0 * x,)), 8)
    ones = torch.ones(1, 1, dtype=F64)
    return whole_paths(problem, torch.arange(1), ones, 0 * ones)


def step_at(place: float, level: SpectralLevel = LAST) -> Tensor:
    """f at a level's places, where it jumps from 0 to 1 at one of the path."""
    return (level.places > place).double()[None]


def cut(pieces: Pieces, track: Tracks, path: Tensor) -> None:
    divisible, window = pieces.divisible(LAST, track, path, NO)
    assert divisible.all()
    pieces.cut(LAST, track, path, window)


def ended(track: Tracks, attributions: list[float], deviation: float) -> Judged:
    one = torch.ones(len(track), dtype=F64)
    found = torch.tensor([attributions], dtype=F64)
    estimate = KinkedEstimate(found, found.abs().sum(1), found.sum(1), deviation * one)
    return judged(estimate, found[:, :0], gaps=one, integrand=one)


def test_the_part_where_f_moves_and_what_lies_beside_it_cover_the_path(
    pieces: Pieces, track: Tracks
):
    cut(pieces, track, step_at(0.6))
    places = [0.0]
    for depth in (1, 1, 1):
        track = pieces.start(track)
        assert track.start.item() == pytest.approx(places[-1])
        assert track.depth.item() == depth
        places.append((track.start + track.width).item())
    assert places[-1] == 1
    assert places[1] < 0.6 < places[2]
    assert (track.f_start.item(), track.f_end.item()) == (1, 1)


def test_a_path_without_such_a_part_is_halved_only_where_the_last_level_converges(
    pieces: Pieces, track: Tracks
):
    def divisible(level: SpectralLevel, converging: Tensor) -> bool:
        found, _ = pieces.divisible(level, track, level.places[None], converging)
        return bool(found)

    assert not divisible(LAST, NO)
    assert not divisible(LEVELS[0], YES)
    assert divisible(LAST, YES)
    _, window = pieces.divisible(LAST, track, LAST.places[None], YES)
    pieces.cut(LAST, track, LAST.places[None], window)
    assert pieces.start(track).width.item() == pytest.approx(0.5)


def test_what_cannot_be_afforded_is_not_cut(pieces: Pieces, track: Tracks):
    spent = replace(track, spent=track.spent + 1000 - 3 * 63 + 1)
    deep = replace(track, depth=track.depth + DEEPEST)
    for other in (spent, deep):
        assert not pieces.divisible(LAST, other, step_at(0.6), NO)[0]
    assert pieces.divisible(LAST, track, step_at(0.6), NO)[0]


def test_waiting_pieces_keep_what_they_need_at_least(pieces: Pieces, track: Tracks):
    assert pieces.room(track).tolist() == [1000]
    cut(pieces, track, step_at(0.6))
    for waiting in (2, 1, 0):
        track = pieces.start(track)
        assert pieces.room(track).tolist() == [1000 - waiting * 7]


def test_pieces_add_up_to_their_track(pieces: Pieces, track: Tracks):
    cut(pieces, track, step_at(0.6))
    for part in ([1.0, -1.0], [0.5, 4.0]):
        track = pieces.start(track)
        waiting, whole, together = pieces.collect(track, ended(track, part, 0.5))
        assert (waiting.tolist(), whole.tolist(), together) == ([0], [], None)
    track = pieces.start(track)
    waiting, whole, together = pieces.collect(track, ended(track, [0.25, 2.0], 0.5))
    assert (waiting.tolist(), whole.tolist()) == ([], [0])
    assert together is not None
    assert (together.attributions.tolist(), together.deviation.tolist()) == ([[1.75, 5.0]], [1.5])
    assert (together.size.tolist(), together.total.tolist()) == ([6.75], [6.75])
    assert whole_again(track).depth.tolist() == [0]


def test_a_piece_that_is_not_finite_ends_its_track(pieces: Pieces, track: Tracks):
    cut(pieces, track, step_at(0.6))
    track = pieces.start(track)
    _, whole, together = pieces.collect(track, ended(track, [np.nan, 1.0], 0.5))
    assert whole.tolist() == [0]
    assert together is not None
    assert together.total.isnan().all()
