"""Named points in the life of a shard and of a driver, at which tests let a process die, hang or
wait.

Off unless the environment variable INTEGRAND_FAILPOINTS is set when this module is imported:
strikes separated by `;`, or `@FILE`, a file that holds them (read by each process at its start, so
that a cluster that is up can be told). A strike is `NAME=ACTION`, with two refinements:

    shard.encoded=kill                       every process that comes there
    shard.encoded=kill#3                     each process when it is there for the third time
    shard.encoded=kill@/tmp/token            once: whoever creates the token file, which then holds
                                             its pid
    shard.encoded=wait:/tmp/go@/tmp/token    and the one action with an argument: wait until a file
                                             is there

`*` is any point: `*=kill#7` strikes at the seventh one that a process comes to.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "ingest.piece_written",
    "plan.created",
    "shard.dispatched",
    "shard.begun",
    "shard.read",
    "shard.computed",
    "shard.encoded",
    "store.half_written",
    "store.written",
    "store.linked",
    "shard.committed",
    "shard.settled",
    "stats.written",
    "attempt.recorded",
    "shard.quarantined",
    "run.folded",
    "manifest.created",
    "pointer.written",
)
"""Every point, in the order in which a run comes to them."""

VARIABLE = "INTEGRAND_FAILPOINTS"
ANY = "*"
_STRIKE = re.compile(
    r"(?P<name>[\w.]+|\*)=(?P<action>\w+)(:(?P<file>[^@#]+))?(#(?P<visit>\d+))?(@(?P<token>.+))?"
)


def _spin(file: str) -> None:
    while True:
        pass


def _wait(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.01)


ACTIONS: dict[str, Callable[[str], object]] = {
    "kill": lambda file: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda file: ctypes.string_at(0),
    "hang": lambda file: time.sleep(1e6),
    "spin": _spin,
    "wait": _wait,
}


@dataclass(frozen=True)
class Strike:
    """What happens at a point: at which visit of a process, if not at each, and once at all if
    there is a token.
    """

    action: str
    file: str
    visit: int | None
    token: str | None


_strikes: dict[str, Strike] = {}
_visits: Counter[str] = Counter()


def arm(text: str) -> None:
    """Let these strikes take the place of those of this process. ValueError for an unknown point or
    action.
    """
    strikes = filter(None, text.split(";"))
    found = dict(map(_parsed, strikes))
    _visits.clear()
    _strikes.clear()
    _strikes.update(found)


def reach(name: str) -> None:
    """Say that this process is at a point. Costs nothing where no test asked for a strike."""
    if _strikes:
        _visit(name)
        _visit(ANY)


def _visit(name: str) -> None:
    _visits[name] += 1
    strike = _strikes.get(name)
    if strike and strike.visit in (None, _visits[name]) and _first(strike.token):
        ACTIONS[strike.action](strike.file)


def _first(token: str | None) -> bool:
    """Whether this process is the one that a token is for. Two processes never both are: a link is
    exclusive.
    """
    if token is None:
        return True
    mine = f"{token}.{os.getpid()}"
    # linked when it is whole: who waits for the token may read it at once
    Path(mine).write_text(str(os.getpid()))
    try:
        os.link(mine, token)
    except FileExistsError:
        return False
    finally:
        os.unlink(mine)
    return True


def _parsed(text: str) -> tuple[str, Strike]:
    found = _STRIKE.fullmatch(text.strip())
    if not found or found["action"] not in ACTIONS or found["name"] not in (*NAMES, ANY):
        raise ValueError(f"{VARIABLE}: {text!r} is no strike at a known point")
    strike = Strike(
        action=found["action"],
        file=found["file"] or "",
        visit=int(found["visit"]) if found["visit"] else None,
        token=found["token"],
    )
    return found["name"], strike


def _asked(setting: str) -> str:
    if not setting.startswith("@"):
        return setting
    return Path(setting[1:]).read_text()


arm(_asked(os.environ.get(VARIABLE, "")))
