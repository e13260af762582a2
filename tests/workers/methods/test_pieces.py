"""Paths cut into pieces: what is cut, what its pieces may spend, and how they add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from integrand.workers.engine.loop import GradientStore, Stage
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.tracks import Tracks
from integrand.workers.methods.pieces import Pieces
from integrand.workers.methods.verdicts import Judged, judged
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import spectral_levels

F64 = torch.float64
LEVELS = spectral_levels()
LAST = LEVELS[-1]
SLOT = 0


@pytest.fixture
def pieces() -> Pieces:
    """Of one track, from f = 0 to f = 1."""
    x = torch.ones(1, 2, dtype=F64)
    problem = Problem(lambda v: v.sum(1), RowTensors((x,), (0 * x,)), 8)
    tracks = Tracks(problem, torch.arange(1), np.ones((1, 1)), np.zeros((1, 1)), live=1)
    store = GradientStore(1, 1, 2, F64, torch.device("cpu"))
    tracks.admit(1, Stage(np.array([0.5]), np.array([0]), store), lambda slots: None)
    return Pieces(tracks, LEVELS, most=1000)


def step_at(place: float) -> np.ndarray:
    """f at the last level's nodes, where it jumps from 0 to 1 at one place."""
    return (patterson().nodes > place).astype(float)


def ended(attributions: list[float], deviation: float) -> Judged:
    return judged(np.array([SLOT]), np.array([attributions]), np.array([deviation]))


def test_the_part_where_f_moves_and_what_lies_beside_it_cover_the_path(pieces: Pieces):
    assert pieces.divide(LAST, SLOT, step_at(0.6), converging=False)
    assert pieces.cut[SLOT]
    tracks, places = pieces.tracks, [0.0]
    for _ in range(3):
        pieces.start(SLOT)
        assert tracks.start[SLOT] == pytest.approx(places[-1])
        places.append(tracks.start[SLOT] + tracks.width[SLOT])
    assert places[-1] == 1
    assert places[1] < 0.6 < places[2]
    assert (tracks.f_start[SLOT], tracks.f_end[SLOT]) == (1, 1)


def test_a_path_without_such_a_part_is_halved_only_where_the_last_level_converges(pieces: Pieces):
    even = patterson().nodes
    assert not pieces.divide(LAST, SLOT, even, converging=False)
    assert not pieces.divide(LEVELS[0], SLOT, even[:7], converging=True)
    assert pieces.divide(LAST, SLOT, even, converging=True)
    pieces.start(SLOT)
    assert pieces.tracks.width[SLOT] == pytest.approx(0.5)


def test_what_cannot_be_afforded_is_not_cut(pieces: Pieces):
    pieces.tracks.spent[SLOT] = 1000 - 3 * 63 + 1
    assert not pieces.divide(LAST, SLOT, step_at(0.6), converging=False)
    assert not pieces.cut[SLOT]


def test_waiting_pieces_keep_what_they_need_at_least(pieces: Pieces):
    slots = np.array([SLOT])
    assert pieces.room(slots).tolist() == [1000]
    pieces.divide(LAST, SLOT, step_at(0.6), converging=False)
    assert pieces.room(slots).tolist() == [1000 - 3 * 7]
    pieces.start(SLOT)
    assert pieces.room(slots).tolist() == [1000 - 2 * 7]


def test_pieces_add_up_to_their_track(pieces: Pieces):
    pieces.divide(LAST, SLOT, step_at(0.6), converging=False)
    found = []
    for part in ([1.0, -1.0], [0.5, 4.0], [0.25, 2.0]):
        pieces.start(SLOT)
        found.append(pieces.judge(ended(part, 0.5)))
    assert found[:2] == [None, None]
    whole = found[2]
    assert whole is not None
    assert (whole.attributions.tolist(), whole.deviation.tolist()) == ([[1.75, 5.0]], [1.5])
    assert (whole.size.tolist(), whole.total.tolist()) == ([6.75], [6.75])
    assert not pieces.cut[SLOT]  # the next row of this slot is whole


def test_a_piece_that_is_not_finite_ends_its_track(pieces: Pieces):
    pieces.divide(LAST, SLOT, step_at(0.6), converging=False)
    pieces.start(SLOT)
    whole = pieces.judge(ended([np.nan, 1.0], 0.5))
    assert whole is not None
    assert np.isnan(whole.total).all()
    assert not pieces.cut[SLOT]
