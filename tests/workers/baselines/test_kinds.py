"""Every kind of baseline in the units that the model receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.baselines.tensors import Given, baseline_tensors
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows
from integrand.workers.shards.shard import read_shard, run_shard
from tests.toys import spec

TABLE = pa.table(
    {
        "a": [1.0, 2, 3],
        "b": [4.0, 5, 6],
        "p": [[0.0] * 8, [1.0] * 8, [2.0] * 8],
        "base": [[5.0] * 8, [6.0] * 8, [7.0] * 8],
    }
)
FEATURES: dict[str, Any] = {"name": "f", "columns": ["a", "b"], "divide": 2, "mean": 1, "std": 4}
IMAGE: dict[str, Any] = {"name": "image", "column": "p", "shape": [2, 2, 2]}


def baselines(
    *inputs: dict[str, Any], means: list[np.ndarray] | None = None, **fields: Any
) -> tuple[Tensor, ...]:
    job = spec(*inputs, **fields)
    shapes = resolve_columns(TABLE.schema, job)
    given = Given.of(to_rows(TABLE, job, shapes))
    return baseline_tensors(job, shapes, given, {"mean": tuple(means or ())})


def test_zero_is_the_default_and_shared() -> None:
    one, other = baselines(FEATURES, IMAGE)
    assert torch.equal(one, torch.zeros(1, 2))
    assert torch.equal(other, torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize(("value", "expected"), [(3, [[3.0, 3]]), ([3, 4], [[3.0, 4]])])
def test_constants(value: Any, expected: list[list[float]]) -> None:
    assert (
        baselines(FEATURES, baseline={"kind": "constant", "value": value})[0].tolist() == expected
    )


def test_constants_in_raw_units_are_scaled_like_the_data() -> None:
    (scaled,) = baselines(FEATURES, baseline={"kind": "constant", "value": [10, 2], "units": "raw"})
    assert scaled.tolist() == [[(10 / 2 - 1) / 4, (2 / 2 - 1) / 4]]


def test_a_colour_is_one_value_per_channel() -> None:
    (image,) = baselines(IMAGE, baseline={"kind": "constant", "value": [1, 2]})
    assert torch.equal(image, torch.tensor([1.0, 2])[None, :, None, None].expand(1, 2, 2, 2))
    (flat,) = baselines(IMAGE, baseline={"kind": "constant", "value": list(range(8))})
    assert torch.equal(flat.flatten(), torch.arange(8.0))


def test_a_list_that_fits_nothing_is_refused() -> None:
    with pytest.raises(
        SpecError,
        match=r"input `image`(.|\n)*2 \(channels\) or 8 \(features\)(.|\n)*seen: 3(.|\n)*next:",
    ):
        baselines(IMAGE, baseline={"kind": "constant", "value": [1, 2, 3]})


def test_a_column_holds_one_baseline_per_row() -> None:
    (image,) = baselines(IMAGE, baseline={"kind": "column", "column": "base"})
    assert torch.equal(image, torch.tensor([5.0, 6, 7])[:, None, None, None].expand(3, 2, 2, 2))
    (raw,) = baselines(FEATURES, baseline={"kind": "column", "columns": ["b", "a"], "units": "raw"})
    assert raw.tolist() == [[(b / 2 - 1) / 4, (a / 2 - 1) / 4] for b, a in [(4, 1), (5, 2), (6, 3)]]


def test_means_are_taken_as_counted() -> None:
    found = baselines(
        FEATURES,
        IMAGE,
        means=[np.array([1.5, 2.5]), np.arange(8.0).reshape(2, 2, 2)],
        baseline={"kind": "mean"},
    )
    assert found[0].tolist() == [[1.5, 2.5]]
    assert torch.equal(found[1].flatten(), torch.arange(8.0))
    assert {b.dtype for b in found} == {torch.float32}


def test_an_input_may_have_a_baseline_of_its_own() -> None:
    own = FEATURES | {"baseline": {"kind": "constant", "value": 9}}
    features, image = baselines(
        own, IMAGE, baseline={"kind": "constant", "value": 1}, compute={"precision": "float64"}
    )
    assert (features.tolist(), image.unique().tolist()) == ([[9.0, 9]], [1.0])
    assert features.dtype == image.dtype == torch.float64


def test_a_job_attributes_against_its_baseline(make_job: Callable[..., Any]) -> None:
    """End to end, with the mean of the clean rows of the whole dataset."""
    values = np.random.default_rng(0).normal(size=(20, 3))
    values[3, 1] = np.nan
    table = pa.table({"id": np.arange(20), **{name: values[:, i] for i, name in enumerate("abc")}})
    job = make_job(table, baseline={"kind": "mean"})
    clean = np.delete(values, 3, 0)
    expected = job.forward(torch.from_numpy(clean.mean(0))[None])[0, 1].item()
    for shard in job.plan.shards:
        run_shard(job, shard, read_shard(job, shard), 0.0, lambda: None)
    found = pq.read_table(str(job.run.child("data").path)).column("f_baseline").to_numpy()
    np.testing.assert_allclose(np.delete(found, 3), expected, rtol=1e-12)
