"""Datasets that baselines name, and all the rows that pre-passes go over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.source import Source
from integrand.schemas.uris import Uri
from integrand.service.planning.datasets import Dataset, prepare_dataset
from integrand.service.pools.base import Mapper
from integrand.workers.data.prepasses.base import PrePass, Scan
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.storage.store import Store


@dataclass(frozen=True, eq=False)
class Reference:
    """The rows of one pre-pass.

    named  whether they are those of a dataset that a baseline names
    """

    prepass: PrePass[Any]
    dataset: Dataset
    spec: AttributeSpec
    shapes: tuple[InputShape, ...]
    named: bool

    def scan(self, store: Store, sizes: tuple[int, ...] | None) -> Scan:
        """`sizes` of the model's output, where target columns can make rows bad."""
        return Scan(
            store=store,
            files=self.dataset.files,
            spec=self.spec,
            shapes=self.shapes,
            sizes=None if self.prepass.inputs_alone else sizes,
            schema=self.dataset.schema,
        )


@dataclass(frozen=True, eq=False)
class Sources:
    """Where a job's data is found: what `prepare_dataset` takes beside the spec."""

    store: Store
    base: str
    output: Uri
    pool: Mapper
    ingest: bool


def references(
    spec: AttributeSpec,
    wanted: Sequence[PrePass[Any]],
    own: Dataset,
    shapes: tuple[InputShape, ...],
    sources: Sources,
) -> tuple[Reference, ...]:
    """The rows that each pre-pass goes over. Raises SpecError for a dataset without the inputs'
    columns, or whose columns make other shapes of them.
    """
    found = []
    for prepass in wanted:
        if not prepass.inputs_alone:
            found.append(Reference(prepass, own, spec, shapes, named=False))
            continue
        one = _reference(spec, prepass, own, shapes, sources)
        prepass.check_columns(one.dataset.schema)
        found.append(one)
    return tuple(found)


def _reference(
    spec: AttributeSpec,
    prepass: PrePass[Any],
    own: Dataset,
    shapes: tuple[InputShape, ...],
    sources: Sources,
) -> Reference:
    alone = spec.inputs_alone
    if not prepass.uris:
        return Reference(prepass, own, alone, shapes, named=False)
    source = Source(uri=prepass.uris)
    asked = alone.model_copy(update={"source": source})
    dataset = prepare_dataset(
        sources.store, asked, sources.base, sources.output, sources.pool, ingest=sources.ingest
    )
    where = f"baseline.uri {', '.join(prepass.uris)}"
    seen = _shapes_there(dataset, asked, where)
    for mine, other in zip(shapes, seen, strict=True):
        if mine.shape != other.shape and not mine.varying:
            expected = f"input `{mine.name}` of shape {list(mine.shape)}, as in the source"
            raise SpecError(where, expected=expected, seen=f"shape {list(other.shape)}")
    row_id = spec.source.row_id
    if row_id is not None and row_id in dataset.schema.names and not dataset.split:
        asked = asked.model_copy(update={"source": Source(uri=prepass.uris, row_id=row_id)})
    return Reference(prepass, dataset, asked, seen, named=True)


def _shapes_there(dataset: Dataset, spec: AttributeSpec, where: str) -> tuple[InputShape, ...]:
    try:
        return resolve_columns(dataset.schema, spec)
    except SpecError as error:
        raise SpecError(
            where,
            expected="a dataset with the columns that the inputs read",
            seen=" ".join(str(error).split()),
            next_step="name a dataset whose columns are those of the source",
        ) from None
