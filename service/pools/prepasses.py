"""Pre-pass functions over items, as tasks of Ray's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from integrand.schemas.errors import IntegrandError, TransientError
from integrand.service.pools.base import Item, Made

MOST_IN_FLIGHT = 64


def map_on_ray(
    function: Callable[[Item], Made],
    items: Sequence[Item],
    check: Callable[[], object],
    poll_s: float,
) -> list[Made]:
    """Results in order. The functions only create what is absent, so Ray may retry them.

    check   raises if the cluster is gone; asked every `poll_s`
    """
    task: Any = ray.remote(_call).options(num_cpus=1, max_retries=3)
    made: list[Any] = [None] * len(items)
    running: dict[Any, int] = {}
    waiting = list(enumerate(items))[::-1]
    while waiting or running:
        while waiting and len(running) < MOST_IN_FLIGHT:
            place, item = waiting.pop()
            running[task.remote(function, item)] = place
        done, _ = ray.wait(list(running), num_returns=1, timeout=poll_s)
        check()
        for ref in done:
            made[running.pop(ref)] = _fetch(ref)
    return made


def _call(function: Callable[[Item], Made], item: Item) -> Made:
    return function(item)


def _fetch(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, IntegrandError):
            raise error.cause from None
        raise
    except RayError as error:
        raise TransientError(
            "pre-pass",
            expected="a worker that lives through it",
            seen=str(error)[:300],
            next_step="run again: what was written is kept",
        ) from error
