"""Whatever the true attributions are, within the estimated error: a certain set is the true set."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from integrand.workers.reason_codes.separation import margins, rank

PUSHES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=7)
SHARES = st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7)


def ranked(pushes, deviation, k, moved=None):
    pushes = np.array([pushes], float)
    still = np.ones(pushes.shape, bool) if moved is None else np.array([moved])
    return rank(pushes, still, np.array([deviation], float), k)


def reasons_of(pushes, k):
    """By a naive loop: the places of the k largest positive ones."""
    order = sorted(range(len(pushes)), key=lambda i: -pushes[i])
    return [i for i in order if pushes[i] > 0][:k]


def off_by(pushes, shares, deviation, moved):
    """A true vector whose L1 distance is at most the deviation, where it can differ at all."""
    shares = np.array(shares[: len(pushes)]) * moved
    size = np.abs(shares).sum()
    return np.array(pushes) + (shares * (0.999999 * deviation / size) if size else 0)


@settings(max_examples=500, deadline=None)
@given(PUSHES, SHARES, st.floats(0, 0.5), st.integers(1, 5), st.data())
def test_a_certain_set_is_the_true_set(pushes, shares, deviation, k, data):
    moved = data.draw(st.lists(st.booleans(), min_size=len(pushes), max_size=len(pushes)))
    pushes = (np.array(pushes) * moved).tolist()
    found = ranked(pushes, deviation, k, moved)
    true = off_by(pushes, shares, deviation, np.array(moved))
    given_ones = found.order[0][found.given[0]].tolist()
    assert given_ones == reasons_of(pushes, k)
    if found.certain[0]:
        assert set(given_ones) == set(reasons_of(true, k))


@settings(max_examples=500, deadline=None)
@given(PUSHES, SHARES, st.floats(0, 0.5), st.integers(1, 5))
def test_a_separated_reason_is_ahead_of_the_next_in_truth(pushes, shares, deviation, k):
    found = ranked(pushes, deviation, k)
    true = off_by(pushes, shares, deviation, np.ones(len(pushes)))
    order = sorted(range(len(pushes)), key=lambda i: -pushes[i])
    for place in np.flatnonzero(found.separated[0]).tolist():
        assert true[order[place]] > 0
        if place + 1 < len(order):
            assert true[order[place]] > true[order[place + 1]]


@settings(max_examples=300, deadline=None)
@given(PUSHES, st.integers(1, 5))
def test_the_rule_is_as_wide_as_it_can_be(pushes, k):
    """Just beyond the margin a true vector exists with other reasons, or with a tie for them."""
    pushes = np.array(pushes)
    falling = np.sort(pushes)[::-1][None]
    margin = margins(falling, np.ones(falling.shape, bool), k)[0]
    worst = falling[0].copy()
    full = len(pushes) >= k and worst[k - 1] > 0
    if full and k < len(pushes) and worst[k] > 0:
        worst[k - 1] -= margin / 2
        worst[k] += margin / 2
        assert worst[k - 1] == pytest.approx(worst[k])
    else:
        assert margin == pytest.approx(worst[k - 1] if full else np.abs(worst).min())


def test_near_equal_ones_are_uncertain():
    found = ranked([0.5, 0.3, 0.2001, 0.2, -0.1], 0.001, 3)
    assert found.order.tolist() == [[0, 1, 2]]
    assert found.separated.tolist() == [[True, True, False]]
    assert not found.certain[0]
    assert ranked([0.5, 0.3, 0.2, 0.1], 0.001, 3).certain[0]


def test_an_order_within_the_set_may_be_open_while_the_set_is_certain():
    found = ranked([0.5, 0.3001, 0.3, 0.1], 0.001, 3)
    assert found.separated.tolist() == [[True, False, True]]
    assert found.certain[0]


def test_fewer_than_k_are_certain_where_nothing_else_can_push():
    assert not ranked([0.5, 0.0, -0.5], 0.1, 2).certain[0]
    assert ranked([0.5, 0.0, -0.5], 0.1, 2, [True, False, True]).certain[0]
    assert ranked([0.5, -0.3], 0.1, 4).certain[0]
    assert not ranked([0.5, -0.05], 0.1, 4).certain[0]
    assert ranked([-0.5, -0.3], 0.1, 1).certain[0]
    assert ranked([0.0, 0.0], 0.0, 2, [False, False]).certain[0]


def test_nothing_is_certain_without_an_error_estimate():
    found = ranked([0.5, 0.1], np.nan, 1)
    assert not found.certain[0]
    assert not found.separated.any()


def test_a_tie_goes_to_the_earlier_one():
    assert ranked([0.1, 0.2, 0.2, 0.2], 0.0, 2).order.tolist() == [[1, 2]]
