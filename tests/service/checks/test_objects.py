"""Objects and their footers: what is spoilt of one is found, whatever else still fits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.uris import Uri
from integrand.service.checks.findings import Finding
from integrand.service.checks.recount import recount
from integrand.service.checks.verify import verify_run
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import load_plan
from integrand.workers.storage.store import Store
from tests.plugins.tampering import (
    Finished,
    Tampered,
    findings_text,
    parquet_bytes,
    replaced,
    verify_alone,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_in_an_object_is_found(finished: Finished, data: st.DataObject):
    """In a page, in a page's header, in Parquet's metadata or in our footer."""
    job, store = finished.job, Store()
    uri = Uri("file", str(job.path / "out" / finished.run_id))
    plan, plan_sha256 = load_plan(store, uri)
    whole = (job.path / "out" / finished.run_id / "data" / "part-00000.parquet").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = RunFolder(store, uri, plan, plan_sha256)
    assert recount(folder, plan.shards[0], "object", whole).remarks == ()
    found = recount(folder, plan.shards[0], "object", bytes(broken)).remarks
    assert any(isinstance(remark, Finding) for remark in found)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_truncated_object_is_found(finished: Finished, data: st.DataObject):
    uri = Uri("file", str(finished.job.path / "out" / finished.run_id))
    plan, plan_sha256 = load_plan(Store(), uri)
    whole = (Path(uri.path) / "data" / "part-00001.parquet").read_bytes()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    folder = RunFolder(Store(), uri, plan, plan_sha256)
    found = recount(folder, plan.shards[1], "object", part)
    assert found.footer is None
    assert [r for r in found.remarks if isinstance(r, Finding)]


def swap(run: Tampered) -> None:
    first, second = run.object(0).read_bytes(), run.object(1).read_bytes()
    run.object(0).write_bytes(second)
    run.object(1).write_bytes(first)


def without_bad_row(run: Tampered) -> None:
    run.recount(0, run.table(0).slice(2))


def rename(run: Tampered) -> None:
    table = run.table(0)
    run.write(
        0,
        table.rename_columns([n.replace("attr.a", "attr.z") for n in table.column_names]),
        run.footer(0),
    )


OBJECTS: dict[str, tuple[Callable[[Tampered], object], str]] = {
    "dropped": (
        lambda run: run.object(1).unlink(),
        (
            "expected: an object for each planned shard, as _manifest.json tells\n  seen: none for"
            " 1, the first of them 00001"
        ),
    ),
    "duplicated": (
        lambda run: shutil.copy(run.object(1), run.object(7)),
        "only the planned shards below data/",
    ),
    "in a folder": (
        lambda run: shutil.copytree(run.path / "data", run.path / "data" / "more"),
        "below data/",
    ),
    "stray": (lambda run: (run.path / "data" / "notes.txt").write_text("hello"), "notes.txt"),
    "foreign": (
        lambda run: run.object(0).write_bytes(parquet_bytes(pa.table({"x": [1]}))),
        "as it was committed",
    ),
    "swapped": (swap, "run, shard, plan, rows in, rows out"),
    "a row less": (without_bad_row, "rows in, rows out"),
    "renamed column": (rename, "columns as planned: attr.a float"),
    "other type of a column": (
        lambda run: run.write(
            0,
            run.table(0).set_column(9, "evaluations", run.table(0)["evaluations"].cast("int64")),
            run.footer(0),
        ),
        "evaluations int32",
    ),
    "unknown status": (lambda run: run.set(0, "status", 7, "fine"), "statuses ok"),
    "attribution": (lambda run: run.set(0, "attr.a", 7, 0.25), "footer, digest"),
    "f": (lambda run: run.set(0, "f_input", 7, 0.25), "footer, digest"),
    "evaluations": (lambda run: run.set(0, "evaluations", 7, 1), "footer, evaluations"),
    "gap": (lambda run: run.set(0, "gap", 7, 3.0), "footer, gap_histogram"),
    "error": (lambda run: run.set(0, "error_estimate", 7, 3.0), "footer, error_histogram"),
    "row_id": (lambda run: run.set(0, "row_id", 7, 77), "row_id 3 in row 7"),
    "target": (lambda run: run.set(0, "target", 7, 0), "column target"),
    "status": (lambda run: run.set(0, "status", 7, "not_converged"), "footer, statuses"),
    "reason of a good row": (lambda run: run.set(0, "reason", 7, "why not"), "column reason"),
    "no reason of a bad row": (lambda run: run.set(0, "reason", 1, None), "column reason"),
    "null attribution": (
        lambda run: run.set(0, "attr.b", 7, None),
        "column attr.b\n  expected: null where",
    ),
    "attribution of a bad row": (
        lambda run: run.set(0, "attr.b", 1, 1.0),
        "column attr.b\n  expected: null where",
    ),
    "null sum": (
        lambda run: run.set(0, "attribution_sum", 7, None),
        "column attribution_sum\n  expected: null where",
    ),
    "null f": (lambda run: run.set(0, "f_baseline", 7, None), "column f_baseline"),
    "sum": (
        lambda run: run.set(0, "attribution_sum", 7, 0.5),
        "attribution_sum\n  expected: what the row's other",
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_spoilt_object_is_found(run: Tampered, finished: Finished, name: str):
    """Rows to attribute again are drawn from the other object."""
    spoil, expected = OBJECTS[name]
    spoil(run)
    found = verify_run(run.uri, sample=2, trusted=(finished.job.module,))
    assert expected in findings_text(found)
    assert "attributed again" not in str(found.unchecked)


def test_a_gap_that_is_not_what_the_other_columns_leave_is_found_although_all_counts_fit(
    run: Tampered,
):
    run.recount(0, replaced(run.table(0), "gap", 7, run.table(0)["gap"][7].as_py() + 1e-3))
    run.refold()
    assert [f.where.split("/")[-1] for f in verify_alone(run).findings] == [
        "part-00000.parquet column gap"
    ]


def test_ids_are_held_against_the_source_although_all_counts_fit(run: Tampered):
    """Two rows change places: no count and no sum tells."""
    order = [*range(4), 6, 7, 4, 5, *range(8, 20)]
    run.recount(0, run.table(0).take(pa.array(order)))
    run.refold()
    (found,) = verify_alone(run).findings
    assert (found.expected, found.seen) == (
        "row_id 2 in row 4, as in the source",
        "3; 4 rows differ",
    )


FOOTERS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "run_id": ("run, shard, plan", lambda v: "other"),
    "shard": ("run, shard, plan", lambda v: "00001"),
    "plan_sha256": ("run, shard, plan", lambda v: v[:-1] + "x"),
    "rows_in": ("run, shard, plan", lambda v: v + 1),
    "rows_out": ("run, shard, plan", lambda v: v - 1),
    "statuses": ("footer, statuses", lambda v: v | {"ok": 1}),
    "evaluations": ("footer, evaluations", lambda v: v + 1),
    "digest": ("footer, digest", lambda v: "0" * 64),
    "gap_histogram": ("footer, gap_histogram", lambda v: v | {"3": 1}),
    "error_histogram": ("footer, error_histogram", lambda v: {}),
    "gap": ("footer, gap", lambda v: v.model_copy(update={"max": 1e-9})),
    "error": ("footer, error", lambda v: v.model_copy(update={"p50": None})),
    "seconds": ("manifest, seconds", lambda v: v | {"compute": 1e6}),
    "versions": ("manifest, environments", lambda v: v | {"processor": "abacus"}),
    "determinism": ("manifest, determinism", lambda v: "tolerance"),
}


@pytest.mark.parametrize("name", FOOTERS)
def test_an_edited_footer_is_found_although_its_checksum_fits(run: Tampered, name: str):
    expected, change = FOOTERS[name]
    footer = run.footer(0)
    run.write(0, run.table(0), footer.model_copy(update={name: change(getattr(footer, name))}))
    assert expected in findings_text(verify_alone(run))


@pytest.mark.parametrize(
    "change", [{"node": "elsewhere"}, {"padded_evaluations": 7}, {"duplicates": 3}], ids=str
)
def test_what_no_count_covers_is_under_a_checksum(run: Tampered, change: dict[str, Any]):
    footer = run.footer(0)
    stored = pq.read_metadata(run.object(0)).metadata[b"integrand.shard.sha256"].decode()
    run.write(0, run.table(0), footer.model_copy(update=change), checked=stored)
    assert "which stands beside it" in findings_text(verify_alone(run))
