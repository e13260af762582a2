"""What a run stores survives JSON, and tolerates newer writers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from integrand.schemas.record import dump
from integrand.schemas.records import (
    Plan,
    Shard,
    Slice,
)
from integrand.schemas.sidecars import (
    Attempt,
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
