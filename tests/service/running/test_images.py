"""Whole jobs over encoded pictures: the same numbers as over their pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.service.checks.verify import verify_run
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.workers.storage.store import Access
from tests.plugins.jobs import JobFolder
from tests.plugins.pictures import encoded, noise

CONVOLUTION = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 7 * 5, 2)
    return nn.Sequential(*layers).eval()
"""
SCALING: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
IMAGE: dict[str, Any] = {"name": "image", "image": "image", "size": [9, 7]} | SCALING


def pictures(count: int = 12) -> list[np.ndarray]:
    return [noise(seed=k) for k in range(count)]


def table(**columns: Any) -> pa.Table:
    return pa.table({"id": list(range(len(next(iter(columns.values()))))), **columns})


@pytest.fixture
def folder(job: JobFolder) -> JobFolder:
    (job.path / f"{job.module}.py").write_text(CONVOLUTION)
    data = [encoded(one) for one in pictures()]
    data[3], data[5], data[7] = b"junk", encoded(noise(9, 8)), None
    job.write_table("rows.parquet", table(image=pa.array(data, pa.binary())))
    return job


def attributions(job: JobFolder, **changes: Any) -> pd.DataFrame:
    changes = {"inputs": [IMAGE]} | changes
    return job.rows(job.run(**changes)).set_index("row_id").sort_index()


def values(found: pd.DataFrame) -> np.ndarray:
    return np.stack(found[found.status != "bad_input"]["attr.image"].map(np.ravel).tolist())


def test_attributions_are_those_of_the_pixels_bit_for_bit(folder: JobFolder) -> None:
    found = attributions(folder)
    assert found.status.value_counts().to_dict() == {"unchecked": 9, "bad_input": 3}
    assert found.loc[[3, 5, 7], "reason"].tolist() == [
        "image is no PNG, JPEG or WebP",
        "image is 9×8, expected 9×7",
        "image is null",
    ]
    rows = [one.transpose(2, 0, 1).reshape(-1).tolist() for one in pictures()]
    folder.write_table("rows.parquet", table(pixels=rows))
    column = {"name": "image", "column": "pixels", "shape": [3, 9, 7], "divide": 255} | SCALING
    plain = attributions(folder, inputs=[column]).drop([3, 5, 7])
    assert np.array_equal(values(found), values(plain))


def test_shards_and_neighbours_change_no_bit(folder: JobFolder) -> None:
    compute = {"shard_rows": 5, "batch_rows": 16}
    assert np.array_equal(
        values(attributions(folder)), values(attributions(folder, compute=compute, name="cut"))
    )


def test_structs_of_bytes_and_paths_below_a_root_are_the_same(folder: JobFolder) -> None:
    expected = values(attributions(folder))
    data = [encoded(one) for one in pictures()]
    structs = [{"bytes": one, "path": "x.png"} for one in data]
    structs[3], structs[5], structs[7] = {"bytes": b"x", "path": None}, None, {"bytes": None}
    folder.write_table("rows.parquet", table(image=structs))
    assert np.array_equal(values(attributions(folder, name="structs")), expected)
    below = folder.path / "pictures" / "some"
    below.mkdir(parents=True)
    for k, one in enumerate(data):
        (below / f"{k}.png").write_bytes(one)
    (folder.path / "secret.png").write_bytes(data[0])
    (below / "link.png").symlink_to(folder.path / "secret.png")
    paths = [f"some/{k}.png" for k in range(12)]
    paths[3], paths[5], paths[7] = "some/none.png", "../secret.png", "some/link.png"
    folder.write_table("rows.parquet", table(image=paths))
    rooted = IMAGE | {"root": "pictures"}
    found = attributions(folder, inputs=[rooted], name="paths")
    assert np.array_equal(values(found), expected)
    assert found.loc[[3, 5, 7], "reason"].tolist() == [
        "image is 'some/none.png': no such file below root",
        "image is '../secret.png': expected a path below root",
        "image is 'some/link.png': a link that leads out of root",
    ]


