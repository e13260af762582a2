"""What tracks are held to on the device is what reasons are judged by at the end."""

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from integrand.workers.engine.reason_margins import ReasonSums
from integrand.workers.reason_codes.candidates import Candidate, Candidates
from integrand.workers.reason_codes.separation import margins

FEATURES = 6


def candidates(members, k, sign):
    each = tuple(Candidate(str(own), None, tuple(own)) for own in members)
    return Candidates(tuple("abcdef"), each, k, sign)


@st.composite
def cases(draw):
    """Some candidates of one to three features each, attributions of three rows, and which of these
    did not move.
    """
    order, members = draw(st.permutations(range(FEATURES))), []
    while order and len(members) < draw(st.integers(1, 5)):
        size = draw(st.integers(1, 3))
        members.append(order[:size])
        order = order[size:]
    numbers = st.lists(st.floats(-1, 1, width=16), min_size=FEATURES, max_size=FEATURES)
    values = np.array(draw(st.lists(numbers, min_size=3, max_size=3)))
    still = values == draw(st.sampled_from(values.ravel().tolist()))
    asked = candidates(members, draw(st.integers(1, 2**31 - 1) | st.integers(1, 6)), 1)
    return asked, np.where(still, 0.0, values), still


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([1, -1]))
def test_margins_are_those_of_the_reason_codes(case, sign):
    asked, values, still = case
    asked = Candidates(asked.features, asked.each, asked.k, sign)
    pushes, moved = asked.pushes(values), asked.moved(~still)
    order = np.argsort(-pushes, axis=1, kind="stable")
    falling = np.take_along_axis(pushes, order, axis=1)
    expected = margins(falling, np.take_along_axis(moved, order, axis=1), asked.k)
    found = ReasonSums.of(asked).margin(torch.from_numpy(values), torch.from_numpy(still))
    assert np.array_equal(found.numpy(), expected)


def test_where_nothing_may_be_a_reason_nothing_can_be_wrong():
    found = ReasonSums.of(candidates([], 4, 1)).margin(torch.ones(2, 6), torch.zeros(2, 6) > 0)
    assert found.tolist() == [np.inf, np.inf]


def test_a_rows_margin_does_not_depend_on_its_neighbours():
    values = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(0))
    still = torch.zeros(50, FEATURES, dtype=torch.bool)
    sums = ReasonSums.of(candidates([[0, 3, 5], [1, 2], [4]], 2, -1))
    alone = [sums.margin(values[i : i + 1], still[i : i + 1]) for i in range(50)]
    assert torch.equal(torch.cat(alone), sums.margin(values, still))
