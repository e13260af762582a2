"""Several kinds of baseline whose draws stand side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.workers.baselines.tensors import prepasses_of
from tests.toys import spec
from tests.workers.baselines.conftest import FEATURES, IMAGE

RANGED = IMAGE | {"range": [-2, 2]}
UNIFORM = {"kind": "uniform", "draws": 3, "seed": 5}
BLUR = {"kind": "blur", "sigma": 2}


def _average(*members: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "average", "of": list(members)}


def test_a_list_of_constants_is_shared(made: Any) -> None:
    constants = [{"kind": "constant", "value": value} for value in (-1, [0.5, 1])]
    (found,) = made(IMAGE, baseline=_average({"kind": "zero"}, *constants))
    assert found.shape == (3, 2, 6, 5)
    assert found[:, :, 0, 0].tolist() == [[0, 0], [-1, -1], [0.5, 1]]


def test_the_draws_of_each_row_stand_member_by_member(made: Any) -> None:
    (found,) = made(RANGED, baseline=_average({"kind": "zero"}, BLUR, UNIFORM))
    by_row = found.unflatten(0, (12, 5))
    (blurred,) = made(RANGED, baseline=BLUR)
    assert not by_row[:, 0].any()
    assert torch.equal(by_row[:, 1], blurred)
    assert len(by_row[:, 2:].unique()) == by_row[:, 2:].numel()


def test_alike_members_draw_different_numbers(made: Any) -> None:
    (found,) = made(RANGED, baseline=_average(UNIFORM, UNIFORM))
    (first,) = made(RANGED, baseline=UNIFORM)
    by_row = found.unflatten(0, (12, 2, 3))
    assert torch.equal(by_row[:, 0].flatten(0, 1), first)
    assert not np.intersect1d(by_row[:, 0], by_row[:, 1]).size


def test_rows_and_medians_are_found_for_members_too(made: Any) -> None:
    training = {"kind": "training", "draws": 2}
    part = spec(IMAGE, baseline=_average({"kind": "median"}, training)).baseline
    median, drawn = prepasses_of([part])
    rows = np.arange(120.0).reshape(2, 2, 6, 5)
    counted = {median.name: (np.full((2, 6, 5), 7.0),), drawn.name: (rows,)}
    (found,) = made(IMAGE, baseline=_average({"kind": "median"}, training), counted=counted)
    assert found.shape == (3, 2, 6, 5)
    assert found[0].unique().tolist() == [7]
    assert torch.equal(found[1:], torch.from_numpy(rows))


def test_one_row_has_the_draws_that_it_has_among_others(made: Any) -> None:
    baseline = _average({"kind": "zero"}, {"kind": "max_distance"}, UNIFORM)
    (whole,) = made(RANGED, baseline=baseline)
    for row in (0, 7):
        (alone,) = made(RANGED, rows=[row], baseline=baseline)
        assert torch.equal(alone, whole.unflatten(0, (12, 5))[row])
    (none,) = made(RANGED, rows=[], baseline=baseline)
    assert none.shape == (0, 2, 6, 5)


def test_each_member_is_checked(made: Any) -> None:
    with pytest.raises(SpecError, match="two axes in space"):
        made(FEATURES, baseline=_average({"kind": "zero"}, BLUR))
    with pytest.raises(SpecError, match="range, -2 to 2"):
        made(RANGED, baseline=_average({"kind": "zero"}, {"kind": "constant", "value": 3}))


@pytest.mark.parametrize(
    "member", [{"kind": "column", "column": "p"}, {"kind": "average", "of": [{"kind": "zero"}]}]
)
def test_columns_and_averages_are_no_members(made: Any, member: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="unknown kind"):
        made(IMAGE, baseline=_average(member))
    with pytest.raises(SpecError, match="of"):
        made(IMAGE, baseline=_average())
