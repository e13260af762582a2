"""Baselines of small tables, as a worker makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from integrand.workers.baselines.tensors import Given, baseline_tensors, check_baselines
from integrand.workers.data.prepasses.base import Arrays
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows
from integrand.workers.philox import keys_of
from tests.toys import spec

IMAGE: dict[str, Any] = {"name": "image", "column": "p", "shape": [2, 6, 5]}
FEATURES: dict[str, Any] = {"name": "f", "columns": ["a", "b"]}


@pytest.fixture(scope="session")
def table() -> pa.Table:
    """Twelve rows of two features, and of images of two channels."""
    draw = np.random.default_rng(0)
    images = pa.array(draw.uniform(-1, 1, (12, 60)).tolist())
    features = {name: draw.uniform(-1, 1, 12) for name in "ab"}
    return pa.table({"id": [f"row {i}" for i in range(12)], "p": images, **features})


@pytest.fixture(scope="session")
def made(table: pa.Table) -> Callable[..., tuple[Tensor, ...]]:
    """`made(*inputs, rows=range(12), counted={}, **fields)` makes the baselines of these rows."""

    def make(
        *inputs: dict[str, Any],
        rows: Sequence[int] = range(12),
        counted: Mapping[str, Arrays] | None = None,
        **fields: Any,
    ) -> tuple[Tensor, ...]:
        job = spec(*inputs, **({"compute": {"precision": "float64"}} | fields))
        shapes = resolve_columns(table.schema, job)
        check_baselines(job, shapes)
        some = table.take(pa.array(list(rows), pa.int64()))
        given = Given.of(to_rows(some, job, shapes), keys_of(some["id"].to_pylist()))
        with torch.inference_mode(False):
            return baseline_tensors(job, shapes, given, counted or {})

    return make


@pytest.fixture(scope="session")
def images(table: pa.Table) -> np.ndarray:
    return np.array(table["p"].to_pylist()).reshape(12, 2, 6, 5)
