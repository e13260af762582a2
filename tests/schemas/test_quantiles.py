"""Quantiles from counts are honest upper bounds."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from integrand.schemas.quantiles import Quantiles, histogram_quantiles


def test_no_rows_have_no_quantiles():
    assert histogram_quantiles({}, None) == Quantiles()


@given(st.lists(st.floats(1e-12, 1e3), min_size=1, max_size=60))
def test_quantiles_are_upper_bounds_within_a_tenth_of_a_decade(values: list[float]):
    histogram: dict[str, int] = {}
    for value in values:
        key = str(math.ceil(10 * math.log10(value)))
        histogram[key] = histogram.get(key, 0) + 1
    found = histogram_quantiles(histogram, max(values))
    assert found.max == max(values)
    for share, bound in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        true = sorted(values)[math.ceil(share * len(values)) - 1]
        assert bound is not None
        assert true <= bound * (1 + 1e-9)
        assert bound <= true * 10**0.1 * (1 + 1e-9)
