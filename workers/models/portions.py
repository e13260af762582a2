"""Models that take only some numbers of rows: a hidden state of fixed size, a program exported for
one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from integrand.workers.models.outputs import Forward

_USUAL = (8, 16)
"""A model that takes both is taken to take any number."""
_TRIED_ROWS = 4
SIZES = (*range(16, 0, -1), 1024, 512, 256, 200, 128, 100, 96, 64, 50, 48, 32, 24, 20)
"""Numbers of rows to try of a model that does not take any number, the likeliest first."""


@dataclass(frozen=True, eq=False)
class Portions:
    """A model on any number of rows, `rows` at a time, the last ones padded with copies of the
    last.
    """

    forward: Forward
    rows: int

    def __call__(self, *arguments: Tensor) -> Tensor:
        count, device = arguments[0].shape[0], arguments[0].device
        filled = -(-count // self.rows) * self.rows
        index = torch.arange(filled, device=device).clamp(max=count - 1)
        parts = [self.forward(*[a[part] for a in arguments]) for part in index.split(self.rows)]
        return torch.cat(parts)[:count]


def in_portions(forward: Forward, rows: int | None) -> Forward:
    """`forward`, or where it takes no other number of rows (None: it takes any), so many at
    a time.
    """
    return forward if rows is None else Portions(forward, rows)


def find_portion(forward: Forward, arguments: Sequence[Tensor], asked: Sequence[int]) -> int | None:
    """The number of rows that a model must be given; None where it takes any, or none of those
    tried.

    arguments  some rows that it should take: a model may raise on one of them for other reasons
    asked      numbers to try first
    """
    count = arguments[0].shape[0]
    singles = [[a[row : row + 1] for a in arguments] for row in range(min(count, _TRIED_ROWS))]
    if any(all(runs(forward, row, n) for n in _USUAL) for row in singles):
        return None
    numbers = dict.fromkeys([*asked, *SIZES])
    return next((n for n in numbers for row in singles if takes(forward, row, n)), None)


def takes(forward: Forward, arguments: Sequence[Tensor], rows: int) -> bool:
    """Whether the model gives one output for each of that many copies of the first row: one may
    have been broadcast.
    """
    out = _outcome(forward, arguments, rows)
    return isinstance(out, Tensor) and out.ndim > 0 and out.shape[0] == rows


def runs(forward: Forward, arguments: Sequence[Tensor], rows: int) -> bool:
    """Whether the model raises nothing on that many copies of the first row, whatever it gives."""
    return not isinstance(_outcome(forward, arguments, rows), BaseException)


def _outcome(forward: Forward, arguments: Sequence[Tensor], rows: int) -> object:
    try:
        with torch.no_grad():
            return forward(*[a[:1].expand(rows, *a.shape[1:]).clone() for a in arguments])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the model's own code: it may raise anything
        return error
