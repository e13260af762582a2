"""Every kind of target: which outputs it takes of a sample and of a shard's rows, and what it
refuses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.part import branches_of
from integrand.schemas.specs.targets import (
    AllTargets,
    ArgmaxTarget,
    ColumnTarget,
    IndexTarget,
    RegionTarget,
    ScalarTarget,
    Target,
    TargetPart,
    TopKTarget,
)
from integrand.workers.models.targets.base import Choice, TargetRows
from integrand.workers.models.targets.table import KINDS, kind_of_target

OUT = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
COLUMN = torch.tensor([2, 0])

CASES: list[tuple[TargetPart, Any, Any]] = [
    (ScalarTarget(), None, None),
    (RegionTarget(ranges=((0, 2),)), None, None),
    (IndexTarget(index=1), [[1], [1]], [[[1]], [[1]]]),
    (IndexTarget(index=(1, 0)), [[1, 0], [1, 0]], [[[1, 0]], [[1, 0]]]),
    (ColumnTarget(column="y"), [[2], [0]], [[[2]], [[0]]]),
    (ArgmaxTarget(), [[1], [2]], [[[1]], [[2]]]),
    (TopKTarget(k=2), [[1], [2]], [[[1], [2]], [[2], [0]]]),
    (AllTargets(), [[0], [0]], [[[0], [1], [2]]] * 2),
]


def asked() -> TargetRows:
    def choose(choice: Choice) -> Tensor:
        return choice(OUT)

    return TargetRows(2, 3, "cpu", COLUMN, choose)


@pytest.mark.parametrize(("target", "sample", "rows"), CASES, ids=lambda c: getattr(c, "kind", ""))
def test_targets_of_a_sample_and_of_rows(target: TargetPart, sample: Any, rows: Any) -> None:
    kind = kind_of_target(target)
    of_sample = kind.of_sample(target, 2, OUT, COLUMN)
    of_rows = kind.of_rows(target, asked())
    assert (of_sample is None, of_rows is None) == (sample is None, rows is None)
    if of_sample is not None and of_rows is not None:
        assert of_sample.dtype == of_rows.dtype == torch.int64
        assert (of_sample.tolist(), of_rows.tolist()) == (sample, rows)
        assert target.per_row(3) == of_rows.shape[1]


@pytest.mark.parametrize(("target", "sample", "rows"), CASES, ids=lambda c: getattr(c, "kind", ""))
def test_places_are_what_every_row_has(target: TargetPart, sample: Any, rows: Any) -> None:
    places = target.places(3)
    if places is not None:
        of_rows = kind_of_target(target).of_rows(target, asked())
        expected = [[()]] * 2 if of_rows is None else [[tuple(t) for t in r] for r in of_rows]
        assert [list(places)] * 2 == expected
        assert target.per_row(3) == len(places)


def test_every_kind_of_the_spec_is_listed() -> None:
    assert set(KINDS) == set(branches_of(Target).values())


@pytest.mark.parametrize(
    "target", [ColumnTarget(column="y"), ArgmaxTarget(), TopKTarget(k=1), AllTargets()]
)
def test_outputs_of_another_shape_are_refused(target: Any) -> None:
    for out in (torch.zeros(2), torch.zeros(2, 3, 4), torch.tensor(0.0)):
        with pytest.raises(SpecError, match=f"target.kind {target.kind}(.|\n)*use `scalar`"):
            kind_of_target(target).check(target, out)


def test_more_outputs_than_there_are_cannot_be_the_largest() -> None:
    with pytest.raises(SpecError, match="at most 3"):
        kind_of_target(TopKTarget(k=4)).check(TopKTarget(k=4), OUT)


def test_a_column_that_names_outputs_that_are_not_there() -> None:
    target = ColumnTarget(column="y")
    kind = kind_of_target(target)
    column = torch.tensor([3, 1, -1])
    assert kind.refusals(column, (3,)) == {
        0: "target 3 is outside 0..2",
        2: "target -1 is outside 0..2",
    }
    assert kind.of_sample(target, 3, OUT[[0, 0, 1]], column).tolist() == [[1], [1], [1]]
    with pytest.raises(SpecError, match=r"target\.column y"):
        kind.of_sample(target, 2, OUT, column[[0, 2]])
