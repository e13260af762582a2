"""Demonstrations that run the real thing: train a model, attribute its data under Ray, draw and
print what came out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integrand.workers.storage.store import Access


def digits(out: str | None = None, access: Access | None = None) -> int:
    """Attribute handwritten digits to their pixels; returns the exit code. `out` is a folder or an
    s3:// URI.
    """
    from integrand.service.demos import demo, mnist

    return demo.run_demo(mnist, out or "./out/digits", access=access)


def synthetic(out: str | None = None, access: Access | None = None) -> int:
    """Attribute a regression whose true attributions are known; returns the exit code. `out` as for
    digits.
    """
    from integrand.service.demos import demo, regression

    return demo.run_demo(regression, out or "./out/synthetic", access=access)
