"""Bad input gets a precise error before any worker starts, or its row's status, with rows in = rows
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.uris import Uri
from integrand.service.cli import commands as cli
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from tests.plugins.jobs import COLUMNS, JobFolder

Break = Callable[[JobFolder], dict[str, Any]]


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command line, in this process."""
    monkeypatch.setattr("sys.argv", ["integrand", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


# --- known before workers start ----------------------------------------------------------------


def without(column: str) -> Break:
    def remove(job: JobFolder) -> dict[str, Any]:
        table = pq.read_table(job.path / "data" / "rows.parquet")
        job.write_table("rows.parquet", table.drop_columns([column]))
        return {}

    return remove


def with_column(**columns: Any) -> Break:
    def write(job: JobFolder) -> dict[str, Any]:
        job.write_rows(**columns)
        return {}

    return write


def with_file(name: str, data: bytes) -> Break:
    def write(job: JobFolder) -> dict[str, Any]:
        (job.path / "data" / name).write_bytes(data)
        return {}

    return write


def truncated(job: JobFolder) -> dict[str, Any]:
    place = job.path / "data" / "rows.parquet"
    place.write_bytes(place.read_bytes()[:-100])
    return {}


def nothing_but_a_note(job: JobFolder) -> dict[str, Any]:
    (job.path / "data" / "rows.parquet").rename(job.path / "data" / "README.txt")
    return {}


def another_schema(job: JobFolder) -> dict[str, Any]:
    job.write_table("z.parquet", pa.table({"id": ["x"], "a": ["x"], "b": [1.0], "c": [1.0]}))
    return {}


def lists(*values: list[float]) -> pa.Array:
    return pa.array(values * (20 // len(values)), pa.list_(pa.float32()))


def spec(**changes: Any) -> Break:
    return lambda job: changes


TENSOR = {"name": "x", "column": "a", "shape": [3]}

REFUSED: dict[str, tuple[Break, type[Exception], str]] = {
    "missing column": (without("b"), SpecError, "column `b`"),
    "misspelled column": (
        spec(inputs=[{"name": "x", "columns": ["a", "b", "idd"]}]),
        SpecError,
        "did you mean `id`",
    ),
    "string column": (
        with_column(a=["x"] * 20),
        SpecError,
        "column `a`[\\s\\S]*numeric column[\\s\\S]*string",
    ),
    "list for a number": (
        with_column(a=lists([1, 2, 3])),
        SpecError,
        "column `a`[\\s\\S]*`column:` with a shape",
    ),
    "number for a list": (spec(inputs=[TENSOR]), SpecError, "column `a`[\\s\\S]*lists"),
    "strings in a list": (
        lambda job: with_column(a=[["x"] * 3] * 20)(job) | {"inputs": [TENSOR]},
        SpecError,
        "column `a`[\\s\\S]*numbers",
    ),
    "fixed lists of another length": (
        lambda job: (
            with_column(a=pa.array([[1.0, 2.0]] * 20, pa.list_(pa.float32(), 2)))(job)
            | {"inputs": [TENSOR]}
        ),
        SpecError,
        "3 values for shape",
    ),
    "every list of another length": (
        lambda job: with_column(a=lists([1, 2]))(job) | {"inputs": [TENSOR]},
        DataError,
        "a has 2 values, expected 3",
    ),
    "missing row id": (spec(source={"uri": "data", "row_id": "key"}), SpecError, "column `key`"),
    "null row id": (
        with_column(id=[None, *range(19)]),
        DataError,
        "1 null, the first at rows.parquet#0",
    ),
    "duplicate row id": (
        with_column(id=[7, *range(19)]),
        DataError,
        "7 at rows.parquet#0 and rows.parquet#8",
    ),
    "duplicate category as row id": (
        with_column(id=pa.array(["x", "x", *map(str, range(18))]).dictionary_encode()),
        DataError,
        "'x' at rows.parquet#0",
    ),
    "empty dataset": (lambda job: job.write_rows(count=0) and {}, DataError, "no rows"),
    "no such place": (spec(source={"uri": "none"}), DataError, "no files|nothing there"),
    "glob without a match": (
        spec(source={"uri": "data/*.csv"}),
        DataError,
        "no files|nothing there",
    ),
    "no data files": (nothing_but_a_note, DataError, "1 other files"),
    "truncated file": (truncated, DataError, "rows.parquet[\\s\\S]*truncated"),
    "not Parquet": (
        with_file("z.parquet", b"id,a\n1,2\n" * 99),
        DataError,
        "z.parquet[\\s\\S]*other bytes than Parquet",
    ),
    "empty file": (with_file("z.parquet", b""), DataError, "z.parquet[\\s\\S]*an empty file"),
    "files of two formats": (with_file("z.csv", b"id,a,b,c\n"), DataError, "csv, parquet"),
    "files of two schemas": (another_schema, DataError, "z.parquet"),
    "unwritable output": (
        spec(output={"uri": "data/rows.parquet/out"}),
        DataError,
        "can be written",
    ),
    "output nowhere": (spec(output={"uri": "/proc/none/out"}), DataError, "can be written"),
    "unknown target": (spec(target={"kind": "index", "index": 9}), SpecError, "from 0 to 1"),
    "unknown scheme": (spec(source={"uri": "http://127.0.0.1:1/x"}), SpecError, "http://"),
}


@pytest.mark.parametrize(("damage", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_before_a_run_exists(
    job: JobFolder, damage: Break, kind: type[Exception], message: str
):
    changes = damage(job)
    with pytest.raises(kind, match=message):
        job.run(**changes)
    assert not list((job.path / "out").glob("*/*"))


@pytest.mark.s3
def test_an_output_that_may_not_be_written_is_refused(
    job: JobFolder, s3_root: Uri, s3_server: Any, as_reader: None
):
    with pytest.raises(DataError, match="can be written"):
        run_job(
            job.spec(output={"uri": str(s3_root)}),
            base=str(job.path),
            operator=Operator(trusted=(job.module,), access=s3_server.access),
            cluster=Cluster("local"),
        )


# --- known only when the row is read -----------------------------------------------------------

BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "null": ({"a": pa.array([0.5] * 17 + [None] + [0.5] * 2, pa.float32())}, "a is null"),
    "NaN": ({"a": np.array([0.5] * 17 + [math.nan] + [0.5] * 2)}, "a is NaN"),
    "infinity": ({"a": np.array([0.5] * 17 + [math.inf] + [0.5] * 2)}, "a is inf"),
    "negative infinity": ({"a": np.array([0.5] * 17 + [-math.inf] + [0.5] * 2)}, "a is -inf"),
    "too large for float32": ({"a": np.array([0.5] * 17 + [1e300] + [0.5] * 2)}, "a is 1e+300"),
}


@pytest.mark.parametrize(("columns", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_value_costs_its_row_and_no_other(
    job: JobFolder, columns: dict[str, Any], reason: str
):
    job.write_rows(**columns)
    check(job, [17], reason)


def test_first_rows_may_all_be_bad(job: JobFolder):
    """As those of rolling features are: the plan looks further on."""
    job.write_rows(count=100, a=np.array([math.nan] * 40 + [0.5] * 60))
    manifest = job.run()
    assert manifest.statuses == {"bad_input": 40, "unchecked": 60}


@pytest.mark.parametrize("target", [7, -1, None])
def test_a_bad_target_takes_its_row_out_of_the_mean(job: JobFolder, target: int | None):
    baselines = []
    for far in (1.0, 1e6):
        job.write_rows(
            a=[float(k) for k in range(19)] + [far],
            t=pa.array([0, 1] * 9 + [0, target], pa.int64()),
        )
        manifest = job.run(baseline={"kind": "mean"}, target={"kind": "column", "column": "t"})
        assert manifest.statuses == {"bad_input": 1, "unchecked": 19}
        baselines.append(job.rows(manifest)["f_baseline"][:19].tolist())
    assert baselines[0] == baselines[1]


def test_values_too_large_for_their_mean(job: JobFolder):
    job.write_rows(b=[1.0] * 18 + [1.7e308] * 2)
    with pytest.raises(DataError, match=r"column `b`(.|\n)*a mean of inf"):
        job.run(baseline={"kind": "mean"}, compute={"precision": "float64"})


def check(job: JobFolder, bad: list[int], reason: str, **changes: Any) -> None:
    """The rows `bad` have their reason and no attributions; every other row has both."""
    manifest = job.run(**changes)
    rows = job.rows(manifest)
    assert (manifest.complete, manifest.rows_in, manifest.rows_out) == (True, 20, 20)
    assert rows["row_id"].tolist() == list(range(20))
    assert rows.index[rows["status"] == "bad_input"].tolist() == bad
    assert manifest.statuses == {"bad_input": len(bad), "unchecked": 20 - len(bad)}
    assert all(reason in seen for seen in rows.loc[bad, "reason"])
    attributions = rows.filter(like="attr.")
    assert attributions.loc[bad].isna().all(axis=None) or attributions.loc[bad].map(
        lambda v: v is None
    ).all(axis=None)
    assert attributions.drop(index=bad).notna().all(axis=None)


def test_a_list_of_the_wrong_length_costs_its_row(job: JobFolder):
    values = [[0.1, 0.2, 0.3]] * 20
    values[16], values[17] = [0.1], None  # type: ignore[call-overload]
    job.write_rows(a=pa.array(values, pa.list_(pa.float32())))
    check(job, [16, 17], "a ", inputs=[TENSOR])


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "label is null"), (2, "target 2 is outside 0..1"), (-1, "label is -1")],
)
def test_a_bad_target_costs_its_row(job: JobFolder, value: int | None, reason: str):
    job.write_rows(label=pa.array([1] * 18 + [value, 0], pa.int64()))
    check(job, [18], reason, target={"kind": "column", "column": "label"})


def test_a_bad_baseline_costs_its_row(job: JobFolder):
    job.write_rows(a0=np.array([0.0] * 19 + [math.nan]))
    check(job, [19], "a0 is NaN", baseline={"kind": "column", "columns": ["a0", "b", "c"]})


def test_a_bad_argument_costs_its_row(job: JobFolder):
    job.write_model("return self.logits(x * more[0][:, None])")
    job.write_rows(mask=pa.array([1] * 19 + [None], pa.int8()))
    check(job, [19], "mask is null", forward_args=[{"name": "mask", "column": "mask"}])


def test_a_broken_line_costs_its_row(job: JobFolder):
    lines = ["id,a,b,c", *(f"{i},0.5,0.25,{i}" for i in range(20))]
    lines[11], lines[12] = "10,0.5,oops,1", "11,0.5"
    (job.path / "csv").mkdir()
    (job.path / "csv" / "rows.csv").write_text("\n".join(lines))
    manifest = job.run(source={"uri": "csv"})
    rows = job.rows(manifest)
    assert (manifest.rows_out, manifest.statuses) == (20, {"bad_input": 2, "unchecked": 18})
    assert "line 12: column b: 'oops' is not a number" in rows.loc[10, "reason"]
    assert "line 13: 2 fields, expected 4" in rows.loc[11, "reason"]


def test_a_row_on_which_the_model_raises_is_failed(job: JobFolder):
    job.write_model(
        "if (x[:, 0] > 500).any():\n    raise ValueError('cannot take that much')\nreturn"
        " self.logits(x)"
    )
    job.write_rows(marks=(17,))
    rows = job.rows(job.run())
    assert rows.index[rows["status"] == "failed"].tolist() == [17]
    assert "ValueError: cannot take that much" in rows.loc[17, "reason"]
    assert (rows.drop(index=17)["status"] == "unchecked").all()


@pytest.mark.parametrize(
    ("raised", "told"), [("SystemExit(0)", "SystemExit: 0"), (r"ValueError('\ud800')", r"\ud800")]
)
def test_a_row_on_which_the_model_leaves_or_says_no_text_is_failed(
    job: JobFolder, raised: str, told: str
):
    """The driver does not end with it, and what cannot be written is spelt out."""
    job.write_rows(marks=(18,))
    job.write_model(f"if (x[:, 0] == 1000).any(): raise {raised}\nreturn self.logits(x)")
    manifest = job.run()
    assert (manifest.complete, manifest.statuses) == (True, {"failed": 1, "unchecked": 19})
    assert told in job.rows(manifest)["reason"][18]


def test_a_row_whose_output_is_not_finite_says_so(job: JobFolder):
    job.write_model("return self.logits(x) / (x[:, :1] != 1000)")
    job.write_rows(marks=(17,))
    rows = job.rows(job.run())
    assert rows.index[rows["status"] == "nonfinite"].tolist() == [17]


def test_a_page_that_cannot_be_read_costs_its_shard_and_is_told(job: JobFolder):
    place = job.write_rows(count=60)
    pq.write_table(
        pq.read_table(place),
        place,
        row_group_size=20,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    column = pq.read_metadata(place).row_group(2).column(1)
    data = bytearray(place.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    place.write_bytes(data)
    manifest = job.run(source={"uri": "data"}, compute={"shard_rows": 20})
    assert (manifest.complete, manifest.rows_out, manifest.missing) == (False, 40, ("00002",))
    assert "readable Parquet" in manifest.quarantined[0].reason
    assert "CRC" in manifest.quarantined[0].reason


# --- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "changes", "code", "message"),
    [
        ("", {}, 0, "state"),
        ("", {"targets": {}}, 2, "did you mean `target`?"),
        ("", {"inputs": [{"name": "x", "columns": ["aa", "b", "c"]}]}, 2, "did you mean `a`?"),
        ("", {"source": {"uri": "none"}}, 2, "DataError"),
        (
            "",
            {
                "limits": {"max_uncertified_share": 0.0},
                "accuracy": {"kind": "adaptive", "tolerance": 1e-12, "max_evaluations": 7},
            },
            3,
            "max_uncertified_share",
        ),
        ("raise", {}, 0, "failed"),
        ("raise", {"limits": {"max_bad_share": 0.01}}, 3, "max_bad_share"),
        ("unreadable", {}, 3, "quarantined shard 00003"),
        ("transient", {}, 4, "run the same command again"),
        ("integrity", {}, 6, "IntegrityError"),
    ],
)
def test_exit_codes(
    job: JobFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: str,
    changes: dict[str, Any],
    code: int,
    message: str,
):
    job.write_rows(count=40, marks=(18,), row_group_size=10, write_page_checksum=True)
    if faults == "unreadable":
        job.flip_bit("rows.parquet", row_group=3)
        faults = ""
    place = job.write_spec(**{"model": job.model(faults=faults, folder=str(job.path))} | changes)
    seen = run_cli(
        monkeypatch, "run", str(place), "--pool", "local", "--trust-model-code", job.module
    )
    printed = capsys.readouterr()
    assert seen == code
    assert message in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_untrusted_code_is_refused_by_the_command_line(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_cli(monkeypatch, "run", str(job.write_spec()), "--pool", "local") == 2
    assert f"--trust-model-code {job.module}" in capsys.readouterr().err


def test_feature_names_reach_the_output(job: JobFolder):
    assert [c for c in job.rows(job.run()) if c.startswith("attr.")] == [
        f"attr.{c}" for c in COLUMNS
    ]