@pytest.mark.parametrize(
    "baseline",
    [
        {"kind": "constant", "value": [0.1, 0.2, 0.3]},
        {"kind": "constant", "value": 255, "units": "raw"},
        {"kind": "blur", "sigma": 1},
        {"kind": "uniform", "draws": 2},
        {"kind": "gaussian", "sigma": 0.1, "draws": 2},
        {"kind": "max_distance"},
        {"kind": "mean"},
    ],
    ids=lambda baseline: baseline["kind"],
)
def test_baselines_of_pixels(folder: JobFolder, baseline: dict[str, Any]) -> None:
    found = attributions(folder, baseline=baseline)
    good = found[found.status != "bad_input"]
    sums = good["attr.image"].map(np.sum)
    np.testing.assert_allclose(sums, good.f_input - good.f_baseline, atol=2e-2)


def test_groups_and_stores_of_pixels(folder: JobFolder) -> None:
    grouped = attributions(folder, output={"uri": "out", "groups": {"image": {"patches": 4}}})
    assert len(np.ravel(grouped["attr.image"][0])) == 3 * 2
    summed = attributions(folder, output={"uri": "out", "store": {"kind": "channel_sum"}})
    assert len(np.ravel(summed["attr.image"][0])) == 9 * 7


def test_runs_are_verified_and_tell_their_decoder(folder: JobFolder) -> None:
    manifest = folder.run(inputs=[IMAGE])
    assert verify_run(str(folder.run_uri(manifest))).holds
    assert "libjpeg" in folder.plan(inputs=[IMAGE]).versions["pillow"]


def test_another_pillow_than_planned_is_refused(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrand.workers.shards.agreement.decoder", lambda: "1.0 with libjpeg 9")
    with pytest.raises(IntegrityError, match="with libjpeg 9"):
        folder.run(inputs=[IMAGE])


def test_without_pillow_it_says_what_to_install(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SpecError, match=r"pip install 'integrand\[image\]'"):
        folder.plan(inputs=[IMAGE])


def test_shards_leave_room_for_the_encoded_pictures(folder: JobFolder) -> None:
    large = [encoded(noise(200, 200, seed=k)) for k in range(12)]
    folder.write_table("rows.parquet", table(image=large))
    access = Access(decoded_bytes=1_500_000)
    spec = folder.spec(inputs=[IMAGE | {"size": None, "crop": [9, 7]}], compute={})
    plan = plan_job(spec, base=str(folder.path), operator=Operator((folder.module,), access))
    assert max(shard.rows for shard in plan.shards) <= 6


def test_a_plan_warns_that_a_root_is_not_pinned(folder: JobFolder) -> None:
    (folder.path / "x.png").write_bytes(encoded(noise()))
    folder.write_table("rows.parquet", table(image=["x.png"] * 3))
    plan = folder.plan(inputs=[IMAGE | {"root": "."}])
    assert any("named by their paths alone" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "id"}, "bytes, or structs"),
        ({"mean": [1, 2]}, "channels"),
        ({"preprocess": "none.json"}, "nothing at"),
        ({"root": "."}, "paths below `root`"),
        ({"size": None}, "pictures need one shape"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(
    folder: JobFolder, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        folder.plan(inputs=[IMAGE | change])


def write_preset(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(fields))


def test_a_preset_is_frozen_and_names_the_run_whatever_its_file(folder: JobFolder) -> None:
    asked = {"name": "image", "image": "image", "preprocess": "processor.json"}
    size = {"height": 9, "width": 7}
    fields = {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 3}
    write_preset(folder.path / "processor.json", **fields)
    plan = folder.plan(inputs=[asked])
    spelled_out = {"resize": [9, 7], "resample": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    explicit = {"name": "image", "image": "image"} | spelled_out
    assert plan.inputs[0].shape == (3, 9, 7)
    assert plan.spec.inputs[0].resample == "bicubic"  # type: ignore[union-attr]
    write_preset(folder.path / "processor.json", **fields | {"resample": 2})
    assert folder.plan(inputs=[asked]).run_id != plan.run_id
    assert folder.plan(inputs=[explicit]).spec.inputs[0].resize == (9, 7)  # type: ignore[union-attr]
