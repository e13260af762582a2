"""Orders of sequences: every one that is allowed, as often as any other, and nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from integrand.workers.baselines.eulerian import free_orders, paired_orders

Sequence = tuple[int, ...]


def shuffled(sequences: list[list[int]], seed: int = 0, padded: int = 0) -> list[Sequence]:
    """Each sequence once in an order that keeps its pairs, side by side."""
    longest = max(map(len, sequences)) + padded
    symbols = np.full((len(sequences), longest), -1)
    for row, sequence in enumerate(sequences):
        symbols[row, : len(sequence)] = sequence
    draw = np.random.default_rng(seed)
    numbers = draw.random((len(sequences), longest))
    walks = draw.random((len(sequences), 1 << 12))
    orders = paired_orders(symbols, symbols >= 0, numbers, lambda count: walks[:, :count])
    found = np.take_along_axis(symbols, orders, 1).tolist()
    return [tuple(row[: len(own)]) for row, own in zip(found, sequences, strict=True)]


def pairs(sequence: Sequence) -> Counter[Sequence]:
    return Counter(pairwise(sequence))


def allowed(sequence: Sequence) -> set[Sequence]:
    """All orders with the same ends and pairs, by trying every one."""
    return {
        (sequence[0], *middle, sequence[-1])
        for middle in permutations(sequence[1:-1])
        if pairs((sequence[0], *middle, sequence[-1])) == pairs(sequence)
    }


@pytest.mark.parametrize("text", ["ABACABDA", "AABBABA", "ABACB", "ABCADCBDA", "AABABBAAB"])
def test_all_orders_with_the_same_pairs_are_alike(text: str) -> None:
    sequence = tuple(map(ord, text))
    expected = allowed(sequence)
    count = 12_000
    found = Counter(shuffled([list(sequence)] * count))
    assert set(found) == expected
    each = count / len(expected)
    chi2 = sum((found[one] - each) ** 2 / each for one in expected)
    freedom = len(expected) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 6  # beyond 0.9999


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_ends_and_pairs_stay_and_neighbours_do_not_matter(sequences: list[list[int]]) -> None:
    found = shuffled(sequences)
    for before, after in zip(sequences, found, strict=True):
        assert (after[0], after[-1]) == (before[0], before[-1])
        assert pairs(after) == pairs(tuple(before))


def test_padding_and_other_symbols_change_nothing() -> None:
    sequences = [[3, 1, 3, 2, 3, 1, 2, 3], [7, 7, 7], [5], [4, 9, 4, 9, 9, 4]]
    alone = shuffled(sequences[:1])
    assert shuffled([[30, 10, 30, 20, 30, 10, 20, 30]])[0] == tuple(10 * one for one in alone[0])
    symbols = np.array([[3, 1, 3, 2, 3, 1, 2, 3], [0, 0, 1, 1, 0, 1, -1, -1]])
    draw = np.random.default_rng(1)
    numbers, walks = draw.random((2, 12)), draw.random((2, 64))
    both = paired_orders(symbols, symbols >= 0, numbers[:, :8], lambda n: walks[:, :n])
    one = paired_orders(symbols[1:, :6], symbols[1:, :6] >= 0, numbers[1:, :6], lambda n: walks[1:])
    assert both[1, :6].tolist() == one[0].tolist()
    assert both[1, 6:].tolist() == [6, 7]


def test_too_short_to_shuffle_stays() -> None:
    for short in ([1], [1, 2], [1, 2, 3], [1, 1, 1], [1, 2, 1, 2]):
        assert shuffled([short] * 20) == [tuple(short)] * 20


def test_walks_get_more_numbers_when_they_need_them() -> None:
    asked: list[int] = []
    draw = np.random.default_rng(0)
    symbols = np.arange(200)[None] % 100  # 100 symbols, whose first walk is 99 steps long
    numbers = draw.random((1, 4096))

    def walks(count: int) -> np.ndarray:
        asked.append(count)
        return numbers[:, :count]

    orders = paired_orders(symbols, symbols >= 0, numbers[:, :200], walks)
    assert np.take_along_axis(symbols, orders, 1).tolist() == symbols.tolist()
    assert asked == [64, 128]


def test_free_orders_are_alike_and_leave_padding() -> None:
    held = np.tile([True, True, True, False], (6000, 1))
    orders = free_orders(held, np.random.default_rng(0).random((6000, 4)))
    assert (orders[:, 3] == 3).all()
    found = Counter(map(tuple, orders[:, :3].tolist()))
    assert set(found) == set(permutations(range(3)))
    assert (
        sum((count - 1000) ** 2 / 1000 for count in found.values()) < 25
    )  # chi² of 5, beyond 0.999
