"""Whole jobs of every method and of every baseline that is drawn: one logical digest, however the
rows are cut and ordered, and the columns of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import parse_spec
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from tests.plugins.jobs import JobFolder

ROWS = 40
UNIFORM = {"kind": "uniform", "draws": 3, "seed": 5}
GAUSSIAN = {"kind": "gaussian", "sigma": 0.5, "draws": 4}
SAMPLES = {"kind": "samples", "samples": 12}
METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"baseline": UNIFORM},
    "gaussian": {"baseline": GAUSSIAN},
    "iid": {
        "baseline": UNIFORM,
        "method": {"kind": "expected_gradients", "sampling": "iid"},
        "accuracy": SAMPLES,
    },
    "stratified": {
        "baseline": UNIFORM,
        "method": "expected_gradients",
        "accuracy": {"kind": "adaptive", "tolerance": 0.1, "max_evaluations": 2048},
    },
    "product": {
        "baseline": GAUSSIAN,
        "method": {"kind": "expected_gradients", "sampling": "product"},
    },
    "smoothgrad": {"method": {"kind": "smoothgrad", "sigma": 0.2}, "accuracy": SAMPLES},
    "saliency": {"method": "saliency"},
    "input x gradient": {"method": "input_x_gradient"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """40 rows, one of them bad, whole in `data` and shuffled over two files in `shuffled`."""
    made = JobFolder(tmp_path_factory.mktemp("methods"))
    values = np.random.default_rng(0).normal(size=ROWS)
    values[4] = np.nan
    made.write_rows(count=ROWS, c=values.astype(np.float32))
    made.write_model("return self.logits(torch.tanh(2 * x))")
    table = pa.Table.from_pandas(made.rows_of("rows.parquet"))
    shuffled = table.take(np.random.default_rng(1).permutation(ROWS))
    made.write_table("../shuffled/a.parquet", shuffled[:13], row_group_size=7)
    made.write_table("../shuffled/b.parquet", shuffled[13:])
    return made


def run(
    folder: JobFolder, out: Path, name: str, *, shard_rows: int, source: str = "data"
) -> RunManifest:
    fields = folder.fields(
        source={"uri": source, "row_id": "id"},
        output={"uri": str(out)},
        compute={"shard_rows": shard_rows, "batch_rows": 16},
        **METHODS[name],
    )
    fields["inputs"][0]["range"] = [-3, 3]
    if "accuracy" not in METHODS[name]:
        fields.pop("accuracy", None)
    return run_job(
        parse_spec(fields),
        base=str(folder.path),
        operator=Operator(trusted=(folder.module,)),
        cluster=Cluster("local"),
    )


def stored(out: Path, manifest: RunManifest) -> pd.DataFrame:
    frame = pd.read_parquet(out / manifest.run_id / "data")
    return frame.sort_values("row_id", ignore_index=True)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("name", METHODS)
def test_no_bit_depends_on_shards_or_order(folder: JobFolder, name: str, tmp_path: Path) -> None:
    plain = run(folder, tmp_path / "plain", name, shard_rows=ROWS)
    assert (plain.complete, plain.rows_out) == (True, ROWS)
    assert plain.statuses["bad_input"] == 1
    for shard_rows, source in ((3, "data"), (7, "shuffled")):
        out = tmp_path / f"{source}"
        found = run(folder, out, name, shard_rows=shard_rows, source=source)
        assert found.digest == plain.digest


@pytest.mark.parametrize("name", METHODS)
def test_columns_say_what_a_method_knows(folder: JobFolder, name: str, tmp_path: Path) -> None:
    manifest = run(folder, tmp_path, name, shard_rows=ROWS)
    frame = stored(tmp_path, manifest)
    good = frame[frame.status != "bad_input"]
    sums = good.filter(like="attr.").sum(axis=1)
    np.testing.assert_allclose(sums, good.attribution_sum, rtol=1e-4, atol=1e-5)
    gap = good.attribution_sum - (good.f_input - good.f_baseline)
    np.testing.assert_allclose(gap, good.gap, atol=1e-5)
    assert (good.evaluations > 0).all()
    drawn = METHODS[name].get("baseline", {"draws": 1})["draws"]
    assert ("baseline_spread" in frame) == (drawn > 1)
    if drawn > 1:
        assert set(good.draws) == {drawn}
        assert (good.baseline_spread > 0).all() == (name in ("uniform", "gaussian", "product"))
    exactness = {
        "iid": "unchecked",
        "smoothgrad": "unchecked",
        "saliency": "unchecked",
        "input x gradient": "unchecked",
    }
    assert set(good.status) == {exactness.get(name, "ok")}
    estimated = good.error_estimate.notna().all()
    assert estimated == (name not in ("saliency", "input x gradient"))
