"""Pointers to the latest run."""

from __future__ import annotations

import shutil

import pytest

from integrand.schemas.record import dump
from integrand.schemas.sidecars import (
    Pointer,
)
from tests.plugins.tampering import Tampered, findings_text, verify_alone

POINTERS: dict[str, tuple[Pointer, str]] = {
    "to nothing": (
        Pointer(run_id="gone", logical_date="2030-01-01", written="now"),
        "a complete run",
    ),
    "outside": (
        Pointer(run_id="../gone", logical_date="2030-01-01", written="now"),
        "the name of a run folder",
    ),
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_pointer_astray_is_found(run: Tampered, name: str):
    pointer, expected = POINTERS[name]
    (run.path.parent / "_latest" / "test.json").write_bytes(dump(pointer))
    assert expected in findings_text(verify_alone(run))


def test_a_pointer_of_another_job_is_not_this_runs_matter(run: Tampered):
    (run.path.parent / "_latest" / "other.json").write_bytes(dump(POINTERS["to nothing"][0]))
    assert verify_alone(run).holds


def test_a_pointer_that_lags_behind_is_found(run: Tampered):
    shutil.copytree(run.path, run.path.parent / "older")
    pointer = Pointer(run_id="older", logical_date="2001-01-01", written="now")
    (run.path.parent / "_latest" / "test.json").write_bytes(dump(pointer))
    assert "or a later one" in findings_text(verify_alone(run))


def test_a_missing_pointer_is_not_called_fine(run: Tampered):
    shutil.rmtree(run.path.parent / "_latest")
    found = verify_alone(run)
    assert (found.findings, "there is no _latest/test.json" in str(found.unchecked)) == ((), True)
