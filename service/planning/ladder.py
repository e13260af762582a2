"""Step batches below the chosen one: sizes in which every row keeps the bits that it has in a full
batch, for what does not fill one.
"""

from __future__ import annotations

from functools import partial

from integrand.service.planning.batches import Question, StepBatch, error_of
from integrand.workers.engine.batching import LEAST, halves, power_of_two

DEEPEST = 64
"""How many times smaller the last one may be. Each size is tried on all rows of a full batch, and
what takes so many rows at once takes fewer in no less time than that of its calls.
"""


def smaller_batches(asked: Question, chosen: StepBatch) -> tuple[int, ...]:
    """Powers of two below the chosen number of rows, descending, as long as rows keep their bits in
    them; as long as they run, where bits are lowered anyway.
    """
    fewest = max(LEAST, chosen.rows // DEEPEST)
    if chosen.rows <= fewest:
        return ()
    largest = power_of_two(chosen.rows - 1)
    full = asked.trial(chosen.form, chosen.rows)
    lowered = chosen.lowered is not None
    expected = full.everything()
    found = []
    for size in halves(largest, fewest):
        if error_of(partial(full.everything, slice(0, size))) is not None:
            break
        if not lowered and not full.keeps_bits(size, expected):
            break
        found.append(size)
    return tuple(found)
