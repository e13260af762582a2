"""A run folder of every format version that was ever written still opens, and tells the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from integrand.schemas.ids import FORMAT_VERSION, add_digests
from integrand.service import open_run
from integrand.service.runs.footers import RunFolder, read_footers
from integrand.service.runs.manifest import fold, load_plan
from integrand.service.runs.totals import read_committed

FOLDERS = sorted(Path(__file__).parent.glob("v*"))


def test_the_current_format_has_a_golden_folder():
    assert Path(__file__).parent / f"v{FORMAT_VERSION}" in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_golden_folder_opens_and_tells_the_same(folder: Path):
    run = open_run(folder)
    assert (run.complete, run.manifest.statuses) == (True, {"bad_input": 2, "ok": 10})
    rows = run.to_pandas().set_index(["row_id", "target"])
    np.testing.assert_allclose(
        rows.loc[("c", 0), ["attr.a", "attr.b"]].astype(float), [3, 3], atol=1e-12
    )
    np.testing.assert_allclose(rows.loc[("b", 1), "attr.image"], [1, 4, 9, 16], atol=1e-12)
    assert rows.loc[("f", 0), "reason"] == "pixels is null"
    assert run.top_features(1)["feature"].tolist() == ["image[0,1,1]"]
    assert len(pd.read_parquet(folder / "data")) == 12


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_golden_footers_fold_into_the_stored_manifest(folder: Path):
    run = open_run(folder)
    _, plan_sha256 = load_plan(run.store, run.uri)
    committed = read_committed(RunFolder(run.store, run.uri, run.plan, plan_sha256))
    folded = fold(
        run.plan,
        plan_sha256,
        committed,
        created=run.manifest.created,
        logical_date=run.manifest.logical_date,
    )
    stored = run.manifest.model_fields_set  # later versions may tell more
    assert folded.model_dump(include=stored) == run.manifest.model_dump(include=stored)
    footers = (footer for _, footer in read_footers(run.store, run.uri, committed.shards))
    assert add_digests(f.digest for f in footers) == run.manifest.digest
