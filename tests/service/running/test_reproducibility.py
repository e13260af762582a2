"""One job, one logical digest: however its rows are cut, ordered, spread over files and workers, or
taken up again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import parse_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from tests.plugins.jobs import JobFolder

ROWS = 64
BAD = (0, 9, 40)
ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3, "max_evaluations": 127}
FIXED = {"kind": "fixed", "rule": "gauss_legendre", "steps": 8}
SHARDS = {1: 64, 7: 10, 64: 1}
"""Number of shards, and the rows of one that make it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """64 rows, three of them bad, whole in `data` and shuffled over two files in `shuffled`."""
    made = JobFolder(tmp_path_factory.mktemp("reproducible"))
    values = np.random.default_rng(0).normal(size=ROWS)
    values[list(BAD)] = np.nan
    made.write_rows(count=ROWS, c=values.astype(np.float32))
    made.write_model("return self.logits(3 * x)")
    table = pa.Table.from_pandas(made.rows_of("rows.parquet"))
    shuffled = table.take(np.random.default_rng(1).permutation(ROWS))
    made.write_table("../shuffled/a.parquet", shuffled[:23], row_group_size=7)
    made.write_table("../shuffled/b.parquet", shuffled[23:])
    return made


def run(
    folder: JobFolder,
    out: Path,
    *,
    shards: int = 7,
    accuracy: dict[str, Any] = ADAPTIVE,
    workers: int = 1,
    source: str = "data",
    address: str | None = None,
    **changes: Any,
) -> RunManifest:
    fields = folder.fields(
        source={"uri": source, "row_id": "id"},
        output={"uri": str(out)},
        accuracy=accuracy,
        compute={"shard_rows": SHARDS[shards], "batch_rows": 16, "workers": workers, **changes},
    )
    return run_job(
        parse_spec(fields),
        base=str(folder.path),
        operator=Operator(trusted=(folder.module,)),
        cluster=Cluster("ray" if address else "local", address=address),
    )


@pytest.fixture(scope="module", params=[ADAPTIVE, FIXED], ids=lambda a: a["kind"])
def accuracy(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def plain(
    folder: JobFolder, accuracy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> RunManifest:
    """The run that all others are to equal: one shard, rows in order."""
    manifest = run(folder, tmp_path_factory.mktemp("plain"), shards=1, accuracy=accuracy)
    assert (manifest.complete, manifest.determinism, manifest.rows_out) == (True, "bitwise", ROWS)
    assert manifest.statuses["bad_input"] == len(BAD)
    return manifest


@pytest.mark.parametrize("source", ["data", "shuffled"])
@pytest.mark.parametrize("shards", SHARDS)
def test_shards_and_order_leave_the_digest(
    folder: JobFolder,
    plain: RunManifest,
    accuracy: dict[str, Any],
    shards: int,
    source: str,
    tmp_path: Path,
) -> None:
    """Files may not share a shard, so two of them need one more."""
    found = run(folder, tmp_path, shards=shards, accuracy=accuracy, source=source)
    assert shards <= found.shards_planned <= shards + 1
    assert (found.quarantined, found.digest) == ((), plain.digest)


def test_another_step_batch_is_another_run(
    folder: JobFolder, plain: RunManifest, accuracy: dict[str, Any], tmp_path: Path
) -> None:
    """The digest tells: what is not to change it is not merely left out of it."""
    assert run(folder, tmp_path, accuracy=accuracy, batch_rows=32).run_id != plain.run_id
    other = run(
        folder,
        tmp_path,
        accuracy=accuracy | ({"steps": 9} if "steps" in accuracy else {"tolerance": 1e-6}),
    )
    assert other.digest != plain.digest


@pytest.mark.parametrize("lost", [[0], [3, 4, 5, 6], list(range(7))], ids=len)
def test_a_run_taken_up_again_has_the_same_digest(
    folder: JobFolder, plain: RunManifest, accuracy: dict[str, Any], lost: list[int], tmp_path: Path
) -> None:
    """As if the driver had died before the lost shards; those that remain are not written again."""
    first = run(folder, tmp_path, accuracy=accuracy)
    place = tmp_path / first.run_id
    objects = sorted((place / "data").glob("*"))
    (place / "_manifest.json").unlink()
    for i in lost:
        objects[i].unlink()
    kept = {path: path.stat().st_mtime_ns for path in objects if path.exists()}
    again = run(folder, tmp_path, accuracy=accuracy)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (again.run_id, again.digest) == (first.run_id, plain.digest)


@pytest.mark.ray
@pytest.mark.parametrize(("shards", "source"), [(7, "shuffled"), (64, "data")])
def test_two_workers_leave_the_digest(
    folder: JobFolder,
    plain: RunManifest,
    accuracy: dict[str, Any],
    local_ray: str,
    shards: int,
    source: str,
    tmp_path: Path,
) -> None:
    found = run(
        folder,
        tmp_path,
        shards=shards,
        source=source,
        accuracy=accuracy,
        workers=2,
        address=local_ray,
    )
    assert (found.complete, found.digest) == (True, plain.digest)
