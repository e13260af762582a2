"""Run folders to be verified, finished and partial."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import ROWS, Finished, Tampered


@pytest.fixture(scope="session")
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


@pytest.fixture
def partial(job: JobFolder) -> Tampered:
    """A run whose second shard was given up: a page of the source does not decode."""
    job.write_rows(count=40, row_group_size=20, write_page_checksum=True)
    job.flip_bit("rows.parquet", 1)
    manifest = job.run(compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1})
    assert [q.shard for q in manifest.quarantined] == ["00001"]
    return Tampered(Path(job.run_uri(manifest).path))
