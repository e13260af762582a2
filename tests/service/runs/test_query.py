"""Results read the same through Integrand, pandas, DuckDB and Polars, and never from a broken
object.
"""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.sidecars import (
    Pointer,
)
from integrand.schemas.uris import Uri
from integrand.service.checks.verify import verify_run
from integrand.service.reports.page import html_page
from integrand.service.reports.rows import show_row, show_rows
from integrand.service.reports.spreadsheet import write_csv
from integrand.service.runs.finding import resolve_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import fold, point_latest, write_manifest
from integrand.service.runs.query import Run, open_run
from integrand.service.runs.totals import add_footers
from integrand.workers.data.values import plain_value
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder

NOW = "2026-01-02T00:00:00+00:00"


@pytest.fixture
def finish(tmp_path: Path, write_run: Callable) -> Callable[..., Run]:
    """A function that writes a run under tmp_path, completes it and opens it."""

    def write(**options: object) -> Run:
        run = complete(Store(), write_run(Store(), Uri("file", str(tmp_path)), **options))
        return open_run(run.uri)

    return write


@pytest.fixture
def unfinished(tmp_path: Path, write_run: Callable) -> Run:
    run = write_run(Store(), Uri("file", str(tmp_path)), commit=("00000", "00002"))
    with pytest.warns(UserWarning, match="20 of 30 rows"):
        return open_run(run.uri)


def complete(store: Store, run):
    committed = add_footers(
        RunFolder(store, run.uri, run.plan, run.plan_sha256), run.footers.values()
    )
    write_manifest(store, run.uri, fold(run.plan, run.plan_sha256, committed, created=NOW))
    pointer = Pointer(run_id=run.plan.run_id, logical_date="2026-01-01", written=NOW)
    point_latest(store, run.root, run.plan.spec.name, pointer)
    return run


def assert_same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    assert list(left.columns) == list(right.columns)
    pd.testing.assert_frame_equal(
        left.reset_index(drop=True), right.reset_index(drop=True), check_dtype=False
    )


def plain(table: pa.Table) -> list[dict[str, object]]:
    return sorted(table.to_pylist(), key=lambda row: (row["row_id"], row["target"]))


# --- finding a run -----------------------------------------------------------------------------


def test_a_run_folder_or_its_root_finds_the_run(
    place: tuple[Store, Uri], write_run: Callable
) -> None:
    store, root = place
    run = complete(store, write_run(store, root))
    for text in (str(run.uri), str(run.uri) + "/", str(root)):
        assert resolve_run(text, store=store) == run.uri
    opened = open_run(str(root), access=store.access)
    assert opened.complete
    assert opened.to_pandas(["row_id"])["row_id"].tolist() == list(range(1000, 1030))


def test_a_relative_path_is_taken_from_the_working_folder(
    finish: Callable, tmp_path: Path, monkeypatch
) -> None:
    run = finish()
    monkeypatch.chdir(tmp_path.parent)
    assert resolve_run(tmp_path.name) == run.uri


def test_several_jobs_under_one_root_need_a_name(tmp_path: Path, write_run: Callable) -> None:
    store, root = Store(), Uri("file", str(tmp_path))
    one, other = (
        complete(store, write_run(store, root, name=n, run_id=n)) for n in ("one", "other")
    )
    with pytest.raises(SpecError, match="one, other"):
        resolve_run(tmp_path)
    assert resolve_run(tmp_path, name="other") == other.uri
    assert resolve_run(tmp_path, name="one") == one.uri
    with pytest.raises(SpecError, match="one, other"):
        resolve_run(tmp_path, name="third")


def test_without_a_pointer_the_only_run_is_meant(tmp_path: Path, write_run: Callable) -> None:
    store, root = Store(), Uri("file", str(tmp_path))
    with pytest.raises(SpecError, match="no run here"):
        resolve_run(tmp_path)
    first = write_run(store, root, name="one", run_id="first", commit=())
    assert resolve_run(tmp_path) == first.uri
    second = write_run(store, root, name="two", run_id="second", commit=())
    with pytest.raises(SpecError, match=r"first, .*second"):
        resolve_run(tmp_path)
    assert resolve_run(tmp_path, name="two") == second.uri


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"outputs": 3}, {"tensor": True}], ids=["features", "all targets", "tensor"]
)
def test_every_reader_sees_the_same_rows(finish: Callable, options: dict) -> None:
    run = finish(**options)
    frame = run.to_pandas()
    assert len(frame) == 30 * options.get("outputs", 1)
    assert frame.attrs == {"complete": True}
    assert_same(frame, pd.read_parquet(run.uri.child("data").path))
    glob = run.uri.child("**", "*.parquet").path
    ours = plain(pa.Table.from_pandas(frame))
    assert plain(duckdb.sql(f"from read_parquet('{glob}')").to_arrow_table()) == ours
    assert plain(pl.read_parquet(glob).to_arrow()) == ours


