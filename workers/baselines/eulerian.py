"""Sequences in random order, freely or with every pair of neighbours kept, many side by side.

A sequence is a path through its symbols that takes each of its steps once: an Eulerian path. Every
other such path from the same first to the same last symbol has the same pairs. One of them is drawn
uniformly by drawing first the step by which each symbol is left for the last time, which are an
arborescence to the last symbol, and then the order of all others freely (Altschul & Erickson 1985,
Molecular Biology and Evolution 2; Kandel, Matias, Unger & Winkler 1996, Discrete Applied
Mathematics 71). The arborescence is that of loop-erased random walks (Wilson 1996, STOC).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

Walks = Callable[[int], Numbers]
"""The first so many numbers in [0, 1) by which each sequence walks, `[sequences, count]`."""

_FIRST_STEPS = 64
_BEYOND = 2.0
"""Above every number in [0, 1)."""


def free_orders(held: Flags, numbers: Numbers) -> Whole:
    """`[sequences, length]`: where each place's symbol is taken from, all orders of the places that
    are held alike; the others stay.

    numbers  in [0, 1), one per place
    """
    return np.where(held, numbers, _BEYOND).argsort(1, kind="stable")


def paired_orders(symbols: Whole, held: Flags, numbers: Numbers, walks: Walks) -> Whole:
    """Like `free_orders`, with the first and the last symbol kept and each pair of neighbours as
    often as it was: all such sequences of symbols alike.

    symbols  `[sequences, length]`, compared with those of their own sequence alone
    held     the first places of each sequence, at least one
    numbers  in [0, 1), one per place
    """
    steps = _Steps.of(symbols, held)
    last = steps.last_ones(walks)
    return steps.walked(np.where(last, 1.0, numbers))


@dataclass(frozen=True, eq=False)
class _Steps:
    """The steps of sequences: step i leads from place i to the next.

    vertex  `[sequences, length]` the symbol at each place, counted from 0 in its sequence
    held    which places there are
    taken   which steps there are
    end     `[sequences]` the symbol at the last place
    order   `[sequences, length]` steps by the symbol that they leave, others at the end
    first   `[sequences, symbols]` where those of a symbol begin in `order`
    degree  and how many they are
    """

    vertex: Whole
    held: Flags
    taken: Flags
    end: Whole
    order: Whole
    first: Whole
    degree: Whole

    @classmethod
    def of(cls, symbols: Whole, held: Flags) -> _Steps:
        vertex = _from_zero(symbols, held)
        count, length = vertex.shape
        own = held.sum(1)
        taken = np.arange(length) < own[:, None] - 1
        several = int(vertex.max(initial=0)) + 1
        leaving = np.where(taken, vertex, several)
        cells = np.arange(count)[:, None] * (several + 1) + leaving
        degree = np.bincount(cells.ravel(), minlength=count * (several + 1))
        degree = degree.reshape(count, several + 1)[:, :several]
        return cls(
            vertex=vertex,
            held=held,
            taken=taken,
            end=vertex[np.arange(count), own - 1],
            order=leaving.argsort(1, kind="stable"),
            first=degree.cumsum(1) - degree,
            degree=degree,
        )

    def last_ones(self, walks: Walks) -> Flags:
        """`[sequences, length]`: the step by which each symbol but the last is left for good."""
        leaving = _arborescences(self, walks)
        found = np.zeros(self.vertex.shape, bool)
        row, symbol = np.nonzero(leaving >= 0)
        found[row, leaving[row, symbol]] = True
        return found

    def walked(self, ranks: Numbers) -> Whole:
        """Where each place's symbol is taken from, when each symbol is left by its steps in the
        order of their ranks.
        """
        count, length = self.vertex.shape
        rows = np.arange(count)
        leaving = np.where(self.taken, self.vertex, self.degree.shape[1])
        order = np.lexsort((ranks, leaving), axis=1)
        next_one = self.first.copy()
        places = np.tile(np.arange(length), (count, 1))
        here = self.vertex[:, 0]
        for place in range(1, length):
            going = self.taken[:, place - 1]
            at = np.minimum(next_one[rows, here], length - 1)
            step = order[rows, at]
            next_one[rows, here] += 1
            places[going, place] = step[going] + 1
            here = np.where(going, self.vertex[rows, np.minimum(step + 1, length - 1)], here)
        return places


def _from_zero(symbols: Whole, held: Flags) -> Whole:
    """The symbols of each sequence as numbers from 0, in their order; 0 where nothing is held."""
    beyond = np.iinfo(np.int64).max
    values = np.where(held, symbols, beyond)
    order = values.argsort(1, kind="stable")
    in_order = np.take_along_axis(values, order, 1)
    another = np.zeros(values.shape, np.int64)
    another[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ranks = np.empty_like(another)
    np.put_along_axis(ranks, order, another.cumsum(1), 1)
    return np.where(held, ranks, 0)


# --- Wilson's algorithm, one move of every sequence at a time ------------------------------------


def _arborescences(steps: _Steps, walks: Walks) -> Whole:
    """`[sequences, symbols]`: the step by which each symbol leads to the last one, -1 for that."""
    state = _Walkers.of(steps)
    numbers = walks(_FIRST_STEPS)
    while state.moving.any():
        if int(state.moves.max()) >= numbers.shape[1]:
            numbers = walks(2 * numbers.shape[1])
        state.move(numbers)
    return np.where(state.reached, state.leaving, -1)


@dataclass(eq=False)
class _Walkers:
    """A walker in each sequence, who starts at one symbol after the other.

    reached  `[sequences, symbols]` which symbols lead to the last one for certain
    leaving  the step by which each was left last
    root     `[sequences]` where the walk began
    here     where it is
    back     whether it has got to such a symbol, and is gone over once more from its root
    moves    steps drawn so far
    """

    steps: _Steps
    reached: Flags
    leaving: Whole
    root: Whole
    here: Whole
    back: Flags
    moves: Whole
    rows: Whole = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.arange(len(self.root))

    @classmethod
    def of(cls, steps: _Steps) -> _Walkers:
        count = len(steps.end)
        reached = steps.degree == 0
        reached[np.arange(count), steps.end] = True
        leaving = np.full(steps.degree.shape, -1)
        start = np.zeros(count, np.int64)
        return cls(steps, reached, leaving, start, start.copy(), start > 0, start.copy())

    @property
    def moving(self) -> Flags:
        moving: Flags = self.root < self.steps.degree.shape[1]
        return moving

    def move(self, numbers: Numbers) -> None:
        """A step along a walk or back over it, or the next root."""
        there = np.minimum(self.here, self.steps.degree.shape[1] - 1)
        settled = self.reached[self.rows, there]
        moving = self.moving
        self._step(np.flatnonzero(moving & ~settled & ~self.back), numbers)
        arrived = moving & settled & ~self.back
        over = moving & settled & self.back
        self._go_back(np.flatnonzero(moving & ~settled & self.back))
        self.here[arrived] = self.root[arrived]
        self.back[arrived] = True
        self.root[over] += 1
        self.here[over] = self.root[over]
        self.back[over] = False

    def _step(self, rows: Whole, numbers: Numbers) -> None:
        here = self.here[rows]
        degree = self.steps.degree[rows, here]
        chosen = (numbers[rows, self.moves[rows]] * degree).astype(np.int64)
        step = self.steps.order[rows, self.steps.first[rows, here] + chosen]
        self.leaving[rows, here] = step
        self.here[rows] = self.steps.vertex[rows, step + 1]
        self.moves[rows] += 1

    def _go_back(self, rows: Whole) -> None:
        here = self.here[rows]
        self.reached[rows, here] = True
        self.here[rows] = self.steps.vertex[rows, self.leaving[rows, here] + 1]
