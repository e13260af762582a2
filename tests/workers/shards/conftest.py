"""A job of two inputs, whose plan tells how made-up results are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from integrand.workers.shards.job import Job


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    table = pa.table(
        {
            "id": np.arange(20),
            **{c: np.random.default_rng(1).normal(size=20) for c in "abc"},
            "p": pa.array(np.random.default_rng(2).normal(size=(20, 4)).tolist()),
        }
    )
    inputs = [
        {"name": "f", "columns": ["a", "b", "c"]},
        {"name": "image", "column": "p", "shape": [2, 2]},
    ]
    return make_job(
        table,
        "masked",
        inputs,
        target={"kind": "scalar"},
        forward_args=[{"name": "mask", "columns": ["a", "b", "c"], "dtype": "float64"}],
    )
