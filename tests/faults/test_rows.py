"""Rows that are wrong in every way that we know: each gets its status and its reason, and no other
row changes a bit.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import DataError
from integrand.schemas.records import RunManifest
from integrand.service.checks.verify import verify_run
from integrand.service.runs.query import Run, open_run
from tests.plugins.jobs import JobFolder

ROWS, TRIED = 40, 16
"""Rows of the source, and how many of its first ones the plan tries: a model that raises there is
refused.
"""
ATTRIBUTED = ("ok", "at_precision_floor", "not_converged", "unchecked")

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(7, 8), nn.Linear(8, 2)

    def forward(self, x, image, mark):
        if (mark == 1).any():
            raise ValueError("a row that I will not take")
        out = self.last(torch.tanh(self.first(torch.cat([x, image.flatten(1)], 1))))
        for kind, value in ((2, float("nan")), (3, float("inf")), (4, float("-inf"))):
            out = torch.where((mark == kind)[:, None], value, out)
        steep = (mark == 5).nonzero().flatten()  # sqrt has a value at 0 and no gradient
        return out.index_add(0, steep, torch.sqrt(x[steep, :2] * 0)) if len(steep) else out

def build():
    return Model().eval()
"""


@dataclass(frozen=True)
class Fault:
    """One value put into one column of a row, and what becomes of the row."""

    column: str
    value: Any
    status: str
    reason: str


FAULTS: dict[str, Fault] = {
    "null": Fault("a", None, "bad_input", "a is null"),
    "NaN": Fault("a", math.nan, "bad_input", "a is NaN"),
    "infinity": Fault("a", math.inf, "bad_input", "a is inf"),
    "negative infinity": Fault("b", -math.inf, "bad_input", "b is -inf"),
    "too large for float32": Fault("a", 1e300, "bad_input", "a is 1e+300"),
    "null integer": Fault("c", None, "bad_input", "c is null"),
    "no list": Fault("p", None, "bad_input", "p is null"),
    "empty list": Fault("p", [], "bad_input", "p has 0 values, expected 2"),
    "short list": Fault("p", [[1.0, 2.0]], "bad_input", "p has 1 values, expected 2"),
    "null within": Fault("p", [None, [1.0, 2.0]], "bad_input", "p[0] is null"),
    "long list within": Fault(
        "p", [[1.0, 2.0], [1.0] * 5000], "bad_input", "p[1] has 5000 values, expected 2"
    ),
    "null deep within": Fault("p", [[1.0, 2.0], [None, 2.0]], "bad_input", "p[1][0] is null"),
    "NaN deep within": Fault("p", [[1.0, math.nan], [1.0, 2.0]], "bad_input", "p[0][1] is NaN"),
    "no target": Fault("label", None, "bad_input", "label is null"),
    "negative target": Fault("label", -1, "bad_input", "label is -1"),
    "target outside": Fault("label", 2, "bad_input", "target 2 is outside 0..1"),
    "target far outside": Fault("label", 2**62, "bad_input", f"target {2**62} is outside 0..1"),
    "no argument": Fault("mark", None, "bad_input", "mark is null"),
    "raises": Fault("mark", 1, "failed", "the model raised ValueError: a row that I will not take"),
    "output NaN": Fault("mark", 2, "nonfinite", "the model's output at x is NaN or inf"),
    "output infinite": Fault("mark", 3, "nonfinite", "the model's output at x is NaN or inf"),
    "output negative infinite": Fault(
        "mark", 4, "nonfinite", "the model's output at x is NaN or inf"
    ),
    "gradient NaN": Fault("mark", 5, "nonfinite", "the model's gradient on the path is NaN or inf"),
}
OF_THE_MODEL = {name for name, fault in FAULTS.items() if fault.status != "bad_input"}
TYPES = {
    "id": pa.string(),
    "a": pa.float64(),
    "b": pa.float32(),
    "c": pa.int64(),
    "label": pa.int64(),
    "mark": pa.int64(),
    "p": pa.list_(pa.list_(pa.float64())),
}
Rows = dict[str, list[Any]]


