"""How long an object store is waited for. No client library's defaults: some go on and on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import SystemRandom

# forks would share a seeded one and come back all at once; models may seed the global one
_JITTER = SystemRandom()


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds on one operation of an object store. What a try transfers extends both limits, at
    `slowest` bytes/s.

    deadline_s  all tries and the waits between them, in seconds; well below the 60 s after which a
                worker counts as hung
    answer_s    one try, in seconds, however its answer drips
    tries       at most so many
    first_wait_s, longest_wait_s  before the k-th repetition come U(0, min(longest, first ·
                                  2^(k-1))) seconds of sleep:
                "full jitter", M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog,
                2015
    """

    deadline_s: float = 40.0
    answer_s: float = 15.0
    tries: int = 8
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    slowest: float = 1e6

    def limits(self, size: int = 0) -> Iterator[float]:
        """The seconds that each next try may take, after sleeping as long as is due; always one,
        then while time is left.

        `size` is of the bytes that a try transfers.
        """
        extra = size / self.slowest
        ends = time.monotonic() + self.deadline_s + extra
        for repetition in range(self.tries):
            if repetition:
                wait = _JITTER.uniform(
                    0, min(self.longest_wait_s, self.first_wait_s * 2 ** (repetition - 1))
                )
                if time.monotonic() + wait >= ends:
                    return
                time.sleep(wait)
            # 0 would mean for ever to fsspec
            yield max(1e-3, min(self.answer_s + extra, ends - time.monotonic()))
