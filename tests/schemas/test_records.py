"""What a run stores survives JSON, tolerates newer writers, and its quantiles are honest upper
bounds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from integrand.schemas.records import (
    Attempt,
    Plan,
    Quantiles,
    Shard,
    Slice,
    dump,
    histogram_quantiles,
)

ATTEMPT = Attempt(
    shard="00000",
    outcome="raised",
    charged=True,
    alone=False,
    reason="r",
    detail="d",
    node="n",
    at="t",
)


def test_a_record_survives_json_and_is_frozen():
    assert Attempt.model_validate_json(dump(ATTEMPT)) == ATTEMPT
    with pytest.raises(ValidationError, match="frozen"):
        ATTEMPT.charged = False  # type: ignore[misc]


def test_fields_of_newer_writers_are_ignored():
    assert Attempt.model_validate(ATTEMPT.model_dump() | {"weather": "fine"}) == ATTEMPT


def test_a_shard_counts_the_rows_of_its_slices():
    shard = Shard(
        id="00000", slices=(Slice(file=0, start=3, stop=5), Slice(file=1, start=0, stop=7))
    )
    assert shard.rows == 9


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


MEAN, OTHER = {"uri": "/m", "sha256": "0"}, {"uri": "/n", "sha256": "1"}


@pytest.mark.parametrize(
    ("stored", "names"),
    [(None, []), (MEAN, ["mean"]), ({"mean": MEAN, "median": OTHER}, ["mean", "median"])],
)
def test_prepasses_by_name_are_stored_as_means_alone_always_were(stored: object, names: list[str]):
    plan = json.loads((Path(__file__).parents[1] / "golden" / "v1" / "_plan.json").read_text())
    found = Plan.model_validate(plan | {"statistics": stored})
    assert list(found.prepasses) == names
    assert json.loads(dump(found))["statistics"] == stored
