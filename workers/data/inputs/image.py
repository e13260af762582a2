"""One column of encoded pictures, decoded as soon as its rows are read."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import ImageInput
from integrand.schemas.uris import Uri
from integrand.workers.data.columns import check_column
from integrand.workers.data.gathering import storage_of
from integrand.workers.data.inputs.base import InputArrays
from integrand.workers.data.inputs.scaled import Scaled, check_scaling
from integrand.workers.data.pictures import BadPicture, pillow, pixels_of
from integrand.workers.data.reasons import Reasons
from integrand.workers.data.scaling import scale
from integrand.workers.storage.store import Store

MOST_BYTES = 256 << 20
"""Of an encoded picture below a root."""


class Image(Scaled[ImageInput]):
    """`[rows, channels, height, width]`. Decoding is most of the work and knows nothing of the
    model, so `decode` does it where rows are read, ahead of the shard that is computed.
    """

    judged_first = True

    def resolve(self, schema: pa.Schema, part: ImageInput) -> InputShape:
        pillow()
        kind = check_column(schema, part.image)
        if not _holds(kind, paths=part.root is not None):
            raise _unfit(kind, part)
        check_scaling(part, part.shape)
        return InputShape(name=part.name, columns=(part.image,), shape=part.shape, named=False)

    def decode(
        self, store: Store, table: pa.Table, part: ImageInput, tick: Callable[[], None]
    ) -> pa.Table:
        """The table with two more columns: the pixels of each row, zeros where there are none, and
        why not.
        """
        cells = _cells(table.column(part.image))
        width = prod(part.shape)
        pixels = np.zeros((len(cells), width), np.uint8)
        faults: list[str | None] = []
        read = _Reading(store, part)
        for row, cell in enumerate(cells):
            try:
                pixels[row] = pixels_of(read.bytes_of(cell), part).reshape(-1)
                faults.append(None)
            except BadPicture as error:
                faults.append(f"{part.image} {error}")
            tick()
        flat = pa.array(pixels.reshape(-1))
        columns = (pa.FixedSizeListArray.from_arrays(flat, width), pa.array(faults, pa.string()))
        for name, column in zip(_added(part), columns, strict=True):
            table = table.append_column(name, column)
        return table

    def read(
        self,
        table: pa.Table,
        part: ImageInput,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        pixels, faults = (table.column(name) for name in _added(part))
        for row, fault in enumerate(faults.to_pylist()):
            reasons[row] = reasons[row] or fault
        flat: NDArray[Any] = pixels.combine_chunks().flatten().to_numpy()
        values = flat.reshape(-1, *shape.shape).astype(dtype)
        return InputArrays(scale(values, part, shape))


def _added(part: ImageInput) -> tuple[str, str]:
    """Names of the columns that decoding adds."""
    return f"_pixels.{part.name}", f"_fault.{part.name}"


def _holds(kind: pa.DataType, *, paths: bool) -> bool:
    """Whether a column's type holds pictures, or paths of them."""
    t = pa.types
    if t.is_dictionary(kind):
        return _holds(kind.value_type, paths=paths)
    if paths:
        return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))
    if t.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds(kind.field(place).type, paths=False)
    return bool(t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind))


def _unfit(kind: pa.DataType, part: ImageInput) -> SpecError:
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    expected = "bytes, or structs with a field `bytes`"
    step = "pixels that are numbers already go in as `column: ...` with a shape"
    if part.root is not None:
        expected, step = "strings: paths below `root`", "leave out `root` for a column of bytes"
    elif texts:
        step = f"give inputs.{part.name}.root, the folder that these paths start from"
    return SpecError(f"column `{part.image}`", expected=expected, seen=str(kind), next_step=step)


def _cells(column: pa.ChunkedArray) -> list[bytes | None]:
    """Bytes, of pictures or of their paths; None where there are none."""
    column = storage_of(column)
    if pa.types.is_struct(column.type):
        parts = [chunk.flatten()[_place(chunk)] for chunk in column.chunks]
        column = pa.chunked_array(parts, column.type.field("bytes").type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # what is no UTF-8 is a row's fault
    return list(column.to_pylist())


def _place(structs: pa.StructArray) -> int:
    return int(structs.type.get_field_index("bytes"))


@dataclass(frozen=True)
class _Reading:
    """Where the bytes of a row's picture come from."""

    store: Store
    part: ImageInput

    def bytes_of(self, cell: bytes | None) -> bytes:
        """Raises BadPicture where there are none."""
        if cell is None:
            raise BadPicture("is null")
        if self.part.root is None:
            return cell
        place = self._below_root(cell, self.store.parse(self.part.root))
        try:
            return self._read(place)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise BadPicture(f"is {_shown(cell)}: no such file below root") from None

    def _read(self, place: Uri) -> bytes:
        with self.store.open(place) as file:
            data = file.read(MOST_BYTES + 1) or b""
        if len(data) > MOST_BYTES:
            raise BadPicture(f"takes more than {MOST_BYTES} bytes")
        return data

    def _below_root(self, cell: bytes, root: Uri) -> Uri:
        """The place that a path names. Raises BadPicture for one that leads out of the root, be it
        through a link.
        """
        try:
            path = PurePosixPath(cell.decode())
        except UnicodeDecodeError:
            raise BadPicture("is a path that is no UTF-8") from None
        leaves = path.is_absolute() or ".." in path.parts or "\0" in str(path)
        if leaves or not path.parts or "://" in str(path):
            raise BadPicture(f"is {_shown(cell)}: expected a path below root")
        place = root.child(*path.parts)
        if place.scheme == "file":
            real, top = os.path.realpath(place.path), os.path.realpath(root.path)
            if os.path.commonpath([real, top]) != top:
                raise BadPicture(f"is {_shown(cell)}: a link that leads out of root")
        return place


def _shown(cell: bytes) -> str:
    return repr(cell.decode(errors="backslashreplace"))[:120]
