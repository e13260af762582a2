"""How a dataset is cut into shards, and what a job is expected to cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from integrand.schemas.records import (
    InputShape,
    Projection,
    Shard,
    SourceFile,
)
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import TopKStore
from integrand.service.planning.cutting import auto_rows, check_decoded, cut, rows_by_bytes
from integrand.service.planning.datasets import Dataset
from integrand.service.planning.preflight import PlanFacts
from integrand.workers.data.blocks import Block, blocks_of
from integrand.workers.data.columns import row_bytes
from integrand.workers.shards.output import ROUNDED

PLACE_BYTES = 4
"""Of the place of one attribution, where the largest are stored alone."""


def cut_shards(
    spec: AttributeSpec,
    dataset: Dataset,
    shapes: Sequence[InputShape],
    findings: PlanFacts,
    most: int,
) -> tuple[Shard, ...]:
    """The shards of a dataset, none of which decodes to more than `most` bytes."""
    compute, files = spec.compute, dataset.files
    width = row_bytes(dataset.schema, shapes) + _encoded_bytes(spec, files)
    if compute.shard_bytes is not None:
        rows = rows_by_bytes(files, compute.shard_bytes)
    elif compute.shard_rows != "auto":
        rows = compute.shard_rows
    else:
        per_row = spec.target.per_row(findings.outputs)
        fitting = auto_rows(
            sum(f.rows for f in files),
            compute.worker_range.max,
            per_row * _result_row_bytes(spec, shapes),
            per_row * findings.seconds_per_row,
        )
        # half of it is left to ids, masks and targets
        rows = max(1, min(fitting, most // max(1, 2 * width)))
    shards = cut(files, rows)
    check_decoded(shards, width, most)
    return shards


def _encoded_bytes(spec: AttributeSpec, files: Sequence[SourceFile]) -> int:
    """Of a row whose pictures lie in the table: their pixels come beside them."""
    pictures = [one for one in spec.inputs if isinstance(one, ImageInput) and one.root is None]
    rows = sum(file.rows for file in files)
    return sum(file.size for file in files) // max(1, rows) if pictures else 0


def _result_row_bytes(spec: AttributeSpec, shapes: Sequence[InputShape]) -> int:
    """Of an output row while its shard is computed."""
    width = np.dtype(spec.compute.storage).itemsize
    numbers = sum(math.prod(block.shape.shape) for block in blocks_of(spec, shapes))
    return numbers * width + 100


def _stored_row_bytes(spec: AttributeSpec, shapes: Sequence[InputShape]) -> int:
    """Of an output row as it is stored."""
    return sum(_stored_block_bytes(spec, block) for block in blocks_of(spec, shapes)) + 100


def _stored_block_bytes(spec: AttributeSpec, block: Block) -> int:
    computed = spec.compute.storage
    kind = spec.output.dtype or computed if block.role in ROUNDED else computed
    width = np.dtype(kind).itemsize
    store, elements = spec.output.store, math.prod(block.shape.shape)
    if block.role == "attr" and isinstance(store, TopKStore):
        return min(store.k, elements) * (width + PLACE_BYTES)
    return elements * width


def project(
    spec: AttributeSpec,
    dataset: Dataset,
    shapes: Sequence[InputShape],
    shards: Sequence[Shard],
    findings: PlanFacts,
) -> Projection:
    per_row = spec.target.per_row(findings.outputs)
    rows = (dataset.estimated_rows or sum(f.rows for f in dataset.files)) * per_row
    largest = max((s.rows for s in shards), default=0) * per_row
    return Projection(
        seconds_per_row=findings.seconds_per_row,
        evaluations_per_row=findings.evaluations_per_row,
        batch_seconds=findings.batch_s,
        output_bytes=rows * _stored_row_bytes(spec, shapes),
        memory_bytes=findings.memory.host + 4 * largest * _result_row_bytes(spec, shapes),
        device_bytes=findings.memory.device,
        seconds=rows * findings.seconds_per_row / spec.compute.side_by_side,
        estimated=dataset.estimated,
    )