def test_columns_and_filters_are_pushed_down(finish: Callable) -> None:
    run = finish()
    frame = run.to_pandas(["row_id", "attr.age"], [("status", "==", "ok"), ("row_id", ">", 1020)])
    everything = run.to_pandas()
    expected = everything[(everything["status"] == "ok") & (everything["row_id"] > 1020)][
        ["row_id", "attr.age"]
    ]
    assert_same(frame, expected)
    assert_same(
        run.to_pandas(
            ["row_id", "attr.age"], (pc.field("status") == "ok") & (pc.field("row_id") > 1020)
        ),
        expected,
    )
    either = run.to_pandas(["row_id"], [[("row_id", "<", 1002)], [("row_id", "in", [1029])]])
    assert either["row_id"].tolist() == [1000, 1001, 1029]


def test_an_unknown_column_names_the_nearest(finish: Callable) -> None:
    run = finish()
    with pytest.raises(SpecError, match=r"did you mean `attr\.income`"):
        run.to_pandas(["row_id", "incom"])
    with pytest.raises(SpecError, match="did you mean `error_estimate`"):
        run.to_pandas(["eror_estimate"])


@pytest.mark.parametrize(
    "filters",
    [
        [("nope", "==", 1)],
        [("status", ">", 1)],
        [("status", "~", 1)],
        ["status"],
        pc.field("nope") > 1,
    ],
    ids=str,
)
def test_bad_filters_are_refused(finish: Callable, filters: object) -> None:
    run = finish()
    for inputs in (False, True):
        with pytest.raises(SpecError, match="filters"):
            run.to_pandas(filters=filters, inputs=inputs)


