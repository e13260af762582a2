"""The search for the rows that take workers away: it finds exactly these, within its bound of
losses.
"""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, strategies as st

from integrand.schemas.records import (
    Shard,
    Slice,
)
from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.schemas.tasks import Task, Trial
from integrand.service.running.bisection import READ_ONLY, Range, most_losses, next_trial


def shard(rows: int) -> Shard:
    return Shard(id="00007", slices=(Slice(file=0, start=40, stop=40 + rows),))


def lost(rows: Range | None, outcome: str = "killed_worker", *, charged: bool = True) -> Attempt:
    return Attempt(
        shard="00007",
        outcome=outcome,
        rows=rows,
        charged=charged,
        alone=True,
        reason="why",
        detail="",
        node="",
        at="",
    )


def search(rows: int, killers: set[int]) -> tuple[Trial[Task] | None, list[Attempt], set[Range]]:
    """Try what the search asks for until it asks for the whole shard or gives up."""
    attempts, survived = [lost(None)], set[Range]()
    while (
        trial := next_trial(shard(rows), attempts, survived)
    ) is not None and trial.only is not None:
        assert trial.only not in survived
        assert trial.only not in [a.rows for a in attempts]
        if killers & set(range(*trial.only)):
            attempts.append(lost(trial.only))
        else:
            survived.add(trial.only)
    return trial, attempts, survived


@given(rows=st.integers(1, 300), data=st.data())
def test_exactly_the_killers_are_found(rows: int, data: st.DataObject):
    killers = data.draw(st.sets(st.integers(0, rows - 1), max_size=6))
    trial, attempts, survived = search(rows, killers)
    assert trial is not None
    assert (trial.only, trial.task) == (None, shard(rows))
    assert [c.row for c in trial.culprits] == sorted(killers)
    assert READ_ONLY in survived, "reading is told apart from running"
    assert len(attempts) - 1 <= len(killers) * math.ceil(math.log2(rows) + 1)


def test_a_search_goes_on_from_the_attempts_alone():
    """Another driver knows the losses and not who survived: it finds the same rows and loses nobody
    twice.
    """
    _, attempts, _ = search(100, {3, 77})
    survived = {READ_ONLY}
    while (
        trial := next_trial(shard(100), attempts, survived)
    ) is not None and trial.only is not None:
        assert not {3, 77} & set(range(*trial.only))
        survived.add(trial.only)
    assert trial is not None
    assert [c.row for c in trial.culprits] == [3, 77]


def test_rows_that_only_kill_together_are_not_blamed():
    attempts, survived = [lost(None)], {READ_ONLY, (0, 5), (5, 10)}
    trial = next_trial(shard(10), attempts, survived)
    assert trial is not None
    assert (trial.only, trial.culprits) == (None, ())


def test_what_cannot_be_read_is_not_searched():
    assert next_trial(shard(10), [lost(None), lost(READ_ONLY)], set()) is None


def test_a_search_ends_when_too_much_was_lost():
    trial, attempts, _ = search(1000, set(range(1000)))
    assert trial is None
    assert len(attempts) - 1 == most_losses(1000)


@pytest.mark.parametrize(("rows", "culprits"), [(1000, 6), (10_000, 6), (100_000, 6)])
def test_some_culprits_of_a_large_shard_are_all_found(rows: int, culprits: int):
    for seed in range(5):
        wrong = set(random.Random(seed).sample(range(rows), culprits))
        trial, _, _ = search(rows, wrong)
        assert trial is not None
        assert {c.row for c in trial.culprits} == wrong


def test_losses_that_are_not_charged_blame_no_row():
    attempts = [lost(None), lost((0, 5), "preempted", charged=False)]
    trial = next_trial(shard(10), attempts, {READ_ONLY})
    assert trial is not None
    assert trial.only == (0, 5)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("killed_worker", "the process died"),
        ("stalled", "stall limit"),
        ("memory", "memory ran out"),
        ("raised", "why"),
    ],
)
def test_a_culprit_says_why(outcome: str, told: str):
    trial = next_trial(shard(1), [lost(None), lost((0, 1), outcome)], {READ_ONLY})
    assert trial is not None
    assert told in trial.culprits[0].reason
    assert "_attempts/00007" in trial.culprits[0].reason
