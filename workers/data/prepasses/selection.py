"""Rows of a dataset that are chosen before the run: one by name, or some at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.records import InputShape, Slice
from integrand.workers.data.conditions import check_repeatable, matching_rows, sandbox
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan
from integrand.workers.data.reading import row_ids
from integrand.workers.data.tensors import Rows, length_buckets, to_rows
from integrand.workers.data.values import as_texts
from integrand.workers.philox import keys_of, uniforms

_STREAM = 1 << 30
"""Of the random numbers by which rows are chosen."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a row lies, sorted by its turn: rows of lower turns are chosen first."""

    turn: float
    file: int
    row: int


@dataclass(frozen=True, eq=False)
class Candidates:
    """The first rows of one row group, and how many may be chosen there."""

    count: int
    places: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """A chosen row, or why it cannot be one: each input's values, ids `[length]` for one of ids."""

    place: Place
    values: Arrays
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Selection(PrePass[Candidates]):
    """Chooses `count` rows at random without replacement, or the one that there is.

    A row's turn is a random number of the seed and its id: the rows of the lowest turns are taken,
    so that they are the same whatever row groups, order and workers, and fewer rows are the first
    of more. Rows with a bad input have no turn.

    where  rows for which this DuckDB expression is true; all, if it is None
    row    the row of this id
    seed   None where exactly one row must be there, bad or not
    """

    name: str
    where: str | None = None
    row: str | None = None
    count: int = 1
    seed: int | None = None
    uris: tuple[str, ...] = ()

    inputs_alone = True

    def check_columns(self, schema: pa.Schema) -> None:
        """SpecError for an expression that cannot be evaluated over the dataset's columns, or that
        may be true of other rows tomorrow.
        """
        if self.where is not None:
            with sandbox() as connection:
                where = f"baseline.where `{self.where}`"
                matching_rows(connection, schema.empty_table(), self.where, where)
                check_repeatable(connection, self.where, where)

    def partial(self, scan: Scan, file: int, row_group: int) -> Candidates:
        found: list[Place] = []
        count = 0
        for rows, table in scan.tables(file, row_group, self._mentioned(scan)):
            numbers = self._allowed(scan, rows, table)
            count += len(numbers)
            turns = self._turns(_ids(scan, rows, table).take(pa.array(numbers)))
            first = turns.argsort(kind="stable")[: self.count]
            pairs = zip(turns[first].tolist(), (rows.start + numbers[first]).tolist(), strict=True)
            found += [Place(turn, file, row) for turn, row in pairs]
        return Candidates(count, tuple(sorted(found)[: self.count]))

    def condensed(self, partials: Sequence[Candidates]) -> Sequence[Candidates]:
        places = chain.from_iterable(one.places for one in partials)
        first = tuple(sorted(places)[: self.count])
        return (Candidates(sum(one.count for one in partials), first),)

    def merge(self, partials: Sequence[Candidates]) -> Arrays | PrePass[tuple[Row, ...]]:
        """The pass that fetches the chosen rows. Raises DataError where they are too few, SpecError
        where a name is that of none or of several.
        """
        (found,) = self.condensed(partials)
        count = found.count
        if self.seed is None and count != 1:
            raise SpecError(
                "baseline: row",
                expected=f"exactly one row{self._named}",
                seen=f"{count:,}",
                next_step="name one row of the dataset",
            )
        if count < self.count:
            raise DataError(
                "baseline: training",
                expected=f"{self.count:,} clean rows to draw{self._named}",
                seen=f"{count:,}",
                next_step="take fewer draws, or a wider `where`",
            )
        return Fetch(name=self.name, places=found.places, uris=self.uris)

    def stand_in(self, shapes: Sequence[InputShape]) -> Arrays:
        return tuple(np.zeros((self.count, *shape.shape)) for shape in shapes)

    @property
    def _named(self) -> str:
        if self.row is not None:
            return f" of id {self.row!r}"
        return "" if self.where is None else f" with `{self.where}`"

    def _mentioned(self, scan: Scan) -> tuple[str, ...]:
        """The dataset's columns that the expression may be about."""
        sql = (self.where or "").casefold()
        return tuple(name for name in scan.schema.names if name.casefold() in sql)

    def _allowed(self, scan: Scan, rows: Slice, table: pa.Table) -> NDArray[np.int64]:
        """Numbers of the rows of a block that may be chosen."""
        numbers = self._matching(scan, rows, table)
        if self.seed is None:
            return numbers
        return numbers[_clean(scan, table.take(pa.array(numbers)))]

    def _matching(self, scan: Scan, rows: Slice, table: pa.Table) -> NDArray[np.int64]:
        if self.row is not None:
            texts = np.array(as_texts(_ids(scan, rows, table)), object)
            return np.flatnonzero(texts == self.row)
        if self.where is None:
            return np.arange(table.num_rows)
        with sandbox() as connection:
            return matching_rows(connection, table, self.where, "baseline.where")

    def _turns(self, ids: pa.Array) -> NDArray[np.float64]:
        if self.seed is None:
            return np.zeros(len(ids))
        keys = keys_of(as_texts(ids))
        drawn = uniforms(keys, seed=self.seed, stream=_STREAM, draws=range(1), count=1)
        turns: NDArray[np.float64] = drawn.flatten().numpy()
        return turns