def sound_rows() -> Rows:
    random = np.random.default_rng(0)
    return {
        "id": [f"row {i}" for i in range(ROWS)],
        "a": random.normal(size=ROWS).tolist(),
        "b": random.normal(size=ROWS).tolist(),
        "c": random.integers(-3, 4, ROWS).tolist(),
        "label": random.integers(0, 2, ROWS).tolist(),
        "mark": [0] * ROWS,
        "p": random.normal(size=(ROWS, 2, 2)).tolist(),
    }


def fields(out: str, accuracy: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        {"name": "x", "columns": ["a", "b", "c"]},
        {"name": "image", "column": "p", "shape": [2, 2]},
    ]
    return {
        "inputs": inputs,
        "target": {"kind": "column", "column": "label"},
        "output": {"uri": out},
        "accuracy": accuracy,
        "forward_args": [{"name": "mark", "column": "mark", "dtype": "int64"}],
        "compute": {"shard_rows": 9, "batch_rows": 16, "savings": "none"},
    }


@dataclass(frozen=True)
class Sound:
    """A job and its output rows where nothing is wrong."""

    job: JobFolder
    accuracy: dict[str, Any]
    rows: pd.DataFrame

    def run(self, rows: Rows) -> tuple[RunManifest, Run]:
        """Other rows of the same job, into a place of their own."""
        self.job.write_table(
            "rows.parquet", pa.table({n: pa.array(v, TYPES[n]) for n, v in rows.items()})
        )
        out = uuid4().hex
        manifest = self.job.run(**fields(out, self.accuracy))
        return manifest, open_run(self.job.path / out)


