"""A kind of baseline is its part of the spec, its class and one line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.specs.part import Read
from integrand.workers.baselines import table, tensors
from integrand.workers.baselines.base import BaselineKind, Place, PlaceRows
from integrand.workers.baselines.tensors import Given
from integrand.workers.data.columns import declared_columns
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan
from integrand.workers.data.roles import roles_of
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows

TABLE = pa.table({"a": [1.0, 2], "b": [3.0, float("nan")], "c": [5.0, 6], "d": [7.0, 8]})


class Between(BaselinePart):
    """Halfway between the counted values and what columns hold, times a number."""

    kind: Literal["between"] = "between"
    columns: tuple[str, ...]
    factor: float = 1.0

    @property
    def reads(self) -> tuple[Read, ...]:
        return tuple(Read(name, "number") for name in self.columns)

    @property
    def reads_raw(self) -> bool:
        return True

    @property
    def draws_per_row(self) -> int:
        return int(self.factor)


class Largest(PrePass[float]):
    name = "largest"

    def partial(self, scan: Scan, file: int, row_group: int) -> float:
        raise NotImplementedError

    def merge(self, partials: Sequence[float]) -> Arrays:
        raise NotImplementedError


class Halfway(BaselineKind[Between]):
    def prepasses(self, part: Between) -> tuple[PrePass[Any], ...]:
        return (Largest(),)

    def check(self, part: Between, place: Place) -> None:
        if part.factor < 0:
            raise SpecError(f"baseline of input `{place.shape.name}`", expected="a factor from 0")

    def tensor(self, part: Between, rows: PlaceRows) -> Tensor:
        assert rows.read is not None
        between = (rows.read + rows.placed(rows.found(Largest()))) / 2
        draws = torch.arange(1, part.draws_per_row + 1).repeat(rows.rows)
        return draws[:, None] * between.repeat_interleave(part.draws_per_row, 0)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KINDS", {**table.KINDS, Between: Halfway()})


def spec(columns: tuple[str, ...] = ("c", "d"), factor: float = 1.0) -> AttributeSpec:
    plain = parse_spec(
        {
            "name": "t",
            "source": {"uri": "/d"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "inputs": [{"name": "f", "columns": ["a", "b"], "divide": 2}],
            "output": {"uri": "/o"},
        }
    )
    return plain.model_copy(update={"baseline": Between(columns=columns, factor=factor)})


def made(job: AttributeSpec) -> tuple[Tensor, ...]:
    shapes = resolve_columns(TABLE.schema, job)
    given = Given.of(to_rows(TABLE, job, shapes))
    return tensors.baseline_tensors(job, shapes, given, {"largest": (np.array([1.0, 2]),)})


def test_what_it_reads_is_declared_typed_read_and_judged() -> None:
    job = spec()
    assert declared_columns(job) == ("a", "b", "c", "d", "_bad")
    assert roles_of(job).numbers == ("a", "b", "c", "d")
    rows = to_rows(TABLE, job, resolve_columns(TABLE.schema, job))
    assert rows.baselines[0] is not None
    assert rows.baselines[0].tolist() == [[2.5, 3.5], [0, 0]]
    assert rows.reasons == [None, "b is NaN"]
    bad = to_rows(TABLE, spec(("b", "d")), resolve_columns(TABLE.schema, job))
    assert bad.reasons == [None, "b is NaN"]


def test_columns_that_make_no_tensor_of_its_input_are_refused() -> None:
    with pytest.raises(SpecError, match="2 columns"):
        resolve_columns(TABLE.schema, spec(("c",)))
    with pytest.raises(SpecError, match="one column of this name"):
        resolve_columns(TABLE.schema, spec(("c", "e")))


def test_it_names_its_prepass_and_is_handed_what_that_found() -> None:
    job = spec()
    assert [one.name for one in tensors.prepasses_of(job.baselines)] == ["largest"]
    (found,) = made(job)
    assert found[0].tolist() == [1.75, 2.75]
    assert found.dtype == torch.float32


def test_it_says_how_many_baselines_a_row_has() -> None:
    job = spec(factor=3)
    assert job.draws == 3
    (found,) = made(job)
    assert found.shape == (6, 2)  # three of the first row, then three of the second
    assert found[:3].tolist() == [[1.75, 2.75], [3.5, 5.5], [5.25, 8.25]]


def test_it_is_checked_before_workers_start() -> None:
    job = spec(factor=-1)
    with pytest.raises(SpecError, match=r"baseline of input `f`(.|\n)*a factor from 0"):
        tensors.check_baselines(job, resolve_columns(TABLE.schema, job))
