"""Rows that the model raises on, told apart from those that came with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from integrand.schemas.errors import IntegrandError

Found = TypeVar("Found")
Raised = Exception | SystemExit
"""What a model may raise on a row: one that calls `sys.exit()` ends no worker."""


def isolate(
    attempt: Callable[[slice], Found], failed: Callable[[Raised], Found], rows: slice
) -> list[Found]:
    """Attempt the rows at once; if the model raises, halve until the rows it raises on
    stand alone.
    """
    try:
        return [attempt(rows)]
    except (IntegrandError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if "CUDA error" in str(error):  # the context is lost: only a new process can go on
            raise
        if rows.stop - rows.start == 1:
            return [failed(error)]
    middle = (rows.start + rows.stop) // 2
    return [
        found
        for part in (slice(rows.start, middle), slice(middle, rows.stop))
        for found in isolate(attempt, failed, part)
    ]