@pytest.fixture(scope="module", params=["fixed", "adaptive"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    job = JobFolder(tmp_path_factory.mktemp("rows"))
    (job.path / f"{job.module}.py").write_text(MODEL)
    accuracy = (
        {"kind": "adaptive"} if request.param == "adaptive" else {"kind": "fixed", "steps": 8}
    )
    made = Sound(job, accuracy, pd.DataFrame())
    return replace(made, rows=made.run(sound_rows())[1].to_pandas())


@st.composite
def spoilt(draw: st.DrawFn) -> dict[int, str]:
    """Rows and what is wrong with them."""
    rows = draw(st.sets(st.integers(0, ROWS - 1), max_size=ROWS // 2))
    kinds = {
        True: st.sampled_from(sorted(FAULTS)),
        False: st.sampled_from(sorted(FAULTS.keys() - OF_THE_MODEL)),
    }
    return {row: draw(kinds[row >= TRIED]) for row in sorted(rows)}


@pytest.mark.needs_strict_kernels
@settings(max_examples=8, deadline=None)
@given(wrong=spoilt())
def test_any_wrong_rows_among_sound_ones(sound: Sound, wrong: dict[int, str]):
    check(sound, wrong)


def check(sound: Sound, wrong: dict[int, str]) -> None:
    """A wrong row has its status and its reason, is in no aggregate, and costs no other row
    a bit.
    """
    rows = sound_rows()
    for row, name in wrong.items():
        rows[FAULTS[name].column][row] = FAULTS[name].value
    manifest, run = sound.run(rows)
    found = run.to_pandas()
    assert (manifest.complete, manifest.rows_in, manifest.rows_out) == (True, ROWS, ROWS)
    assert found["row_id"].tolist() == rows["id"]
    for row, name in wrong.items():
        assert (name, found.loc[row, "status"]) == (name, FAULTS[name].status)
        assert FAULTS[name].reason in found.loc[row, "reason"]
        assert found.loc[[row]].filter(like="attr.").isna().all(axis=None)
    others = [row for row in range(ROWS) if row not in wrong]
    kinds = {"target": "float64"}  # pandas has no null among its plain integers
    pd.testing.assert_frame_equal(
        found.loc[others].astype(kinds), sound.rows.loc[others].astype(kinds), check_exact=True
    )
    check_aggregates(run, found)
    assert verify_run(run.uri, sample=0).holds


def check_aggregates(run: Run, found: pd.DataFrame) -> None:
    """Wrong rows are counted, and in no mean, quantile or ranking."""
    good = found[found["status"].isin(ATTRIBUTED)]
    manifest = run.manifest
    assert manifest.statuses == Counter(found["status"])
    assert sum(manifest.statuses.values()) == ROWS
    assert manifest.gap.max == pytest.approx(good["gap"].abs().max())
    assert manifest.error.max == (
        None if good["error_estimate"].isna().all() else good["error_estimate"].max()
    )
    assert manifest.evaluations_per_row == pytest.approx(found["evaluations"].sum() / len(good))
    assert manifest.converged_share == pytest.approx(
        good["status"].isin(ATTRIBUTED[:2]).sum() / ROWS
    )
    features = np.column_stack(
        [
            good[["attr.a", "attr.b", "attr.c"]].to_numpy(float),
            np.stack(good["attr.image"].tolist()),
        ]
    )
    top = run.top_features(7)
    np.testing.assert_allclose(
        np.sort(top["mean_abs"]), np.sort(np.abs(features.astype(float)).mean(0)), rtol=1e-12
    )
    assert np.isfinite(top[["mean_abs", "mean", "share"]].to_numpy()).all()
    assert set(run.worst(ROWS)["row_id"]) <= set(good["row_id"])


@pytest.mark.needs_strict_kernels
def test_every_kind_of_wrong_row_beside_the_others(sound: Sound):
    check(sound, dict(zip(range(TRIED, ROWS), FAULTS, strict=False)))


# --- ids ---------------------------------------------------------------------------------------

ABSURD = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "\r\n",
    "\t",
    "\x1b[31mred",
    "\u202edesrever",
    "../../etc/passwd",
    "=1+1",
    "'; --",
    "%s%n",
    "😀" * 1000,
    "e\u0301",
    "\u00e9",
    "null",
    "None",
    "NaN",
    "row 1#2",
    "a,b",
    '"',
    "x" * 1_000_000,
    "\ufffe",
]


def test_absurd_ids_come_back_as_they_are(sound: Sound):
    rows = sound_rows()
    rows["id"] = ABSURD + rows["id"][len(ABSURD) :]
    manifest, run = sound.run(rows)
    assert manifest.complete
    assert run.to_pandas()["row_id"].tolist() == rows["id"]
    assert run.rows("../../etc/passwd")["row_id"].tolist() == ["../../etc/passwd"]
    assert verify_run(run.uri, sample=0).holds
    assert {p.name for p in Path(run.uri.path).rglob("*")} >= {"part-00000.parquet"}
    assert not [p for p in Path(run.uri.path).rglob("*") if "passwd" in p.name]


def test_ids_that_are_not_utf8_are_refused_before_a_run_exists(sound: Sound):
    """Parquet does not enforce it: bytes that another writer calls a string."""
    rows = sound_rows()
    table = pa.table({n: pa.array(v, TYPES[n]) for n, v in rows.items()})
    raw = pa.array([b"\xff\xfe", *(i.encode() for i in rows["id"][1:])], pa.binary())
    broken = pa.StringArray.from_buffers(ROWS, raw.buffers()[1], raw.buffers()[2])
    sound.job.write_table("rows.parquet", table.set_column(0, "id", broken))
    with pytest.raises(DataError, match="UTF-8"):
        sound.job.run(**fields(uuid4().hex, sound.accuracy))


# --- text --------------------------------------------------------------------------------------

JSON_FAULTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"id": "?", "a": 1', "line"),
    "not an object": (b"[1, 2]", "expected an object"),
    "not UTF-8": (b'{"id": "\xff", "a": 1, "b": 2, "c": 3}', "'utf-8' codec can't decode"),
    "text for a number": (b'{"id": "?", "a": "much", "b": 2, "c": 3}', "a"),
    "list for a number": (b'{"id": "?", "a": [1], "b": 2, "c": 3}', "a"),
    "object for a number": (b'{"id": "?", "a": {"x": 1}, "b": 2, "c": 3}', "a"),
    "NaN": (b'{"id": "?", "a": NaN, "b": 2, "c": 3}', "a"),
    "infinite": (b'{"id": "?", "a": 1e999, "b": 2, "c": 3}', "a"),
    "huge integer": (b'{"id": "?", "a": ' + b"9" * 400 + b', "b": 2, "c": 3}', "a"),
    "too many digits for an integer": (
        b'{"id": "?", "a": ' + b"9" * 5000 + b', "b": 2, "c": 3}',
        "",
    ),
    "missing": (b'{"id": "?", "b": 2, "c": 3}', "a is null"),
    "null": (b'{"id": "?", "a": null, "b": 2, "c": 3}', "a is null"),
    "nested too deep": (
        b'{"id": "?", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "b": 2, "c": 3}',
        "",
    ),
    "lone surrogate": (
        b'{"id": "\\ud800", "a": 1, "b": 2, "c": 3}',
        "column id: '\\ud800' is not Unicode",
    ),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobFolder, pd.DataFrame]:
    """A job over JSON lines, and its output rows where nothing is wrong."""
    job = JobFolder(tmp_path_factory.mktemp("text"))
    job.write_model()
    return job, run_lines(job, lines())[1]


def lines() -> list[bytes]:
    values = np.random.default_rng(1).normal(size=(ROWS, 3)).tolist()
    return [
        json.dumps({"id": f"{i}", "a": a, "b": b, "c": c}).encode()
        for i, (a, b, c) in enumerate(values)
    ]


def run_lines(job: JobFolder, content: list[bytes]) -> tuple[RunManifest, pd.DataFrame]:
    out = uuid4().hex
    (job.path / "lines").mkdir(exist_ok=True)
    (job.path / "lines" / "rows.jsonl").write_bytes(b"\n".join(content))
    manifest = job.run(source={"uri": "lines"}, output={"uri": out})
    return manifest, job.rows(manifest, out)


@settings(max_examples=10, deadline=None)
@given(
    wrong=st.dictionaries(
        st.integers(1, ROWS - 1), st.sampled_from(sorted(JSON_FAULTS)), min_size=1, max_size=20
    )
)
def test_a_wrong_line_is_its_own_row_and_costs_no_other_row_a_bit(
    text: tuple[JobFolder, pd.DataFrame], wrong: dict[int, str]
):
    job, undisturbed = text  # the first line, which names the columns that no spec names, is sound
    content = [JSON_FAULTS[wrong[i]][0] if i in wrong else line for i, line in enumerate(lines())]
    manifest, found = run_lines(job, content)
    assert (manifest.complete, manifest.rows_in, manifest.rows_out) == (True, ROWS, ROWS)
    others = [row for row in range(ROWS) if row not in wrong]
    assert found.loc[list(wrong), "status"].eq("bad_input").all()
    for row, name in wrong.items():
        assert JSON_FAULTS[name][1] in found.loc[row, "reason"]
    pd.testing.assert_frame_equal(found.loc[others], undisturbed.loc[others], check_exact=True)


def test_numbers_written_as_text_are_the_same_numbers(text: tuple[JobFolder, pd.DataFrame]):
    job, undisturbed = text
    written = [
        json.dumps({k: str(v) for k, v in json.loads(line).items()}).encode() for line in lines()
    ]
    pd.testing.assert_frame_equal(run_lines(job, written)[1], undisturbed, check_exact=True)


def test_a_key_that_is_no_text_is_no_column(text: tuple[JobFolder, pd.DataFrame]):
    job, undisturbed = text
    first, *others = lines()
    found = run_lines(job, [first.replace(b"{", b'{"\\ud800": 1, ', 1), *others])[1]
    pd.testing.assert_frame_equal(found, undisturbed, check_exact=True)


def test_a_header_that_is_not_utf8_is_refused_before_a_run_exists(
    text: tuple[JobFolder, pd.DataFrame],
):
    job, _ = text
    (job.path / "csv").mkdir()
    (job.path / "csv" / "rows.csv").write_bytes(b"id,a,b,c,\xff\n" + b"1,2,3,4,5\n" * 20)
    with pytest.raises(DataError, match="a header in UTF-8"):
        job.run(source={"uri": "csv"})