@dataclass(frozen=True, kw_only=True)
class Fetch(PrePass[tuple[Row, ...]]):
    """Reads the rows that were chosen: `[rows, *shape]` of each input in model units, in their
    order; of ids int64 `[rows, length]`, PADDING after those of a shorter list. Last comes where
    they lie, `[rows, 2]` int64: file and row.
    """

    name: str
    places: tuple[Place, ...]
    uris: tuple[str, ...] = ()

    inputs_alone = True

    def partial(self, scan: Scan, file: int, row_group: int) -> tuple[Row, ...]:
        first, last = scan.ends(file, row_group)
        here = [p for p in self.places if p.file == file and first <= p.row < last]
        return tuple(_read(scan, place) for place in here)

    def merge(self, partials: Sequence[tuple[Row, ...]]) -> Arrays:
        """Raises DataError for a row with a reason against it."""
        rows = sorted(chain.from_iterable(partials), key=lambda row: row.place)
        wrong = next((row.reason for row in rows if row.reason is not None), None)
        if wrong is not None:
            raise DataError("baseline: row", expected="a clean row", seen=wrong)
        by_input = zip(*(row.values for row in rows), strict=True)
        places = np.array([[row.place.file, row.place.row] for row in rows], np.int64)
        return (*(_stacked(values) for values in by_input), places)


def _read(scan: Scan, place: Place) -> Row:
    (table,) = (table for _, table in scan.read(place.file, place.row, place.row + 1))
    (bucket,) = length_buckets(table, scan.spec, scan.shapes)
    rows = to_rows(table, scan.spec, bucket.shapes)
    return Row(place, _values(scan, rows), rows.reasons[0])


def _values(scan: Scan, rows: Rows) -> Arrays:
    """What the one row holds in each input: numbers, or ids."""
    ids = iter(rows.forward_args)
    found = []
    for one, values in zip(scan.spec.inputs, rows.inputs, strict=True):
        tensor = next(ids) if one.modules else values
        found.append(tensor[0].numpy())
    return tuple(found)


def _stacked(values: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of ids that vary in length are filled up."""
    longest = max(one.shape for one in values)
    if all(one.shape == longest for one in values):
        return np.stack(values)
    filled = np.full((len(values), *longest), PADDING, np.int64)
    for row, one in zip(filled, values, strict=True):
        row[: len(one)] = one
    return filled


def _clean(scan: Scan, table: pa.Table) -> NDArray[np.bool_]:
    clean = np.zeros(table.num_rows, bool)
    for bucket in length_buckets(table, scan.spec, scan.shapes):
        clean[bucket.rows] = to_rows(bucket.of(table), scan.spec, bucket.shapes).clean
    return clean


def _ids(scan: Scan, rows: Slice, table: pa.Table) -> pa.Array:
    return row_ids(scan.files, [rows], table, scan.spec.source.row_id)
