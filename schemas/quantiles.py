"""Quantiles of a diagnostic, and bounds of them from counts that add up over shards."""

from __future__ import annotations

from integrand.schemas.record import Record


class Quantiles(Record):
    """Quantiles of one diagnostic over a set of rows; null when no row has it."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


def histogram_quantiles(histogram: dict[str, int], largest: float | None) -> Quantiles:
    """Upper bounds of the quantiles, from counts by decimal exponent in tenths (`-31` means ≤
    10**-3.1).
    """
    total = sum(histogram.values())
    if not total:
        return Quantiles()
    return Quantiles(
        p50=_quantile(histogram, total, 0.5, largest),
        p90=_quantile(histogram, total, 0.9, largest),
        p99=_quantile(histogram, total, 0.99, largest),
        max=largest,
    )


def _quantile(histogram: dict[str, int], total: int, share: float, largest: float | None) -> float:
    seen = 0
    for exponent in sorted(histogram, key=int):
        seen += histogram[exponent]
        if seen >= share * total:
            bound = float(10.0 ** (int(exponent) / 10))
            return bound if largest is None else min(bound, largest)
    raise AssertionError("a quantile lies within its histogram")
