"""A table of source rows becomes results: wrong rows, repeated ones and those that the model raises
on in their places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.tables import RowStatus
from integrand.workers.baselines.tensors import Given, draws_by_key, with_baselines
from integrand.workers.data.blocks import blocks_of
from integrand.workers.data.tensors import Bucket, Rows, length_buckets, to_rows
from integrand.workers.data.values import as_texts
from integrand.workers.engine.batching import rows_of_length
from integrand.workers.engine.row_results import RowResults
from integrand.workers.methods.table import method_of
from integrand.workers.models.reporting import Reporting
from integrand.workers.models.row_tensors import shared_or_taken
from integrand.workers.philox import keys_of
from integrand.workers.shards.attempts import Attributed, attribute_clean, joined
from integrand.workers.shards.distinct import Distinct, distinct_rows
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import optional_columns, target_array
from integrand.workers.shards.reasons import moved_elements, with_reasons
from integrand.workers.shards.refusals import Refusals, refusals
from integrand.workers.shards.reporting import reporting_of
from integrand.workers.shards.results import Results, merge
from integrand.workers.shards.storing import as_stored
from integrand.workers.shards.targets import row_targets, target_column
from integrand.workers.shards.tokens import with_token_columns

_BYTES = 8
"""Of an element of a baseline, taken as float64."""

_ON_CPU, _ON_CUDA = 128 << 20, 4 << 30
"""Bytes that the baselines of a part of a table may take."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SameLength:
    """Rows of a table whose inputs have one padded length.

    source      the rows as they are stored
    shapes      of the inputs of one row
    batch_rows  rows of their step batches
    culprits    rows that are not run, with the reason why they have `failed`
    """

    source: pa.Table
    rows: Rows
    ids: pa.Array
    shapes: tuple[InputShape, ...]
    batch_rows: int
    culprits: Mapping[int, str]


def attribute_table(
    job: Job,
    table: pa.Table,
    ids: pa.Array,
    tick: Callable[[], None],
    culprits: Mapping[int, str] = MappingProxyType({}),
) -> Results:
    """Results of all rows and targets in order, as they are stored; computed for one padded length
    of ids after the other.

    `culprits` are rows that are not run, with the reason why they have `failed`.
    """
    found = []
    for bucket in length_buckets(table, job.plan.spec, job.plan.inputs):
        source = bucket.of(table)
        rows = SameLength(
            source=source,
            rows=to_rows(source, job.plan.spec, bucket.shapes),
            ids=ids.take(pa.array(bucket.rows)),
            shapes=bucket.shapes,
            batch_rows=_batch_rows(job, bucket.shapes),
            culprits=_culprits_within(bucket, culprits),
        )
        places = _output_rows(bucket.rows, job.plan.targets_per_row)
        found.append((places, attribute_rows(job, rows, tick)))
    method = method_of(job.plan.spec.accuracy, job.plan.spec.method)
    return as_stored(job.plan, merge(found), method.tolerance)


def attribute_rows(job: Job, part: SameLength, tick: Callable[[], None]) -> Results:
    """Attributions of every row and target, bad rows and culprits in their places: rows × targets
    results in order.
    """
    rows = part.rows
    refused = refusals(job, rows, part.culprits)
    given = Given.of(rows, _keys(job, part.ids))
    distinct = distinct_rows(_told_apart(rows, given), refused.clean)
    targets, found, moved = _attributed(job, part, given, distinct.first, tick)
    in_places = _in_places(job, part, refused, distinct, found.rows)
    results = Results(
        row_id=_repeated_ids(part.ids, job.plan.targets_per_row),
        target=_targets_in_places(job, rows, refused, distinct, targets, in_places),
        rows=in_places,
        lengths=_lengths(job.plan.spec, part, job.plan.targets_per_row),
        padded=found.padded,
        duplicates=distinct.duplicates,
        halved=found.halved,
    )
    results = with_token_columns(job.plan, part.source, results)
    if moved is None:
        return results
    apart = np.ones((len(refused.reasons), moved.shape[1]), bool)
    apart[distinct.rows.numpy()] = moved[distinct.copied.numpy()]
    return with_reasons(job.plan, part.source, apart, results)


def _attributed(
    job: Job, part: SameLength, given: Given, rows: Tensor, tick: Callable[[], None]
) -> tuple[Tensor | None, Attributed, NDArray[np.bool_] | None]:
    """Targets and attributions of these rows, and where these have reasons, which elements differ
    from a baseline: a part of them after the other, so that the baselines of all are never there at
    once.
    """
    column = part.rows.target
    targets, found, moved = [], [], []
    for some in rows.split(_rows_at_once(job, part.shapes)):
        placed = _on_device(job, given.take(some))
        tensors = with_baselines(job.plan.spec, part.shapes, placed, job.counted)
        named = None if column is None else column[some]
        explained = row_targets(job, tensors, named, part.batch_rows, tick)
        targets.append(explained)
        rows_in = replace(tensors, target=explained, reporting=_reporting(job, part, some))
        found.append(attribute_clean(job, rows_in, part.batch_rows, tick))
        if job.plan.spec.output.reasons is not None:
            moved.append(moved_elements(tensors))
    known = [one for one in targets if one is not None]
    differing = np.concatenate(moved) if job.plan.spec.output.reasons else None
    return torch.cat(known) if known else None, joined(found), differing


def _reporting(job: Job, part: SameLength, rows: Tensor) -> Reporting | None:
    """What is reported of these rows, on the worker's device."""
    every = reporting_of(job.plan.spec, part.shapes, part.rows.members)
    if every is None:
        return None
    return every.each(lambda members: shared_or_taken(members, rows).to(job.device))


