"""A few clean rows of a source, as the model will get them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from integrand.schemas.errors import DataError, IntegrandError, SpecError
from integrand.schemas.records import InputShape, Slice
from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.datasets import Dataset
from integrand.workers.baselines.outside import rows_outside
from integrand.workers.baselines.tensors import Given, at_rows, with_baselines
from integrand.workers.data.columns import declared_columns
from integrand.workers.data.decoded import decoded
from integrand.workers.data.prepasses.base import Arrays
from integrand.workers.data.reading import read_parts, read_slices
from integrand.workers.data.tensors import Rows, length_buckets, to_rows
from integrand.workers.engine.evaluator import is_out_of_memory
from integrand.workers.isolation import isolate
from integrand.workers.methods.probing import one_line
from integrand.workers.models.embeddings import IdsModel
from integrand.workers.models.outputs import Forward, on_copies
from integrand.workers.models.portions import SIZES, runs
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.philox import keys_of
from integrand.workers.storage.store import Store

SAMPLE_ROWS, SAMPLE_FILES = 16, 4
MOST_LOOKED_AT = 5_000_000
"""Rows after which no clean one is looked for any more."""


@dataclass(frozen=True, eq=False)
class Look:
    """Some rows of a source, with the name of the first one, and how many rows were looked at so
    far.
    """

    first: str
    table: pa.Table
    seen: int


def looks(store: Store, spec: AttributeSpec, dataset: Dataset) -> Iterator[Look]:
    """Rows to plan with: from the start of several files, then from their middle, then all, one
    part after the other.

    Rolling features begin with nulls, columns came late, rows are rarely complete: such rows are
    `bad_input` in the output, and no reason to refuse the job.
    """
    for look in _looks(store, spec, dataset):
        yield replace(look, table=decoded(store, spec, look.table))


def _looks(store: Store, spec: AttributeSpec, dataset: Dataset) -> Iterator[Look]:
    if dataset.head is not None:
        yield Look("the first row", dataset.head, dataset.head.num_rows)
        seen = 0
        longer = dataset.longer() if dataset.longer else ()
        for table in longer:
            seen += table.num_rows
            yield Look("the first row", table, seen)
        return
    columns = declared_columns(spec)
    filled = [(i, f) for i, f in enumerate(dataset.files) if f.rows]
    stride = max(1, len(filled) // SAMPLE_FILES)
    chosen = filled[::stride][:SAMPLE_FILES]
    for place in (0.0, 0.5):
        slices = []
        for number, file in chosen:
            start = int(place * file.rows)
            stop = min(file.rows, start + SAMPLE_ROWS)
            slices.append(Slice(file=number, start=start, stop=stop))
        table = read_slices(store, dataset.files, slices, columns)
        yield Look(_name(dataset, slices[0]), table, table.num_rows)
    seen = 0
    for part, table in read_parts(store, dataset.files, columns):
        seen += table.num_rows
        yield Look(_name(dataset, part), table, seen)


def _name(dataset: Dataset, rows: Slice) -> str:
    file = dataset.files[rows.file]
    return f"{file.path}#{file.first_row + rows.start}"


def find_rows(
    spec: AttributeSpec,
    shapes: tuple[InputShape, ...],
    found: Iterator[Look],
    device: str,
    forward: Forward,
    *,
    estimated: bool,
) -> tuple[tuple[InputShape, ...], Rows]:
    """The first look with a clean row, of one padded length, and the inputs' shapes there.

    Raises DataError with the first reason if every row that was looked at is bad; of text that is
    not split yet (`estimated`) these are few.
    """
    seen = 0
    first = ""
    for look in found:
        lengths = _of_lengths(spec, shapes, look.table, device, forward)
        _, padded, rows = max(reversed(lengths), key=lambda one: int(one[2].clean.sum()))
        if rows.clean.any():
            return padded, rows
        seen = look.seen
        first = first or _first_reason(look, lengths)
        if seen >= MOST_LOOKED_AT:
            break
    further = (
        "; a plan of text that is not split yet sees the first lines of each file, with"
        " --ingest all"
        if estimated
        else ""
    )
    raise DataError(
        "source",
        expected="at least one usable row",
        seen=f"{seen:,} bad rows, and no other; the first: {first}",
        next_step=f"fix the data, or name the right columns and shape under inputs{further}",
    )


_Length = tuple[NDArray[np.int64], tuple[InputShape, ...], Rows]
"""Numbers of the rows of one padded length, the inputs' shapes, and the rows."""


def _of_lengths(
    spec: AttributeSpec,
    shapes: tuple[InputShape, ...],
    table: pa.Table,
    device: str,
    forward: Forward,
) -> list[_Length]:
    """A table's rows by padded length, judged by what they hold and by what ids the model knows."""
    found = []
    for bucket in length_buckets(table, spec, shapes):
        rows = to_rows(bucket.of(table), spec, bucket.shapes)
        outside = rows_outside(spec, bucket.shapes, rows)
        known = [reason or outside.get(i) for i, reason in enumerate(rows.reasons)]
        reasons = _judge_ids(spec, forward, replace(rows, reasons=known), device)
        judged = replace(rows, reasons=reasons)
        found.append((bucket.rows, bucket.shapes, judged))
    return found


