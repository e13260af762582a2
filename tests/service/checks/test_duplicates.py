"""Row ids in two places."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.jobs import JobFolder
from tests.plugins.tampering import Tampered, verify_alone


def test_a_row_in_two_objects_is_found_without_the_source(job: JobFolder, tmp_path: Path):
    manifest = job.run()
    run = Tampered(Path(job.run_uri(manifest).path))
    (job.path / "data" / "rows.parquet").unlink()
    assert verify_alone(run).holds
    run.recount(1, run.table(1).set_column(0, "row_id", run.table(0)["row_id"]))
    run.refold()
    found = verify_alone(run)
    assert [f.seen for f in found.findings] == ["10 ids more than once, for instance 0"]
    assert "rows.parquet, seen: no file" in str(found.unchecked)
