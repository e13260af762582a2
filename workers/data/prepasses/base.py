"""A pass over all rows before the run: counted by row group, merged in order, stored once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load, save

from integrand.schemas.errors import IntegrityError
from integrand.schemas.ids import NUMERICS_VERSION, digest_json
from integrand.schemas.records import InputShape, PrepassFile, Slice, SourceFile
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.uris import Uri
from integrand.workers.data.columns import declared_columns
from integrand.workers.data.decoded import decoded
from integrand.workers.data.reading import read_slices
from integrand.workers.data.tensors import Rows, length_buckets, to_rows
from integrand.workers.storage.store import Store

BLOCK_ROWS = 1 << 16

Arrays = tuple[np.ndarray, ...]
"""What a pre-pass finds: one array for each input of the job, and then others."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """The data that a pre-pass goes over, and the job that makes tensors of it.

    shapes   of the inputs, as resolved against the data
    sizes    of the model's output after its rows, where columns name the target: a row that names
             no output is bad
    schema   of the dataset, all its columns
    """

    store: Store
    files: tuple[SourceFile, ...]
    spec: AttributeSpec
    shapes: tuple[InputShape, ...]
    sizes: tuple[int, ...] | None = None
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Every row group, as the numbers of its file and of itself."""
        found = []
        for number, file in enumerate(self.files):
            for row_group in range(len(file.row_groups)):
                found.append((number, row_group))
        return found

    def ends(self, file: int, row_group: int) -> tuple[int, int]:
        """Rows [first, last) of a row group in its file."""
        row_groups = self.files[file].row_groups
        first = sum(row_groups[:row_group])
        return first, first + row_groups[row_group]

    def read(
        self, file: int, first: int, last: int, also: Sequence[str] = ()
    ) -> Iterator[tuple[Slice, pa.Table]]:
        """Rows [first, last) of a file, in blocks: the columns that the job declares, and others
        that are asked for.
        """
        columns = tuple(dict.fromkeys([*declared_columns(self.spec), *also]))
        for start in range(first, last, BLOCK_ROWS):
            block = Slice(file=file, start=start, stop=min(last, start + BLOCK_ROWS))
            table = read_slices(self.store, self.files, [block], columns)
            yield block, decoded(self.store, self.spec, table)

    def tables(
        self, file: int, row_group: int, also: Sequence[str] = ()
    ) -> Iterator[tuple[Slice, pa.Table]]:
        """The rows of one row group, in blocks."""
        return self.read(file, *self.ends(file, row_group), also)

    def blocks(self, file: int, row_group: int) -> Iterator[Rows]:
        """The rows of one row group, in parts of one padded length."""
        for _, table in self.tables(file, row_group):
            for bucket in length_buckets(table, self.spec, self.shapes):
                yield to_rows(bucket.of(table), self.spec, bucket.shapes)

    def clean(self, rows: Rows) -> NDArray[np.bool_]:
        """`[rows]`: which rows no input, target or argument makes bad."""
        if rows.target is None or self.sizes is None:
            return rows.clean
        places = rows.target.reshape(len(rows.target), len(self.sizes)).numpy()
        known: NDArray[np.bool_] = np.less(places, self.sizes).all(axis=1)
        return rows.clean & known


Part = TypeVar("Part")


class PrePass(ABC, Generic[Part]):
    """Something that must be known of all clean rows before the first of them is attributed.

    An extender overrides `name`, `partial` and `merge`; `check` where what is found may be of no
    use, `stand_in` where it is no array of the shape of each input; `inputs_alone` and `uris` where
    other rows are gone over.
    """

    inputs_alone: ClassVar[bool] = False
    """Whether a row is bad by its inputs alone, whatever its target and arguments hold."""

    name: str
    """By which the plan holds what was found, and its object is called."""

    uris: tuple[str, ...] = ()
    """Where the dataset lies; none if that is the job's source."""

    def check_columns(self, schema: pa.Schema) -> None:
        """SpecError for a dataset whose columns are of no use."""
        return

    @abstractmethod
    def partial(self, scan: Scan, file: int, row_group: int) -> Part:
        """What one row group adds. It runs in workers: what it returns must pickle."""

    @abstractmethod
    def merge(self, partials: Sequence[Part]) -> Arrays | PrePass[Any]:
        """The partials of all row groups as one, the same in every bit whatever order they come in;
        or the pass that must go over the data next, knowing them.

        Raises DataError where no row is clean.
        """

    def condensed(self, partials: Sequence[Part]) -> Sequence[Part]:
        """The same in fewer partials, where these are large and adding them up rounds nothing: a
        driver holds those of few row groups at once.
        """
        return partials

    def check(self, found: Arrays, shapes: Sequence[InputShape]) -> None:
        """DataError for what cannot be used."""
        return

    def stand_in(self, shapes: Sequence[InputShape]) -> Arrays:
        """Arrays of the right shape, for a plan that is made before anything is counted."""
        return tuple(np.zeros(shape.shape) for shape in shapes)


def place_of(prepass: PrePass[Part], root: Uri, scan: Scan) -> Uri:
    """Where under the output root the pre-pass of these files lies: named by all that can change
    it.
    """
    spec = scan.spec
    parts = spec.model_dump(mode="json", include={"inputs", "forward_args", "target", "baseline"})
    if scan.sizes is not None:
        parts["outputs"] = scan.sizes[0] if len(scan.sizes) == 1 else list(scan.sizes)
    files = [[file.path, file.first_row, file.size, file.fingerprint] for file in scan.files]
    named_by = [NUMERICS_VERSION, spec.compute.storage, parts, files]
    digest = digest_json(named_by)[:32]
    return root.child("_ingest", digest, f"{prepass.name}-{digest}.safetensors")


def write_arrays(store: Store, uri: Uri, found: Arrays) -> PrepassFile:
    """Store what was found, once. IntegrityError if something else is there already."""
    named = {f"{i:04d}": np.ascontiguousarray(array) for i, array in enumerate(found)}
    data = save(named)
    digest = hashlib.sha256(data).hexdigest()
    with suppress(FileExistsError):
        store.create(uri, data)
    read_arrays(store, uri, digest)
    return PrepassFile(uri=str(uri), sha256=digest)


def stored_arrays(store: Store, uri: Uri) -> PrepassFile:
    """The record of what is there already."""
    data = store.read(uri)
    digest = hashlib.sha256(data).hexdigest()
    return PrepassFile(uri=str(uri), sha256=digest)


def read_arrays(store: Store, uri: Uri, sha256: str) -> Arrays:
    """The arrays as written, one for each input. IntegrityError if the object is gone or not the
    one planned.
    """
    try:
        data = store.read(uri)
    except FileNotFoundError:
        data = b""
    seen = hashlib.sha256(data).hexdigest()
    if seen != sha256:
        raise IntegrityError(
            str(uri),
            expected=f"what was counted over the dataset, with sha256 {sha256}",
            seen=seen if data else "no object",
            next_step="delete the object if it exists, and plan again",
        )
    return tuple(values for _, values in sorted(load(data).items()))