def _first_reason(look: Look, lengths: Sequence[_Length]) -> str:
    """Why the first row is bad. What ingest says begins with the number of its line."""
    firsts = (rows.reasons[0] for numbers, _, rows in lengths if len(numbers) and numbers[0] == 0)
    reason = next(firsts, None) or ""
    if reason.startswith("line "):
        return reason
    return f"{look.first}: {reason}"


def sample_rows(
    spec: AttributeSpec,
    shapes: Sequence[InputShape],
    rows: Rows,
    counted: Mapping[str, Arrays],
    device: str,
    forward: Forward,
    most: int = 8,
) -> RowTensors:
    """The first clean rows that the model takes, of rows of which some are clean; a single one
    twice: no batch has one.
    """
    numbers = [str(row) for row in range(len(rows.reasons))]
    every = Given.of(rows, keys_of(numbers)).each(lambda tensor: tensor.to(device))
    taken = _taken(forward, at_rows(spec, every), _clean(rows), most)
    if len(taken) == 1:
        taken = taken * 2
    index = torch.tensor(taken)
    target = None if rows.target is None else rows.target[index].to(device)
    sample = with_baselines(spec, shapes, every.take(index.to(device)), counted)
    _check_baseline_ids(forward, sample)
    return replace(sample, target=target)


def _clean(rows: Rows) -> list[int]:
    """Numbers of the rows without a reason against them."""
    return [i for i, reason in enumerate(rows.reasons) if reason is None]


def _check_baseline_ids(forward: Forward, sample: RowTensors) -> None:
    """SpecError for ids of a baseline, such as a row of another dataset, that the model does not
    know.
    """
    if not isinstance(forward, IdsModel):
        return
    paths = sample.along_paths()
    with real_rows(forward, paths.arguments):
        reasons = forward.unknown_ids(*paths.arguments)
    wrong = next((reason for reason in reasons if reason is not None), None)
    if wrong is not None:
        raise SpecError(
            "baseline",
            expected="ids that the model knows",
            seen=wrong,
            next_step="take rows that were made for this model",
        )


def one_target(sample: RowTensors) -> RowTensors:
    """The sample as rows of a call, whose target is `[rows, targets, depth]`."""
    target = None if sample.target is None else sample.target[:, None]
    return replace(sample, target=target)


def _taken(forward: Forward, arguments: Sequence[Tensor], clean: list[int], most: int) -> list[int]:
    """The first clean rows, without those on which the model raises; with them where it raises on
    each, as is said later.
    """

    def attempt(part: slice) -> list[int]:
        on_copies(forward, *(a[clean[part]] for a in arguments))
        return clean[part]

    def accepted(start: int, stop: int) -> list[int]:
        found = isolate(attempt, lambda error: [], slice(start, stop))
        return list(chain.from_iterable(found))

    if len(clean) == 1:
        return clean
    with real_rows(forward, arguments), torch.no_grad():
        found = accepted(0, min(most, len(clean)))
        if not found and len(clean) > most:
            found = accepted(most, len(clean))[:most]
    return found or clean[:most]


def _judge_ids(spec: AttributeSpec, forward: Forward, rows: Rows, device: str) -> list[str | None]:
    """The rows' reasons, with those of ids that the model does not know."""
    clean = _clean(rows)
    if not isinstance(forward, IdsModel) or not clean:
        return rows.reasons
    tensors = at_rows(spec, Given.of(rows))
    arguments = [t[clean].to(device) for t in tensors]
    with real_rows(forward, arguments):
        found = forward.unknown_ids(*arguments)
        unknown = dict(zip(clean, found, strict=True))
    return [reason or unknown.get(i) for i, reason in enumerate(rows.reasons)]


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """SpecError where memory runs out while the model is tried."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = device.type == "cuda"
        raise SpecError(
            "memory of the GPU" if on_gpu else "memory",
            expected="room for the model and a few rows of the job at once",
            seen=one_line(error),
            next_step=(
                "end what else holds memory there, raise compute.gpus_per_worker to 1, take a"
                " smaller compute.batch_rows, or a GPU with more"
                if on_gpu
                else "take a smaller compute.batch_rows, or a machine with more"
            ),
        ) from error


@contextmanager
def real_rows(forward: Forward, arguments: Sequence[Tensor]) -> Iterator[None]:
    """Whatever the model raises on real rows is the job's fault."""
    try:
        with enough_memory(arguments[0].device):
            yield
    except IntegrandError:
        raise
    except (Exception, SystemExit) as error:
        shapes = [list(a.shape) for a in arguments]
        ids = ", and no ids" if isinstance(forward, IdsModel) else ""
        raise SpecError(
            "model",
            expected="a forward pass over real rows",
            next_step=(
                "check shape, columns and dtypes of inputs and forward_args, compute.precision for"
                " a program whose dtype is fixed, and that the model takes them in this order; one"
                f" that takes a single number of rows needs compute.batch_rows{ids}"
            ),
            seen=(
                f"{type(error).__name__}: {one_line(error)}, for arguments of shape {shapes}, "
                f"{_other_batches(forward, arguments)}"
            ),
        ) from error


def _other_batches(forward: Forward, arguments: Sequence[Tensor]) -> str:
    """What the model does on other numbers of rows, tried here and now."""
    fitting = next((n for n in SIZES if runs(forward, arguments, n)), None)
    if fitting is None:
        return f"and for other batches of 1 to {max(SIZES):,} rows, copies of the first"
    return f"while it runs on {fitting} copies of the first"
