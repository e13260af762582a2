"""What must hold of a run after any fault: every row once, with the bits of the fault-free run, and
nothing else there.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import duckdb
import pandas as pd

from integrand.schemas.records import RunManifest
from tests.plugins.jobs import JobFolder


def check_rows(
    job: JobFolder, undisturbed: RunManifest, out: str = "out", reference: str = "undisturbed"
) -> None:
    """Compare the run folder below `out`, as storage has it, with the fault-free run below
    `reference`.
    """
    folder = job.path / out / undisturbed.run_id
    stored = _manifest(folder, undisturbed.complete)
    assert (stored.complete, stored.digest, stored.statuses, stored.missing) == (
        undisturbed.complete,
        undisturbed.digest,
        undisturbed.statuses,
        undisturbed.missing,
    )
    rows, expected = pd.read_parquet(folder / "data"), job.rows(undisturbed, reference)
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    assert set(Counter(rows["row_id"]).values()) == {1}
    assert [
        p.name
        for p in sorted((folder / "data").rglob("*"))
        if not re.fullmatch(r"part-\d+\.parquet", p.name)
    ] == []
    for glob in (folder / "data" / "**" / "*.parquet", folder / "**" / "*.parquet"):
        seen = duckdb.sql(f"select row_id from read_parquet('{glob}')").fetchall()
        assert Counter(seen) == Counter((row_id,) for row_id in expected["row_id"])


def _manifest(folder: Path, complete: bool) -> RunManifest:
    there = {name for name in ("_manifest.json", "_partial.json") if (folder / name).exists()}
    assert there == {"_manifest.json" if complete else "_partial.json"}
    return RunManifest.model_validate_json((folder / there.pop()).read_bytes())
