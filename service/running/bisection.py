"""Which rows of a task take its workers away: found by halving, from the attempts that the run
folder remembers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from integrand.schemas.sidecars import (
    Attempt,
)
from integrand.schemas.tasks import Culprit, Task, Trial, whole

Range = tuple[int, int]
READ_ONLY: Range = (0, 0)


def most_losses(rows: int) -> int:
    """Losses after which a search is given up. Each may cost a worker's start; k culprits of n rows
    cost 2k·log2(n).
    """
    return max(64, 16 * rows.bit_length())


_REASONS = {
    "killed_worker": "the process died whenever this row was run",
    "stalled": "no step batch with this row finished within the stall limit",
    "memory": "memory ran out whenever this row was run",
}


def next_trial(
    task: Task, attempts: Sequence[Attempt], survived: Collection[Range]
) -> Trial[Task] | None:
    """What a condemned task is tried with next; None where it cannot even be read, or too much was
    lost.

    First the rows are only read, then ranges are halved until the rows that are lost alone are
    known; the last trial is the whole task without them. `survived` are ranges that were run and
    lost nobody.
    """
    lost = {a.rows: a for a in attempts if a.charged and a.rows is not None}
    if READ_ONLY in lost or len(lost) >= most_losses(task.rows):
        return None
    if READ_ONLY not in survived:
        return Trial(whole(task), READ_ONLY)
    untried = next(
        (r for r in _parts((0, task.rows), lost) if r not in lost and r not in survived), None
    )
    if untried is not None:
        return Trial(whole(task), untried)
    alone = sorted(r for r in lost if r[1] - r[0] == 1)
    culprits = (Culprit(row=r[0], reason=reason_of(lost[r])) for r in alone)
    return Trial(whole(task), None, tuple(culprits))


def _parts(rows: Range, lost: Collection[Range]) -> Iterator[Range]:
    """Both halves of a range that is to blame, and the parts of a half that was lost too; of one
    row, the row.
    """
    start, stop = rows
    middle = (start + stop) // 2
    for part in ((start, middle), (middle, stop)) if stop - start > 1 else (rows,):
        yield part
        if part in lost and part != rows:
            yield from _parts(part, lost)


def reason_of(attempt: Attempt) -> str:
    """Why a row ends as `failed`, for its output row; the attempts have the details."""
    reason = _REASONS.get(attempt.outcome, attempt.reason)
    return f"{reason} (see _attempts/{attempt.shard})"
