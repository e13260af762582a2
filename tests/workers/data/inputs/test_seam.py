"""A kind of input is its part of the spec, its class and one line of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.baselines import Baseline
from integrand.schemas.specs.inputs import InputPart
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.specs.part import Read
from integrand.workers.baselines.tensors import Given, baseline_tensors, check_baselines
from integrand.workers.data.columns import check_column, declared_columns
from integrand.workers.data.gathering import Source, read_floats
from integrand.workers.data.inputs import table
from integrand.workers.data.inputs.base import InputArrays, InputKind
from integrand.workers.data.reasons import Reasons, judge
from integrand.workers.data.roles import roles_of
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows

TABLE = pa.table({"day": [0.0, 180.0, -1.0], "a": [1.0, 2.0, None]})


class DayInput(InputPart):
    """A day of the year as sine and cosine."""

    day: str
    baseline: Baseline | None = None

    @property
    def reads(self) -> tuple[Read, ...]:
        return (Read(self.day, "number"),)


class Day(InputKind[DayInput]):
    judged_first = True

    def resolve(self, schema: pa.Schema, part: DayInput) -> InputShape:
        check_column(schema, part.day)
        return InputShape(name=part.name, columns=(part.day,), shape=(2,), named=False)

    def read(
        self,
        table: pa.Table,
        part: DayInput,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        source = Source(shape.columns, (1,), False)
        days = read_floats(table, source, dtype)
        judge(table, source, ~(days >= 0), "expected a day from 0", reasons)
        return InputArrays(self.to_model_units(part, days, shape))

    def to_model_units(
        self, part: DayInput, values: NDArray[Any], shape: InputShape
    ) -> NDArray[Any]:
        angle = values * np.pi / 180
        return np.concatenate([np.sin(angle), np.cos(angle)], 1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KINDS", {**table.KINDS, DayInput: Day()})


def spec(column: str = "day") -> AttributeSpec:
    plain = parse_spec(
        {
            "name": "t",
            "source": {"uri": "/d"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "inputs": [{"name": "f", "columns": ["a"]}],
            "baseline": {"kind": "constant", "value": 3},
            "output": {"uri": "/o"},
        }
    )
    return plain.model_copy(update={"inputs": (*plain.inputs, DayInput(name="d", day=column))})


def test_what_it_reads_is_declared_typed_and_resolved() -> None:
    assert declared_columns(spec()) == ("a", "day", "_bad")
    assert roles_of(spec()).numbers == ("a", "day")
    assert [s.shape for s in resolve_columns(TABLE.schema, spec())] == [(1,), (2,)]
    with pytest.raises(SpecError, match="did you mean `day`"):
        resolve_columns(TABLE.schema, spec("days"))


def test_its_rows_stand_in_the_order_of_the_spec_and_its_reasons_go_first() -> None:
    rows = to_rows(TABLE, spec(), resolve_columns(TABLE.schema, spec()))
    assert rows.inputs[0].tolist() == [[1], [2], [0]]
    np.testing.assert_allclose(rows.inputs[1].numpy(), [[0, 1], [0, -1], [0, 0]], atol=1e-6)
    assert rows.reasons == [None, None, "day is -1.0: expected a day from 0"]


def test_every_baseline_stands_in_for_it() -> None:
    shapes = resolve_columns(TABLE.schema, spec())
    check_baselines(spec(), shapes)
    found = baseline_tensors(spec(), shapes, Given.of(to_rows(TABLE, spec(), shapes)), {})
    assert [one.tolist() for one in found] == [[[3.0]], [[3.0, 3.0]]]