def _rows_at_once(job: Job, shapes: Sequence[InputShape]) -> int:
    """Rows whose baselines are made together: all, where a row has one of them."""
    if job.plan.spec.draws == 1:
        return sys.maxsize
    elements = sum(prod(shape.shape) for shape in shapes)
    row = job.plan.spec.draws * elements * _BYTES
    return max(1, (_ON_CPU if job.device == "cpu" else _ON_CUDA) // row)


# --- one padded length ---------------------------------------------------------------------------


def _batch_rows(job: Job, shapes: Sequence[InputShape]) -> int:
    """Rows of a step batch for rows of one padded length: they take what memory was planned,
    whatever shards.
    """
    planned, length = _varying_length(job.plan.inputs), _varying_length(shapes)
    size = job.plan.numerics.batch_rows
    if length and job.plan.spec.compute.batch_rows == "auto":
        return rows_of_length(size, planned, length)
    return size


def _varying_length(shapes: Sequence[InputShape]) -> int:
    lengths = [shape.shape[0] for shape in shapes if shape.varying]
    return sum(lengths)


def _culprits_within(bucket: Bucket, culprits: Mapping[int, str]) -> dict[int, str]:
    """The culprits in a bucket, by their numbers there."""
    found = {}
    for place, row in enumerate(bucket.rows.tolist()):
        if row in culprits:
            found[place] = culprits[row]
    return found


# --- what the model gets -------------------------------------------------------------------------


def _keys(job: Job, ids: pa.Array) -> Tensor | None:
    """By which rows draw random numbers; None where nothing is drawn."""
    spec = job.plan.spec
    if not (draws_by_key(spec) or method_of(spec.accuracy, spec.method).random):
        return None
    return keys_of(as_texts(ids))


def _told_apart(rows: Rows, given: Given) -> Iterator[Tensor]:
    """All that a row has of its own of what its attributions are made of."""
    yield from given.inputs
    yield from (read for read in given.read if read is not None)
    yield from given.forward_args
    if rows.members is not None and rows.members.shape[0] > 1:
        yield rows.members
    if rows.target is not None:
        yield rows.target
    if given.keys is not None:
        yield given.keys


def _on_device(job: Job, given: Given) -> Given:
    """Rows on the worker's device, copied once and from pinned memory: baselines and step batches
    are made of them there.
    """
    if job.device == "cpu":
        return given
    return given.each(lambda tensor: tensor.pin_memory().to(job.device, non_blocking=True))


# --- everything in its place ---------------------------------------------------------------------


def _output_rows(rows: NDArray[np.int64], per_row: int) -> NDArray[np.int64]:
    """Numbers of the output rows of source rows, all targets of one after the other."""
    firsts = rows[:, None] * per_row
    numbers = firsts + np.arange(per_row)
    return numbers.reshape(-1)


def _in_places(
    job: Job, part: SameLength, refused: Refusals, distinct: Distinct, found: RowResults
) -> RowResults:
    """Results of all output rows: of clean rows what was found, or what was of the row they repeat;
    `bad_input` or `failed` elsewhere.
    """
    per_row = job.plan.targets_per_row
    blocks = blocks_of(job.plan.spec, part.shapes)
    results = RowResults.empty(
        (len(refused.reasons) * per_row,),
        inputs=[block.shape.shape for block in blocks],
        dtypes=[job.plan.numerics.precision for _ in blocks],
        optional=optional_columns(job.plan),
    )
    results.reason[:] = np.repeat(np.array(refused.reasons, object), per_row)
    origin = _output_rows(distinct.copied.numpy(), per_row)
    results.put(_output_rows(distinct.rows.numpy(), per_row), found.take(origin))
    for row, reason in refused.lost.items():
        places = slice(row * per_row, (row + 1) * per_row)
        results.status[places] = RowStatus.failed
        results.reason[places] = reason
    return results


def _targets_in_places(
    job: Job,
    rows: Rows,
    refused: Refusals,
    distinct: Distinct,
    targets: Tensor | None,
    results: RowResults,
) -> pa.Array:
    """The target column; a target that is known without the model stays where the row is lost."""
    per_row = job.plan.targets_per_row
    copies = None
    if targets is not None:
        origin = distinct.copied.to(targets.device)
        copies = targets[origin].flatten(0, 1)
    places = _output_rows(distinct.rows.numpy(), per_row)
    column = target_column(job, copies, places, results.status.tolist())
    if rows.target is None or not refused.lost:
        return column
    lost = np.zeros(len(rows.target), bool)
    lost[list(refused.lost)] = True
    known = target_array(rows.target.reshape(len(lost), -1).numpy(), lost)
    return pc.coalesce(column, known)


def _repeated_ids(ids: pa.Array, per_row: int) -> pa.Array:
    numbers = np.arange(len(ids)).repeat(per_row)
    return ids.take(pa.array(numbers))


def _lengths(
    spec: AttributeSpec, part: SameLength, per_row: int
) -> tuple[NDArray[np.int64] | None, ...]:
    """For blocks of varying length how much of each output row is its own."""
    of_ids = {
        shape.name: x.sum(1).long().numpy()
        for x, shape in zip(part.rows.inputs, part.shapes, strict=True)
        if shape.varying
    }
    found = []
    for block in blocks_of(spec, part.shapes):
        name = block.shape.name
        own = of_ids[name] if block.shape.varying else None
        if own is not None and block.summed:
            own = part.rows.words.get(name, own)
        found.append(None if own is None else own.repeat(per_row))
    return tuple(found)
