"""`verify` of a run folder: an untouched one has no findings, and whatever one thing is spoilt is
told.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.records import Pointer, dump
from integrand.schemas.uris import Uri
from integrand.service.checks.findings import Finding
from integrand.service.checks.recount import Recounter
from integrand.service.checks.verify import Verification, verify_run
from integrand.service.running.jobs import run_job
from integrand.service.running.runner import read_ledger
from integrand.service.runs.footers import RunFolder
from integrand.service.runs.manifest import load_plan
from integrand.service.runs.totals import write_block
from integrand.workers.storage.store import Entries, Store
from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import Tampered, parquet_bytes, replaced

ROWS = 20


@dataclass(frozen=True)
class Finished:
    """A complete run of 20 rows in two shards, two targets each: row 0 is bad, row 17 failed."""

    job: JobFolder
    run_id: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    job = JobFolder(tmp_path_factory.mktemp("verify"))
    job.write_rows(count=ROWS, marks=(17,), b=[float("nan"), *np.linspace(-1, 1, ROWS - 1)])
    job.write_model(
        "if (x[:, 0] == 1000).any():\n    raise ValueError('not this row')\nreturn self.logits(x)"
    )
    manifest = job.run(target={"kind": "all"}, accuracy={"kind": "adaptive"})
    assert manifest.statuses["bad_input"] == manifest.statuses["failed"] == 2
    return Finished(job, manifest.run_id)


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Tampered:
    """A copy of the run with its pointer; the source and the model stay where they are."""
    shutil.copytree(finished.job.path / "out", tmp_path / "out")
    return Tampered(tmp_path / "out" / finished.run_id)


def verify(run: Tampered) -> Verification:
    return verify_run(run.uri, sample=0)


def told(found: Verification) -> str:
    return "\n".join(map(str, found.findings))


# --- what holds --------------------------------------------------------------------------------


def test_an_untouched_run_has_no_findings_and_nothing_is_left_unchecked(finished: Finished):
    job = finished.job
    found = verify_run(job.path / "out", sample=ROWS, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.state) == ((), (), "complete")
    assert (found.shards, found.rows, found.sampled, found.bitwise) == (
        2,
        2 * ROWS,
        ROWS - 1,
        ROWS - 1,
    )


KINDS: dict[str, dict[str, Any]] = {
    "index": {},
    "argmax in float64": {
        "target": {"kind": "argmax"},
        "compute": {"shard_rows": 6, "precision": "float64"},
    },
    "top_k": {
        "target": {"kind": "top_k", "k": 2},
        "accuracy": {"kind": "adaptive", "max_evaluations": 7},
    },
    "column": {"target": {"kind": "column", "column": "y"}},
    "rows by place": {"source": {"uri": "data"}},
    "tensor": {"inputs": [{"name": "x", "column": "p", "shape": [3]}]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_run_holds(job: JobFolder, kind: str):
    points = np.random.default_rng(0).normal(size=(ROWS, 3)).tolist()
    job.write_rows(
        count=ROWS,
        y=[9, *[i % 2 for i in range(ROWS - 1)]],
        p=pa.array([None, *points[1:]]),
        c=[float("inf"), *np.linspace(-2, 2, ROWS - 1)],
    )
    job.run(**KINDS[kind])
    found = verify_run(job.path / "out", sample=ROWS, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.bitwise) == ((), (), ROWS)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(range(ROWS), pa.timestamp("s", tz="UTC")),
        pa.array([i * 86_400_000 for i in range(ROWS)], pa.date64()),
        pa.array([f"{i}\0\n€" for i in range(ROWS)]).dictionary_encode(),
        pa.array([i / 7 for i in range(ROWS)]),
        pa.array([bytes([i]) for i in range(ROWS)], pa.binary(1)),
        pa.array(range(ROWS), pa.decimal128(5, 1)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_any_type_hold(job: JobFolder, ids: pa.Array):
    job.write_rows(id=ids)
    job.run()
    found = verify_run(job.path / "out", sample=0)
    assert (found.findings, found.unchecked) == ((), ())


def test_lists_of_any_length_and_lines_that_are_none_hold(job: JobFolder):
    job.write_model("import torch\nreturn torch.tanh(self.table(x)).sum((1, 2))")
    model = job.path / f"{job.module}.py"
    model.write_text(
        model.read_text().replace(
            "self.faults,", "self.table = nn.Embedding(9, 4); self.faults,", 1
        )
    )
    lines = [
        json.dumps({"t": [i % 9 for i in range(1 + n % 5)], "id": str(n)}) for n in range(ROWS)
    ]
    shutil.rmtree(job.path / "data")
    (job.path / "data").mkdir()
    (job.path / "data" / "rows.jsonl").write_text(
        "\n".join([*lines, "{broken", json.dumps({"t": [], "id": "last"})])
    )
    job.run(
        inputs=[{"name": "t", "ids": "t", "embedding": "table", "pad": 0}],
        target={"kind": "scalar"},
    )
    found = verify_run(job.path / "out", sample=ROWS, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.rows) == ((), (), ROWS + 2)


@pytest.mark.s3
def test_a_run_in_an_object_store_holds_until_an_object_is_replaced(
    job: JobFolder, s3_server: Any, s3_root: Uri
):
    spec = job.spec(output={"uri": str(s3_root)})
    manifest = run_job(
        spec, base=str(job.path), trusted=(job.module,), pool="local", access=s3_server.access
    )
    found = verify_run(s3_root, access=s3_server.access, sample=3, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.bitwise) == ((), (), 3)
    store, data = Store(s3_server.access), s3_root.child(manifest.run_id, "data")
    store.replace(data.child("part-00001.parquet"), store.read(data.child("part-00000.parquet")))
    assert "part-00001.parquet" in told(verify_run(s3_root, access=s3_server.access, sample=0))


# --- objects -----------------------------------------------------------------------------------


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
    recounter = Recounter(RunFolder(store, uri, plan, plan_sha256))
    assert recounter.recount(plan.shards[0], "object", whole).remarks == ()
    found = recounter.recount(plan.shards[0], "object", bytes(broken)).remarks
    assert any(isinstance(remark, Finding) for remark in found)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_truncated_object_is_found(finished: Finished, data: st.DataObject):
    uri = Uri("file", str(finished.job.path / "out" / finished.run_id))
    plan, plan_sha256 = load_plan(Store(), uri)
    whole = (Path(uri.path) / "data" / "part-00001.parquet").read_bytes()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    found = Recounter(RunFolder(Store(), uri, plan, plan_sha256)).recount(
        plan.shards[1], "object", part
    )
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
    assert expected in told(found)
    assert "attributed again" not in str(found.unchecked)


def test_a_gap_that_is_not_what_the_other_columns_leave_is_found_although_all_counts_fit(
    run: Tampered,
):
    run.recount(0, replaced(run.table(0), "gap", 7, run.table(0)["gap"][7].as_py() + 1e-3))
    run.refold()
    assert [f.where.split("/")[-1] for f in verify(run).findings] == [
        "part-00000.parquet column gap"
    ]


def test_ids_are_held_against_the_source_although_all_counts_fit(run: Tampered):
    """Two rows change places: no count and no sum tells."""
    order = [*range(4), 6, 7, 4, 5, *range(8, 20)]
    run.recount(0, run.table(0).take(pa.array(order)))
    run.refold()
    (found,) = verify(run).findings
    assert (found.expected, found.seen) == (
        "row_id 2 in row 4, as in the source",
        "3; 4 rows differ",
    )


def test_a_row_in_two_objects_is_found_without_the_source(job: JobFolder, tmp_path: Path):
    manifest = job.run()
    run = Tampered(Path(job.run_uri(manifest).path))
    (job.path / "data" / "rows.parquet").unlink()
    assert verify(run).holds
    run.recount(1, run.table(1).set_column(0, "row_id", run.table(0)["row_id"]))
    run.refold()
    found = verify(run)
    assert [f.seen for f in found.findings] == ["10 ids more than once, for instance 0"]
    assert "rows.parquet, seen: no file" in str(found.unchecked)


# --- footers -----------------------------------------------------------------------------------

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
    assert expected in told(verify(run))


@pytest.mark.parametrize(
    "change", [{"node": "elsewhere"}, {"padded_evaluations": 7}, {"duplicates": 3}], ids=str
)
def test_what_no_count_covers_is_under_a_checksum(run: Tampered, change: dict[str, Any]):
    footer = run.footer(0)
    stored = pq.read_metadata(run.object(0)).metadata[b"integrand.shard.sha256"].decode()
    run.write(0, run.table(0), footer.model_copy(update=change), told=stored)
    assert "which stands beside it" in told(verify(run))


# --- plan and sidecars -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows_in", 19),
        ("rows_out", 0),
        ("rows_planned", 21),
        ("statuses", {"ok": 40}),
        ("evaluations", 1),
        ("digest", "f" * 64),
        ("gap", {"p50": 1.0}),
        ("error", {"max": 0.5}),
        ("determinism", "tolerance"),
        ("shards_done", 1),
        ("run_id", "other"),
        ("plan_sha256", "0" * 64),
        ("environments", ["abacus"]),
        ("seconds", {"compute": 1.0}),
        ("missing", ["00001"]),
        ("complete", False),
        ("determinism_reasons", ["rain"]),
        ("shards_planned", 3),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 20 else "",
)
def test_an_edited_manifest_is_found(run: Tampered, field: str, value: object):
    run.edit("_manifest.json", lambda fields: fields.update({field: value}))
    assert [f.where for f in verify(run).findings] == [f"{run.path} manifest, {field}"]


def test_a_broken_manifest_is_found(run: Tampered):
    (run.path / "_manifest.json").write_text("{}")
    assert "_manifest.json\n  expected: a RunManifest" in told(verify(run))


def test_a_broken_plan_is_told_and_nothing_else_is_called_fine(run: Tampered):
    (run.path / "_plan.json").write_text("{}")
    found = verify(run)
    assert "_plan.json" in told(found)
    assert [str(u) for u in found.unchecked] == ["everything else: the plan cannot be read"]


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="run folder"):
        verify_run(tmp_path)


def test_an_edited_plan_is_not_the_one_that_footers_name(run: Tampered):
    run.edit("_plan.json", lambda plan: plan.update(created="yesterday"))
    found = told(verify(run))
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
    assert "_plan.json run_id" in told(verify(run))


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
    assert "each once" in told(verify(run))


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
    assert expected in told(verify(run))


def test_a_pointer_of_another_job_is_not_this_runs_matter(run: Tampered):
    (run.path.parent / "_latest" / "other.json").write_bytes(dump(POINTERS["to nothing"][0]))
    assert verify(run).holds


def test_scratch_of_a_killed_writer_is_no_finding(run: Tampered):
    (run.path / "_stats").mkdir(exist_ok=True)
    (run.path / "_stats" / f"_{'0' * 32}.tmp").write_bytes(b"half a blo")
    assert verify(run).holds


def test_an_attempt_that_cannot_be_read_is_found(run: Tampered):
    """It would end the next driver."""
    place = run.path / "_attempts" / "00000" / "0001.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b'{"shard": "00')
    assert str(place) in told(verify(run))
    with pytest.raises(IntegrityError, match=r"0001\.json"):
        read_ledger(Store(), run.uri, load_plan(Store(), run.uri)[0])


def test_a_run_that_is_finished_while_it_is_verified_holds(
    run: Tampered, monkeypatch: pytest.MonkeyPatch
):
    """Its last object and its manifest come after the look at what is there."""
    kept = {
        p: p.read_bytes()
        for p in (run.path / "data" / "part-00001.parquet", run.path / "_manifest.json")
    }
    for path in kept:
        path.unlink()
    listed = Store.list

    def finishing(store: Store, folder: Uri, *, depth: int | None = None) -> Entries:
        found = listed(store, folder, depth=depth)
        if folder.name == "data":
            for path, data in kept.items():
                path.write_bytes(data)
        return found

    monkeypatch.setattr(Store, "list", finishing)
    found = verify(run)
    assert (found.findings, found.state) == ((), "unfinished")


def test_a_pointer_that_lags_behind_is_found(run: Tampered):
    shutil.copytree(run.path, run.path.parent / "older")
    pointer = Pointer(run_id="older", logical_date="2001-01-01", written="now")
    (run.path.parent / "_latest" / "test.json").write_bytes(dump(pointer))
    assert "or a later one" in told(verify(run))


def test_a_missing_pointer_is_not_called_fine(run: Tampered):
    shutil.rmtree(run.path.parent / "_latest")
    found = verify(run)
    assert (found.findings, "there is no _latest/test.json" in str(found.unchecked)) == ((), True)


def test_a_block_of_footers_that_tells_otherwise_is_found(run: Tampered):
    plan, plan_sha256 = load_plan(Store(), run.uri)
    write_block(RunFolder(Store(), run.uri, plan, plan_sha256), ["00000", "00001"])
    assert verify(run).holds
    (block,) = (run.path / "_stats").iterdir()
    text = block.read_text()
    block.write_text(text.replace('"rows_out": 40', '"rows_out": 41'))
    assert "a block of footers of this plan" in told(verify(run))
    forged = dump_block(text.replace('"rows_out": 40', '"rows_out": 41'), block.parent)
    block.unlink()
    assert [(f.where, f.expected) for f in verify(run).findings] == [
        (str(forged), "what its members' footers amount to")
    ]
    run.recount(0, replaced(run.table(0), "attr.a", 7, 0.5))
    assert str(forged) not in told(verify(run)), "a member changed: the block counts no more"


def dump_block(text: str, folder: Path) -> Path:
    place = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    place.write_text(text)
    return place


# --- partial and unfinished runs ---------------------------------------------------------------


@pytest.fixture
def partial(job: JobFolder) -> Tampered:
    """A run whose second shard was given up: a page of the source does not decode."""
    job.write_rows(count=40, row_group_size=20, write_page_checksum=True)
    job.flip_bit("rows.parquet", 1)
    manifest = job.run(compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1})
    assert [q.shard for q in manifest.quarantined] == ["00001"]
    return Tampered(Path(job.run_uri(manifest).path))


def test_a_partial_run_holds_and_says_what_is_missing(partial: Tampered):
    found = verify(partial)
    assert (found.findings, found.state, found.shards) == ((), "partial", 1)
    assert "1 of 2 shards: they are not committed" in map(str, found.unchecked)


def test_an_unfinished_run_holds_and_says_what_is_missing(run: Tampered):
    (run.path / "_manifest.json").unlink()
    shutil.rmtree(run.path.parent / "_latest")
    run.object(1).unlink()
    found = verify(run)
    assert (found.findings, found.state, found.shards) == ((), "unfinished", 1)
    assert "1 of 2 shards: they are not committed" in map(str, found.unchecked)


QUARANTINE: dict[str, tuple[Callable[[Tampered], object], str]] = {
    "record gone": (
        lambda run: (run.path / "_quarantine" / "00001.json").unlink(),
        "manifest, quarantined",
    ),
    "other rows": (
        lambda run: run.edit("_quarantine/00001.json", lambda q: q.update(rows=7)),
        "planned shards and their rows",
    ),
    "no shard": (
        lambda run: run.edit("_quarantine/00001.json", lambda q: q.update(shard="00009")),
        "shard 00009 of 20 rows",
    ),
    "broken": (
        lambda run: (run.path / "_quarantine" / "00001.json").write_text("{"),
        "_quarantine/00001.json",
    ),
    "manifest edited": (
        lambda run: run.edit("_partial.json", lambda m: m.update(missing=[])),
        "manifest, missing",
    ),
}


@pytest.mark.parametrize("name", QUARANTINE)
def test_quarantine_that_does_not_agree_is_found(partial: Tampered, name: str):
    spoil, expected = QUARANTINE[name]
    spoil(partial)
    assert expected in told(verify(partial))


# --- rows attributed again ---------------------------------------------------------------------


def forge(run: Tampered, factor: float) -> None:
    """Attributions and f of every row times a factor, so that counts, sums, footers and manifest
    agree.
    """
    for shard in (0, 1):
        table = run.table(shard)
        for name in [n for n in table.column_names if n.startswith(("attr.", "f_", "gap"))]:
            scaled = pc.multiply(table[name], pa.scalar(factor, table[name].type))
            table = table.set_column(table.column_names.index(name), name, scaled)
        run.recount(shard, table)
    run.refold()


def test_rows_that_the_model_did_not_make_are_found_by_a_sample_alone(
    run: Tampered, finished: Finished
):
    forge(run, 2.0)
    assert verify(run).holds
    found = verify_run(run.uri, sample=5, seed=1, trusted=(finished.job.module,))
    assert found.sampled == found.bitwise
    assert found.sampled <= len(found.findings) <= 2 * found.sampled
    assert "what the plan's model gives: ok" in told(found)


def test_another_seed_draws_other_rows_and_the_same_seed_the_same(
    run: Tampered, finished: Finished
):
    forge(run, 1.0 + 1e-6)
    trusted = (finished.job.module,)
    drawn = [
        {f.where for f in verify_run(run.uri, sample=4, seed=s, trusted=trusted).findings}
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(("factor", "holds"), [(1.0 + 1e-6, True), (1.1, False)])
def test_rows_of_another_environment_are_compared_within_a_tolerance(
    run: Tampered, finished: Finished, factor: float, holds: bool
):
    forge(run, factor)
    for shard in (0, 1):
        footer = run.footer(shard)
        foreign = footer.model_copy(update={"versions": footer.versions | {"processor": "abacus"}})
        run.write(shard, run.table(shard), foreign)
    run.refold()
    found = verify_run(run.uri, sample=ROWS, trusted=(finished.job.module,))
    assert (found.holds, found.sampled, found.bitwise) == (holds, ROWS - 1, 0)


def test_without_trust_the_model_is_not_loaded_and_the_sample_not_called_fine(
    run: Tampered, finished: Finished
):
    module = finished.job.module
    sys.modules.pop(module, None)
    found = verify_run(run.uri)
    assert (found.findings, found.sampled, module in sys.modules) == ((), 0, False)
    assert f"model code `{module}`" in str(found.unchecked)
    assert verify_run(run.uri, trusted=(module,)).sampled
    assert module in sys.modules


@pytest.mark.parametrize("change", ["code", "gone", "rows"])
def test_a_model_or_a_source_that_is_not_the_planned_one_leaves_the_sample_unchecked(
    job: JobFolder, change: str
):
    manifest = job.run()
    if change == "code":
        job.write_model("return 2 * self.logits(x)")
    elif change == "gone":
        (job.path / f"{job.module}.py").unlink()
    else:
        job.write_rows(count=19)
    found = verify_run(job.run_uri(manifest), trusted=(job.module,))
    assert (found.findings, found.sampled) == ((), 0)
    assert "a sample of rows attributed again" in [u.what for u in found.unchecked]
    assert ("row ids against the source" in [u.what for u in found.unchecked]) == (change == "rows")


# --- the command -------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from integrand.service.cli.commands import main\ntry: main()\nfinally:"
        " print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_the_command_ends_with_0_where_all_holds_and_loads_no_torch_without_a_sample(run: Tampered):
    ended = command("verify", str(run.path.parent), "--sample", "0")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "[]")
    assert "what was checked holds" in ended.stdout


def test_the_command_says_where_what_and_what_to_do_and_ends_with_6(run: Tampered):
    run.object(0).unlink()
    ended = command("verify", str(run.path), "--sample", "0")
    assert ended.returncode == 6
    for part in (
        f"{run.path}/data",
        "expected: an object",
        "seen: none for 1",
        "next: move _manifest.json away",
    ):
        assert part in ended.stdout
