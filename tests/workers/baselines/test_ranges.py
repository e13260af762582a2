"""The valid range of an input, and what is held against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import parse_spec
from integrand.workers.baselines.base import Place
from integrand.workers.baselines.ranges import bounds_of
from tests.toys import spec
from tests.workers.baselines.conftest import FEATURES, IMAGE


def _bounds(shape: tuple[int, ...], **fields: Any) -> Any:
    one = {"name": "x", "column": "p", "shape": list(shape)} | fields
    place = InputShape(name="x", columns=("p",), shape=shape, named=False)
    return bounds_of(Place(input=spec(one).inputs[0], shape=place))


def test_ends_are_numbers_or_one_per_channel_or_feature() -> None:
    assert _bounds((2, 3)) is None
    both = _bounds((2, 3), range=[-1, 2])
    assert (both.low == -1).all()
    assert both.high.shape == (1, 2, 3)
    channels = _bounds((2, 3), range=[[0, 1], [5, 6]])
    assert channels.low[0].tolist() == [[0] * 3, [1] * 3]
    assert channels.high[0].tolist() == [[5] * 3, [6] * 3]
    features = _bounds((2, 3), range={"low": [0, 1, 2, 3, 4, 5], "high": 9})
    assert features.low.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_raw_ends_are_scaled_like_the_data() -> None:
    raw = {"low": 0, "high": 255, "units": "raw"}
    found = _bounds((2,), range=raw, divide=255, mean=0.5, std=0.5)
    assert (found.low.tolist(), found.high.tolist()) == ([[-1, -1]], [[1, 1]])
    turned = _bounds((2,), range=raw, divide=-255)
    assert (turned.low.tolist(), turned.high.tolist()) == ([[-1, -1]], [[0, 0]])


@pytest.mark.parametrize("wrong", [[2, 1], [1, 1], [[0, 3], 2], [[1, 2, 3], 5]])
def test_a_range_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"inputs\.x\.range"):
        _bounds((2, 2), range=wrong)


@pytest.mark.parametrize("wrong", [[1], [1, 2, 3], {"low": 1}, "0 to 1"])
def test_another_form_is_refused_by_the_spec(wrong: Any) -> None:
    with pytest.raises(SpecError, match="range"):
        spec(FEATURES | {"range": wrong})


@pytest.mark.parametrize(
    "baseline",
    [
        {"kind": "constant", "value": 2},
        {"kind": "constant", "value": [0.5, -1.5]},
        {"kind": "constant", "value": 30, "units": "raw"},
    ],
)
def test_a_constant_outside_the_range_is_refused(made: Any, baseline: dict[str, Any]) -> None:
    one = FEATURES | {"range": [-1, 1], "divide": 10}
    with pytest.raises(SpecError, match=r"baseline of input `f`(.|\n)*range, -1 to 1"):
        made(one, baseline=baseline)
    made(one, baseline={"kind": "constant", "value": 9, "units": "raw"})


def test_zero_outside_the_range_is_refused(made: Any) -> None:
    with pytest.raises(SpecError, match="seen: 0"):
        made(IMAGE | {"range": [0.5, 1]})


@pytest.mark.parametrize(
    "baseline",
    [{"kind": "max_distance"}, {"kind": "uniform"}, {"kind": "gaussian", "sigma": 1}],
)
def test_a_kind_that_is_made_of_the_range_needs_one(made: Any, baseline: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"next: give inputs\.f\.range: \[low, high\]"):
        made(FEATURES, baseline=baseline)


def test_a_spec_without_a_range_is_written_as_ever() -> None:
    job = spec(FEATURES, IMAGE | {"range": [0, 1]})
    first, second = job.model_dump(mode="json")["inputs"]
    assert "range" not in first
    assert second["range"] == {"low": 0, "high": 1, "units": "model"}
    assert parse_spec(job.model_dump(mode="json")) == job
    assert np.isfinite(second["range"]["high"])