def test_an_unfinished_run_gives_what_is_committed(unfinished: Run) -> None:
    assert not unfinished.complete
    assert unfinished.manifest.missing == ("00001",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = unfinished.to_pandas()
    assert frame["row_id"].tolist() == [*range(1000, 1010), *range(1020, 1030)]
    for part in (
        frame,
        unfinished.worst(),
        unfinished.top_features(),
        unfinished.where("true"),
        unfinished.rows(1001),
    ):
        assert part.attrs == {"complete": False}


def test_a_run_without_objects_says_so(tmp_path: Path, write_run: Callable) -> None:
    run = write_run(Store(), Uri("file", str(tmp_path)), commit=())
    with pytest.warns(UserWarning, match="0 of 30 rows"):
        opened = open_run(run.uri)
    with pytest.raises(DataError, match="committed shard"):
        opened.to_pandas()


def test_the_manifest_must_be_of_this_plan(finish: Callable) -> None:
    run = finish()
    stored = run.manifest.model_copy(update={"plan_sha256": "0" * 64})
    Store().replace(run.uri.child("_manifest.json"), stored.model_dump_json().encode())
    with pytest.raises(IntegrityError, match="as planned"):
        open_run(run.uri)


def test_a_flipped_bit_or_a_lost_object_is_never_read_as_data(finish: Callable) -> None:
    run = finish()
    part = Path(run.uri.child("data", "part-00001.parquet").path)
    whole = bytearray(part.read_bytes())
    whole[200] ^= 1
    part.write_bytes(whole)
    with pytest.raises(IntegrityError, match=r"part-00001"):
        run.to_pandas()
    with pytest.raises(IntegrityError, match=r"part-00001"):
        run.where("row_id > 0")
    part.unlink()
    with pytest.raises(IntegrityError, match=r"part-00001"):
        run.top_features()


# --- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
def test_inputs_stand_beside_their_rows(finish: Callable, outputs: int) -> None:
    frame = finish(outputs=outputs).to_pandas(inputs=True)
    assert len(frame) == 30 * outputs
    assert {"id", "age", "income", "image", "input.status", "status"} <= set(frame.columns)
    assert (frame["id"] == frame["row_id"]).all()
    assert (frame["input.status"] == [f"customer {i - 1000}" for i in frame["row_id"]]).all()
    there = frame[frame["attr.age"].notna()]
    expected = there["age"] * (there["target"].fillna(0) + 1) * (-1.0) ** there["row_id"]
    np.testing.assert_allclose(there["attr.age"].astype(float), expected.astype(float))


def test_inputs_can_be_filtered_and_columns_picked(finish: Callable) -> None:
    frame = finish().to_pandas(
        ["row_id"], [("age", ">", 40.0), ("status", "!=", "bad_input")], inputs=True
    )
    assert list(frame.columns) == ["row_id", "id", "age", "income", "input.status", "image"]
    assert frame["age"].tolist() == [40.5, 42.0]


def test_a_changed_source_is_not_joined(finish: Callable) -> None:
    run = finish()
    source = Path(run.plan.files[1].uri)
    frame = pd.read_parquet(source)
    frame["age"] += 1
    frame.to_parquet(source)
    with pytest.raises(IntegrityError, match=r"b\.parquet"):
        run.to_pandas(inputs=True)
    assert len(run.to_pandas()) == 30


# --- questions ---------------------------------------------------------------------------------


def test_top_features_rank_by_mean_absolute_attribution(finish: Callable) -> None:
    run = finish()
    frame = run.to_pandas()
    top = run.top_features()
    assert top["feature"].tolist() == ["income", "age"]
    absolute = frame[["attr.income", "attr.age"]].abs().mean()
    np.testing.assert_allclose(top["mean_abs"], absolute)
    np.testing.assert_allclose(top["mean"], frame[["attr.income", "attr.age"]].mean(), rtol=1e-6)
    np.testing.assert_allclose(top["share"], absolute / absolute.sum())
    assert run.top_features(1)["feature"].tolist() == ["income"]


def test_top_features_of_a_tensor_name_its_places(finish: Callable) -> None:
    run = finish(tensor=True)
    values = np.stack(run.to_pandas()["attr.image"].dropna())
    top = run.top_features(6)
    assert top["feature"].tolist() == [
        "image[0,1,2]",
        "image[0,1,1]",
        "image[0,1,0]",
        "image[0,0,2]",
        "image[0,0,1]",
        "image[0,0,0]",
    ]
    np.testing.assert_allclose(top["mean_abs"], np.abs(values).mean(0)[::-1], rtol=1e-6)


def test_worst_gives_both_rankings_without_attributions(finish: Callable) -> None:
    worst = finish().worst(2)
    assert worst["worst_by"].tolist() == ["error_estimate"] * 2 + ["gap"] * 2
    assert worst["row_id"].tolist() == [1028, 1027, 1000, 1002]
    assert not [c for c in worst.columns if c.startswith("attr.")]


def test_rows_by_id(finish: Callable) -> None:
    run = finish(outputs=2)
    assert run.rows(1004)["target"].tolist() == [0, 1]
    assert run.rows("1004")["row_id"].tolist() == [1004, 1004]
    assert len(run.rows(5)) == 0
    with pytest.raises(SpecError, match="int64"):
        run.rows("no number")


@pytest.mark.parametrize(
    ("kind", "far"),
    [
        (pa.date32(), 4_000_000),
        (pa.timestamp("ms", "Europe/Berlin"), 2**62),
        (pa.timestamp("us"), 2**62),
        (pa.duration("s"), 2**62),
        (pa.time64("us"), 2**62),
    ],
)
def test_ids_beyond_pythons_dates_are_stored_and_told(
    tmp_path: Path, kind: pa.DataType, far: int
) -> None:
    job, width = JobFolder(tmp_path), pa.int32() if kind.bit_width == 32 else pa.int64()
    job.write_rows(id=pa.array([*range(19), far], width).cast(kind))
    job.write_model()
    run = open_run(job.run_uri(job.run()))
    assert run.manifest.statuses == {"unchecked": 20}
    found = verify_run(run.uri, sample=20, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.sampled) == ((), (), 20)
    assert (
        len(run.rows(far))
        == len(run.rows(str(far)))
        == len(run.where("f_input = f_input")) - 19
        == 1
    )
    assert str(run.worst(3)["row_id"].iloc[0]) in html_page(run, 3)
    page = io.StringIO()
    show_rows(Console(file=page), run.to_pandas(inputs=True), "rows", 20)
    show_row(Console(file=page), run, str(far), 3)
    write_csv(page, run.tables())
    names = [plain_value(pa.scalar(far, width).cast(kind)), run.to_pandas()["row_id"].iloc[-1]]
    assert all(str(name) in page.getvalue() for name in names)


def test_where_takes_a_duckdb_expression(finish: Callable) -> None:
    run = finish()
    frame = run.to_pandas()
    condition = "status = 'ok' and \"ATTR.age\" < 0 and error_estimate > 0.01"
    mask = (frame["status"] == "ok") & (frame["attr.age"] < 0) & (frame["error_estimate"] > 0.01)
    assert_same(run.where(condition), frame[mask])
    assert mask.sum() > 2
    none = run.where("row_id < 0")
    assert len(none) == 0
    assert list(none.columns) == list(frame.columns)


@pytest.mark.parametrize(
    "sql",
    [
        "nope > 1",
        "row_id >",
        "status::int > 1",
        "attr.age > 1",
        "true); create table x (i int); select (1",
        "row_id > (select count(*) from read_csv('/etc/passwd'))",
        "row_id in (select row_id from frame)",
    ],
)
def test_where_refuses_what_is_no_expression_over_the_rows(finish: Callable, sql: str) -> None:
    run = finish()
    frame = run.to_pandas()  # DuckDB would find this variable by its name
    with pytest.raises(SpecError, match="DuckDB"):
        run.where(sql)
    assert len(frame) == 30


def test_reading_loads_neither_torch_nor_ray(finish: Callable) -> None:
    run = finish()
    code = (
        "import sys; from integrand.service import open_run; run = open_run(sys.argv[1]); n ="
        " len(run.to_pandas(inputs=True)) + len(run.top_features()) + len(run.where('row_id <"
        " 1002')); print(n, sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.uri)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert (done.stdout, done.returncode) == ("34 []\n", 0), done.stderr
