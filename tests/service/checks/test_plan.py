"""The plan against itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.plugins.tampering import Tampered, findings_text, verify_alone


def test_an_edited_plan_is_not_the_one_that_footers_name(run: Tampered):
    run.edit("_plan.json", lambda plan: plan.update(created="yesterday"))
    found = findings_text(verify_alone(run))
    assert found.count("run, shard, plan") == 2
    assert "manifest, plan_sha256" in found


def accuracy(plan: dict[str, Any]) -> None:
    plan["spec"]["accuracy"]["tolerance"] = 0.5


def weights(plan: dict[str, Any]) -> None:
    plan["code_sha256"] = "0" * 64


def numerics(plan: dict[str, Any]) -> None:
    plan["numerics"]["batch_rows"] = 64


@pytest.mark.parametrize("change", [accuracy, weights, numerics])
def test_what_can_change_a_value_is_under_the_run_id(
    run: Tampered, change: Callable[[dict[str, Any]], None]
):
    run.edit("_plan.json", change)
    assert "_plan.json run_id" in findings_text(verify_alone(run))


def overlap(plan: dict[str, Any]) -> None:
    plan["shards"][1]["slices"][0]["start"] -= 1


def leave_out(plan: dict[str, Any]) -> None:
    plan["shards"].pop()


def twice(plan: dict[str, Any]) -> None:
    plan["shards"].append(plan["shards"][0])


@pytest.mark.parametrize("change", [overlap, leave_out, twice])
def test_shards_that_are_not_every_row_once_are_found(
    run: Tampered, change: Callable[[dict[str, Any]], None]
):
    run.edit("_plan.json", change)
    assert "each once" in findings_text(verify_alone(run))
