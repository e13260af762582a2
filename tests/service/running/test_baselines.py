"""Whole jobs of every kind of baseline, against integrals that loops over rows, draws and nodes
take in float64; and one logical digest however rows are cut and ordered.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from integrand.schemas.records import RunManifest
from integrand.schemas.specs.job import parse_spec
from integrand.service.checks.verify import verify_run
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.workers.philox import keys_of, normals, uniforms
from tests.plugins.jobs import JobFolder

ROWS, BAD = 17, 4
LOW, HIGH = -3.0, 2.5
STREAM, TURNS = 1 << 31, 1 << 30
Naive = Callable[[np.ndarray, int], list[np.ndarray]]
"""All rows `[rows, 3]` and the number of one → its baselines."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """17 images of 1 × 3 pixels, one of them bad; whole in `data`, shuffled over two files in
    `shuffled`.
    """
    made = JobFolder(tmp_path_factory.mktemp("baselines"))
    draw = np.random.default_rng(0)
    values, own = draw.normal(size=(2, ROWS, 3)).clip(LOW, HIGH)
    values[BAD, 1] = np.nan
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "p": list(values),
            "own": list(own),
            "approved": np.arange(ROWS) % 2 == 0,
        }
    )
    made.write_table("rows.parquet", table)
    made.write_model("return self.logits(x.flatten(1))")
    shuffled = table.take(np.random.default_rng(1).permutation(ROWS))
    made.write_table("../shuffled/a.parquet", shuffled[:6], row_group_size=4)
    made.write_table("../shuffled/b.parquet", shuffled[6:])
    return made


@pytest.fixture(scope="module")
def rows(folder: JobFolder) -> np.ndarray:
    return np.stack(folder.rows_of("rows.parquet")["p"])


@pytest.fixture(scope="module")
def model(folder: JobFolder) -> torch.nn.Module:
    place = folder.path / f"{folder.module}.py"
    spec = importlib.util.spec_from_file_location(f"{folder.module}_again", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: torch.nn.Module = module.build()
    return built.double()


def run(folder: JobFolder, out: Path, **fields: Any) -> RunManifest:
    image = {"name": "image", "column": "p", "shape": [1, 1, 3], "range": [LOW, HIGH]}
    compute = {"shard_rows": ROWS, "batch_rows": 16, "precision": "float64"}
    plain = folder.fields(inputs=[image], output={"uri": str(out)}, compute=compute)
    plain["accuracy"] = {"kind": "fixed", "rule": "gauss_legendre", "steps": 24}
    return run_job(
        parse_spec(plain | fields),
        base=str(folder.path),
        operator=Operator(trusted=(folder.module,)),
        cluster=Cluster("local"),
    )


def stored(out: Path, manifest: RunManifest) -> pd.DataFrame:
    frame = pd.read_parquet(out / manifest.run_id / "data")
    return frame.sort_values("row_id", ignore_index=True)


def integrated(model: torch.nn.Module, x: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Integrated gradients of one row and baseline, node by node."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = np.zeros(3)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point: Tensor = torch.from_numpy(baseline + node * (x - baseline)).requires_grad_()
        model(point[None])[0, 1].backward()
        assert point.grad is not None
        total += weight * point.grad.numpy()
    return (x - baseline) * total


def valued(model: torch.nn.Module, x: np.ndarray) -> float:
    with torch.no_grad():
        return float(model(torch.from_numpy(x.copy())[None])[0, 1])


# --- the baselines, one row at a time -------------------------------------------------------------


def shared(*baselines: Any) -> Naive:
    return lambda rows, i: [np.broadcast_to(np.float64(one), 3) for one in baselines]


def clean(rows: np.ndarray) -> np.ndarray:
    return np.delete(rows, BAD, 0)


def farthest(rows: np.ndarray, i: int) -> list[np.ndarray]:
    return [np.where(rows[i] - LOW >= HIGH - rows[i], LOW, HIGH)]


def blurred(rows: np.ndarray, i: int) -> list[np.ndarray]:
    """Three pixels, mirrored over and over, under σ = 2."""
    steps = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (steps / 2) ** 2)
    mirrored = np.pad(rows[i], 8, "symmetric")
    return [np.convolve(mirrored, kernel / kernel.sum(), "valid")]


def noise(rows: np.ndarray, i: int) -> list[np.ndarray]:
    key = keys_of([str(i)])
    drawn = uniforms(key, seed=5, stream=STREAM, draws=range(3), count=3)
    return list(LOW + drawn[0].numpy() * (HIGH - LOW))


def same_noise(rows: np.ndarray, i: int) -> list[np.ndarray]:
    drawn = uniforms(keys_of(["all rows"]), seed=5, stream=STREAM, draws=range(3), count=3)
    return list(LOW + drawn[0].numpy() * (HIGH - LOW))


def around(rows: np.ndarray, i: int) -> list[np.ndarray]:
    drawn = normals(keys_of([str(i)]), seed=0, stream=STREAM, draws=range(4), count=3)
    return list((rows[i] + 0.5 * drawn[0].numpy()).clip(LOW, HIGH))


def around_unclipped(rows: np.ndarray, i: int) -> list[np.ndarray]:
    drawn = normals(keys_of([str(i)]), seed=0, stream=STREAM, draws=range(4), count=3)
    return list(rows[i] + 4 * drawn[0].numpy())


def drawn_rows(rows: np.ndarray, i: int) -> list[np.ndarray]:
    """Of even rows, bad one left out, the five of the lowest turns."""
    turns = {}
    for number in range(0, ROWS, 2):
        if number != BAD:
            key = keys_of([str(number)])
            drawn = uniforms(key, seed=2, stream=TURNS, draws=range(1), count=1)
            turns[number] = drawn.item()
    return [rows[number] for number in sorted(turns, key=turns.__getitem__)[:5]]


UNIFORM = {"kind": "uniform", "draws": 3, "seed": 5}
TRAINING = {"kind": "training", "draws": 5, "seed": 2, "where": "approved"}
CONSTANTS = [{"kind": "constant", "value": value} for value in (-1, 2)]
KINDS: dict[str, tuple[dict[str, Any], Naive]] = {
    "zero": ({"kind": "zero"}, shared(0)),
    "constant": ({"kind": "constant", "value": [-1, 0.5, 2]}, shared([-1, 0.5, 2])),
    "row": ({"kind": "row", "where": "id = 11"}, lambda rows, i: [rows[11]]),
    "row by id": ({"kind": "row", "row": 11}, lambda rows, i: [rows[11]]),
    "max_distance": ({"kind": "max_distance"}, farthest),
    "blur": ({"kind": "blur", "sigma": 2}, blurred),
    "uniform": (UNIFORM, noise),
    "uniform, shared": (UNIFORM | {"shared": True}, same_noise),
    "gaussian": ({"kind": "gaussian", "sigma": 0.5, "draws": 4}, around),
    "gaussian, unclipped": (
        {"kind": "gaussian", "sigma": 4, "draws": 4, "clip": False},
        around_unclipped,
    ),
    "training": (TRAINING, drawn_rows),
    "mean": ({"kind": "mean"}, lambda rows, i: [clean(rows).mean(0)]),
    "median": ({"kind": "median"}, lambda rows, i: [np.median(clean(rows), 0)]),
    "average of constants": ({"kind": "average", "of": CONSTANTS}, shared(-1, 2)),
    "average": (
        {"kind": "average", "of": [UNIFORM, {"kind": "zero"}, {"kind": "max_distance"}, TRAINING]},
        lambda rows, i: [*noise(rows, i), np.zeros(3), *farthest(rows, i), *drawn_rows(rows, i)],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_attributions_are_the_mean_over_the_baselines(
    folder: JobFolder,
    rows: np.ndarray,
    model: torch.nn.Module,
    name: str,
    tmp_path: Path,
) -> None:
    baseline, naive = KINDS[name]
    frame = stored(tmp_path, run(folder, tmp_path, baseline=baseline))
    assert frame.status[BAD] == "bad_input"
    for i in set(range(ROWS)) - {BAD}:
        each = [integrated(model, rows[i], one) for one in naive(rows, i)]
        mean = np.mean(each, 0)
        np.testing.assert_allclose(frame["attr.image"][i], mean, rtol=1e-9, atol=1e-11)
        starts = [valued(model, one) for one in naive(rows, i)]
        assert frame.f_baseline[i] == pytest.approx(np.mean(starts), rel=1e-9)
        if len(each) > 1:
            apart = [np.abs(one - mean).sum() ** 2 for one in each]
            spread = np.sqrt(np.mean(apart)) / np.abs(mean).sum()
            assert frame.baseline_spread[i] == pytest.approx(spread, rel=1e-7)
            assert frame.draws[i] == len(each)


def test_a_column_holds_a_baseline_of_each_row(
    folder: JobFolder, rows: np.ndarray, model: torch.nn.Module, tmp_path: Path
) -> None:
    own = np.stack(folder.rows_of("rows.parquet")["own"])
    manifest = run(folder, tmp_path, baseline={"kind": "column", "column": "own"})
    frame = stored(tmp_path, manifest)
    for i in set(range(ROWS)) - {BAD}:
        expected = integrated(model, rows[i], own[i])
        np.testing.assert_allclose(frame["attr.image"][i], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("accuracy", ["fixed", "adaptive"])
def test_features_that_equal_a_constant_get_exactly_zero(
    job: JobFolder, value: float, accuracy: str
) -> None:
    """What a constant baseline is blind to."""
    values = np.random.default_rng(3).normal(size=(20, 3)).astype(np.float32)
    blind = np.random.default_rng(4).random((20, 3)) < 0.4
    values[blind] = value
    job.write_table(
        "rows.parquet",
        pa.table({"id": np.arange(20), **dict(zip("abc", values.T, strict=True))}),
    )
    exact = {"fixed": job.fields()["accuracy"], "adaptive": {"kind": "adaptive"}}[accuracy]
    manifest = job.run(baseline={"kind": "constant", "value": value}, accuracy=exact)
    found = job.rows(manifest)[["attr.a", "attr.b", "attr.c"]].to_numpy()
    assert not found[blind].any()
    assert np.all(found[~blind] != 0)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize(
    "name", ["row", "max_distance", "blur", "median", "uniform, shared", "training", "average"]
)
def test_no_bit_depends_on_shards_or_order(folder: JobFolder, name: str, tmp_path: Path) -> None:
    baseline, _ = KINDS[name]
    plain = run(folder, tmp_path / "plain", baseline=baseline)
    for shard_rows, source in ((2, "data"), (5, "shuffled")):
        compute = {"shard_rows": shard_rows, "batch_rows": 16, "precision": "float64"}
        found = run(
            folder,
            tmp_path / source,
            baseline=baseline,
            compute=compute,
            source={"uri": source, "row_id": "id"},
        )
        assert found.digest == plain.digest


@pytest.mark.parametrize("name", ["uniform", "training", "average"])
def test_rows_attributed_again_have_the_same_bits(
    folder: JobFolder, name: str, tmp_path: Path
) -> None:
    """By `verify`, each row alone."""
    baseline, _ = KINDS[name]
    manifest = run(folder, tmp_path, baseline=baseline)
    checked = verify_run(tmp_path / manifest.run_id, sample=6, trusted=(folder.module,))
    assert (checked.findings, checked.sampled) == ((), 6)


@pytest.mark.parametrize(
    "baseline", [UNIFORM, TRAINING | {"where": "a < 500"}], ids=["own", "shared"]
)
def test_a_shard_that_is_tried_again_has_the_same_bits(
    job: JobFolder, baseline: dict[str, Any]
) -> None:
    job.write_rows(count=40, marks=(37,))  # beyond the rows that are planned with
    features = {"name": "features", "columns": ["a", "b", "c"], "range": [-9, 2000]}
    model = job.model(faults="transient:once", folder=str(job.path))
    fields = {"inputs": [features], "baseline": baseline, "model": model}
    plan = job.plan(ingest=True, **fields)
    assert not (job.path / "transient:once").exists()
    tried = job.run(**fields)
    assert sum(map(len, job.ledger(tried, plan).attempts.values())) == 1
    calm = job.run(**fields | {"output": {"uri": "calm"}})
    assert tried.complete
    assert tried.digest == calm.digest
