"""Baselines that the data hold, against the valid range of their input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from integrand.schemas.errors import SpecError
from tests.plugins.jobs import COLUMNS, JobFolder

RANGED: dict[str, Any] = {"name": "features", "columns": list(COLUMNS), "range": [-9, [9, 9, 4]]}
HELD: dict[str, Any] = {"kind": "column", "columns": ["x", "y", "z"]}


def write(job: JobFolder, **changed: tuple[int, float]) -> None:
    columns = {name: np.linspace(-4, 4, 20) for name in "xyz"}
    for name, (row, value) in changed.items():
        columns[name][row] = value
    job.write_rows(**columns)


def test_a_row_whose_own_baseline_lies_outside_is_bad(job: JobFolder) -> None:
    write(job, y=(3, -9.5), z=(17, 4.25), x=(5, np.nan))
    found = job.rows(job.run(inputs=[RANGED], baseline=HELD))
    assert found["reason"][[3, 5, 17]].tolist() == [
        "y is -9.5 in model units: expected -9 to 9",
        "x is NaN",
        "z is 4.25 in model units: expected -9 to 4",
    ]
    bad = found["status"] == "bad_input"
    assert np.flatnonzero(bad).tolist() == [3, 5, 17]
    free = {name: value for name, value in RANGED.items() if name != "range"}
    plain = job.rows(job.run(inputs=[free], baseline=HELD, output={"uri": "free"}), "free")
    pd.testing.assert_frame_equal(found[~bad], plain[~bad], check_exact=True)


def test_ends_themselves_are_inside_whatever_scaling_rounds(job: JobFolder) -> None:
    write(job, x=(0, 255.0), y=(1, 0.0))
    scaled = RANGED | {
        "divide": 255,
        "mean": 0.485,
        "std": 0.229,
        "range": {"low": -5, "high": 255, "units": "raw"},
    }
    found = job.rows(job.run(inputs=[scaled], baseline=HELD | {"units": "raw"}))
    assert found["reason"].isna().all()


@pytest.mark.parametrize(
    "baseline",
    [
        {"kind": "row", "row": 3},
        {"kind": "training", "draws": 20},
        {"kind": "average", "of": [{"kind": "mean"}, {"kind": "row", "row": 3}]},
    ],
    ids=lambda baseline: baseline["kind"],
)
def test_rows_of_a_dataset_outside_are_refused(job: JobFolder, baseline: dict[str, Any]) -> None:
    values = np.zeros(20, np.float32)
    values[3] = 4.5
    job.write_rows(c=values)
    with pytest.raises(SpecError, match=r"(?s)baseline of input `features`.*seen: 4.5 in model"):
        job.plan(ingest=True, inputs=[RANGED], baseline=baseline)
    job.plan(ingest=True, inputs=[RANGED], baseline={"kind": "row", "row": 4})
