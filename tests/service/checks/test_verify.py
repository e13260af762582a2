"""`verify` of a run folder: an untouched one has no findings, and each check is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.uris import Uri
from integrand.service.checks import verify
from integrand.service.checks.evidence import Evidence
from integrand.service.checks.findings import Check, Finding, Remark, Unchecked
from integrand.service.checks.rows.table import ROW_CHECKS
from integrand.service.checks.table import CHECKS
from integrand.service.checks.verify import verify_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.workers.storage.store import Entries, Store
from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import ROWS, Finished, Tampered, findings_text, verify_alone


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
        spec,
        base=str(job.path),
        operator=Operator(trusted=(job.module,), access=s3_server.access),
        cluster=Cluster("local"),
    )
    found = verify_run(s3_root, access=s3_server.access, sample=3, trusted=(job.module,))
    assert (found.findings, found.unchecked, found.bitwise) == ((), (), 3)
    store, data = Store(s3_server.access), s3_root.child(manifest.run_id, "data")
    store.replace(data.child("part-00001.parquet"), store.read(data.child("part-00000.parquet")))
    assert "part-00001.parquet" in findings_text(
        verify_run(s3_root, access=s3_server.access, sample=0)
    )


def test_a_broken_plan_is_told_and_nothing_else_is_called_fine(run: Tampered):
    (run.path / "_plan.json").write_text("{}")
    found = verify_alone(run)
    assert "_plan.json" in findings_text(found)
    assert [str(u) for u in found.unchecked] == ["everything else: the plan cannot be read"]


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="run folder"):
        verify_run(tmp_path)


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
    found = verify_alone(run)
    assert (found.findings, found.state) == ((), "unfinished")


def test_a_partial_run_holds_and_says_what_is_missing(partial: Tampered):
    found = verify_alone(partial)
    assert (found.findings, found.state, found.shards) == ((), "partial", 1)
    assert "1 of 2 shards: they are not committed" in map(str, found.unchecked)


def test_an_unfinished_run_holds_and_says_what_is_missing(run: Tampered):
    (run.path / "_manifest.json").unlink()
    shutil.rmtree(run.path.parent / "_latest")
    run.object(1).unlink()
    found = verify_alone(run)
    assert (found.findings, found.state, found.shards) == ((), "unfinished", 1)
    assert "1 of 2 shards: they are not committed" in map(str, found.unchecked)


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


# --- the table ---------------------------------------------------------------------------------


def test_each_check_has_a_name_of_its_own_and_says_what_it_asks():
    every = (*CHECKS, *ROW_CHECKS)
    assert len({check.name for check in every}) == len(every)
    assert all(check.description for check in every)


def test_a_check_in_the_table_is_asked_in_its_turn(run: Tampered, monkeypatch: pytest.MonkeyPatch):
    def remarks(run: Evidence) -> Iterator[Remark]:
        yield Finding(run.folder.plan.run_id, "a run that nobody minds", "this one")
        yield Unchecked("the weather", "no window")

    (run.path / "_manifest.json").write_text("{}")
    before = verify_alone(run)
    monkeypatch.setattr(verify, "CHECKS", (Check("mine", "a matter of taste", remarks), *CHECKS))
    found = verify_alone(run)
    assert [f.where for f in found.findings] == [
        run.path.name,
        *[f.where for f in before.findings],
    ]
    assert found.unchecked == (Unchecked("the weather", "no window"), *before.unchecked)
