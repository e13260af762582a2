"""What a Ray cluster says of itself while a run is on it: whether it answers at all, and which
nodes are leaving.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from ray._private.state import state
from ray.exceptions import RayError

from integrand.schemas.errors import TransientError

EVERY_S = 3.0
SILENT_S = 30.0
"""Silence after which a run ends as retryable. Ray itself waits for 60 s, and then ends the process
without a word.
"""
LAST_WORD_S = 45.0
"""Silence after which nobody who waits inside a call of Ray's will come back: the process ends
here, and says why.
"""
PROBE_S = 10.0


class ClusterHeartbeat:
    """Threads that ask the cluster every few seconds: Ray's own calls hang while the head does not
    answer.
    """

    def __init__(self, address: str, raylet: str) -> None:
        self.address, self._raylet = address, raylet
        self.leaving: dict[str, float] = {}
        self._heard, self._orphaned = time.monotonic(), False
        self._closed = threading.Event()
        for watch in (self._look, self._guard):
            threading.Thread(target=watch, name="heartbeat", daemon=True).start()

    def check(self) -> None:
        """Raise TransientError if Ray died on this node, or if its head has been silent for
        SILENT_S.
        """
        if self._orphaned or self._silent_s() > SILENT_S:
            raise self._gone()

    def _silent_s(self) -> float:
        return time.monotonic() - self._heard

    def _gone(self) -> TransientError:
        seen = (
            "its raylet on this node is dead"
            if self._orphaned
            else f"no answer for {self._silent_s():.0f} s"
        )
        return TransientError(
            f"Ray at {self.address}",
            expected="a cluster that answers",
            seen=seen,
            next_step="run the same command again, on a cluster that is up: it resumes",
        )

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(EVERY_S):
            self._orphaned = not _listens(self._raylet)
            try:
                probe(self.address)
                # kept once the node is gone: what was lost there was preempted
                self.leaving |= draining_nodes()
            except (OSError, RayError):
                continue  # silence; `check` tells of it
            self._heard = time.monotonic()

    def _guard(self) -> None:
        """End the process as retryable a little before Ray does with code 1: whoever should check
        hangs in a call of Ray's.

        A thread of its own, since the one that asks may hang there too. What is committed is safe.
        """
        silent = 0
        # looks in a row: after a pause of the process itself, the first tells nothing
        while silent < 3:
            if self._closed.wait(EVERY_S):
                return
            silent = silent + 1 if self._silent_s() > LAST_WORD_S else 0
        print(f"TransientError: {self._gone()}", file=sys.stderr, flush=True)
        os._exit(TransientError.exit_code)


def probe(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), PROBE_S).close()


def _listens(socket_name: str) -> bool:
    """Whether somebody is behind a Unix socket. A raylet never comes back; Ray ends its drivers,
    without a word.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PROBE_S)
        try:
            client.connect(socket_name)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # too busy to say
            return True
    return True


def draining_nodes() -> dict[str, float]:
    """Ids of the nodes that are being taken away, and when, in Unix seconds; 0 where no time is
    set.

    Ray Train reads the same private state. The times are another host's clock: nothing but comfort
    may depend on them.
    """
    return {node: deadline / 1000 for node, deadline in state.get_draining_nodes().items()}
