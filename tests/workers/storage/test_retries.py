"""How long a store is waited for."""

from __future__ import annotations

import time

import pytest

from integrand.workers.storage.retries import RetryPolicy

BRISK = RetryPolicy(first_wait_s=0.001, longest_wait_s=0.002)


def test_there_are_as_many_tries_as_asked_for_and_no_more() -> None:
    assert list(BRISK.limits()) == [BRISK.answer_s] * BRISK.tries


def test_one_try_is_made_whatever_the_deadline() -> None:
    assert len(list(RetryPolicy(deadline_s=0).limits())) == 1


def test_no_try_begins_after_the_deadline_and_none_is_granted_more_than_is_left() -> None:
    started = time.monotonic()
    for limit in RetryPolicy(
        deadline_s=0.2, tries=10_000, first_wait_s=0.01, longest_wait_s=0.02
    ).limits():
        assert limit <= 0.2 - (time.monotonic() - started) + 0.05
    assert time.monotonic() - started < 2


def test_bytes_on_their_way_extend_both_limits() -> None:
    slow = RetryPolicy(deadline_s=0, answer_s=1, slowest=10)
    assert next(slow.limits(100)) == pytest.approx(10, abs=0.1)
    assert next(BRISK.limits(2_000_000)) == BRISK.answer_s + 2
