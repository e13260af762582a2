"""What a driver leaves beside the data as it goes, for readers elsewhere: a heartbeat, and blocks
of folded footers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from integrand.schemas.errors import TransientError
from integrand.schemas.record import dump
from integrand.schemas.sidecars import (
    DriverProgress,
)
from integrand.service.progress import Tally
from integrand.service.runs.footers import Folder
from integrand.service.runs.totals import BLOCK_SHARDS

PROGRESS = "_progress.json"
PROGRESS_EVERY_S = 10.0


class Sidecars:
    """Writes both from threads of its own: the dispatch loop never waits for them, and a store that
    fails ends no run.

    `loose` are committed tasks that no block covers yet; `shards` of them make one, which
    `write_block` folds and stores.
    """

    def __init__(
        self,
        folder: Folder[Any],
        write_block: Callable[[Sequence[str]], None],
        loose: Iterable[str] = (),
        shards: int = BLOCK_SHARDS,
    ) -> None:
        self._folder = folder
        self._loose = deque(loose)
        self._shards = shards
        self._write_block = write_block
        self._threads = ThreadPoolExecutor(2, "sidecars")
        self._folding: Future[None] | None = None
        self._telling: Future[None] | None = None
        self._last_beat = 0.0
        self._interrupted = False

    def __enter__(self) -> Sidecars:
        self._fold()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._interrupted = kind is not None
        self._threads.shutdown()
        if kind is None:
            _free(self._folding)
            _free(self._telling)

    def committed(self, shard: str) -> None:
        """Take note of a shard; whenever enough came together, their stored footers are folded into
        a block.
        """
        self._loose.append(shard)
        self._fold()

    def beat(self, tally: Tally) -> None:
        """Every few seconds, leave a tally for `integrand status`."""
        due = time.monotonic() - self._last_beat >= PROGRESS_EVERY_S
        if due and _free(self._telling):
            self._last_beat = time.monotonic()
            self._telling = self._threads.submit(self._write_heartbeat, tally)

    def _fold(self) -> None:
        enough = len(self._loose) >= self._shards
        if enough and _free(self._folding):
            self._folding = self._threads.submit(self._write_blocks)

    def _write_blocks(self) -> None:
        while len(self._loose) >= self._shards and not self._interrupted:
            shards = [self._loose.popleft() for _ in range(self._shards)]
            try:
                self._write_block(shards)
            except TransientError:  # the next commit tries again
                self._loose.extend(shards)
                return

    def _write_heartbeat(self, tally: Tally) -> None:
        progress = DriverProgress(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            shards_done=tally.shards_done,
            shards_planned=tally.shards_planned,
            rows_per_second=tally.rows_per_second,
            eta_s=tally.eta_s,
        )
        with suppress(TransientError):  # the next beat tries again
            self._folder.store.replace(self._folder.uri.child(PROGRESS), dump(progress))


def _free(last: Future[None] | None) -> bool:
    """Whether the next may be started; raises what the last one raised."""
    return last is None or (last.done() and last.result() is None)
