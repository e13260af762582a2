"""Cells of text tables as typed values: what cannot be parsed is null, with the row's first fault
beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from integrand.workers.data.columns import BAD

BATCH_ROWS, BATCH_CHARACTERS = 1024, 16 << 20
_INTEGER = re.compile(r"0|-?[1-9]\d{0,18}")
Parse = Callable[[Any], Any]


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


Taken = TypeVar("Taken", bound=_Sized)


@dataclass(frozen=True)
class Line:
    """One row as text: `cells` in the order of the columns asked for, or the fault that left it
    without.

    `size` is what it took in the file, roughly.
    """

    number: int
    cells: Sequence[Any] | None
    fault: str | None = None
    size: int = 0


def record_batches(
    lines: Iterator[Line],
    names: list[str],
    types: dict[str, pa.DataType],
    shapes: dict[str, tuple[int, ...]],
) -> Iterator[pa.RecordBatch]:
    """Batches of typed columns, of no more rows and characters than are held at once; the cuts
    change nothing.
    """
    while taken := some(lines):
        yield record_batch(taken, names, types, shapes)


def some(lines: Iterator[Taken], rows: int = BATCH_ROWS) -> list[Taken]:
    """The next rows, as many as are held at once."""
    taken: list[Taken] = []
    size = 0
    for line in islice(lines, rows):
        taken.append(line)
        size += line.size
        if size >= BATCH_CHARACTERS:
            break
    return taken


def record_batch(
    lines: Sequence[Line],
    names: list[str],
    types: dict[str, pa.DataType],
    shapes: dict[str, tuple[int, ...]],
) -> pa.RecordBatch:
    """Typed columns and `_bad`; the first fault of a row is kept, and only the cells at fault are
    null.
    """
    faults = [None if line.fault is None else f"line {line.number}: {line.fault}" for line in lines]
    blank = [None] * len(names)
    rows = [line.cells or blank for line in lines]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    arrays = []
    for name, column in zip(names, columns, strict=True):
        kind = types[name]
        parse = _parser(kind, shapes.get(name, ()))
        values, wrong = _parsed(column, parse)
        for row, fault in wrong.items():
            faults[row] = faults[row] or f"line {lines[row].number}: column {name}: {fault}"
        arrays.append(pa.array(values, kind))
    fields = [(name, types[name]) for name in names]
    fields.append((BAD, pa.string()))
    arrays.append(pa.array(faults, pa.string()))
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _parsed(cells: Sequence[Any], parse: Parse) -> tuple[list[Any], dict[int, str]]:
    """Values of a column, None for a cell at fault, and the faults by row."""
    if parse is _number:
        with suppress(ValueError, TypeError, OverflowError):
            return _plain_numbers(cells), {}
    values: list[Any] = [None] * len(cells)
    faults: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            values[row] = parse(cell)
        except ValueError as error:
            faults[row] = str(error)
    return values, faults


def _plain_numbers(cells: Sequence[Any]) -> list[float]:
    """All cells as floats, several times as fast as one by one; raises if any is empty, odd or no
    number.
    """
    if str in set(map(type, cells)) and "_" in "".join(cells):
        raise ValueError("a literal that is a number to Python alone")
    return list(map(float, cells))


def _parser(kind: pa.DataType, shape: tuple[int, ...]) -> Parse:
    if pa.types.is_list(kind):
        return partial(_numbers, shape=shape)
    if kind == pa.float64():
        return _number
    if kind == pa.int64():
        return _integer
    return _text


def _number(cell: Any) -> float | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, str) and (("_" in cell) or cell.lower() in ("true", "false")):
        return _truth(cell)
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{shown(cell)} is not a number") from None


def _truth(cell: str) -> float:
    """Booleans as pandas writes them; `1_000` is a number to Python alone."""
    if "_" in cell:
        raise ValueError(f"{shown(cell)} is not a number")
    return float(cell.lower() == "true")


def _integer(cell: Any) -> int | None:
    value = int(cell) if is_integer(cell) else _number(cell)
    if value is None or isinstance(value, int):
        return value
    if value != value or abs(value) >= 2.0**63 or value != int(value):
        raise ValueError(f"{shown(cell)} is not an integer")
    return int(value)


def is_integer(cell: Any) -> bool:
    if isinstance(cell, str):
        if _INTEGER.fullmatch(cell) is None:
            return False
        value = int(cell)
    elif isinstance(cell, int) and not isinstance(cell, bool):
        value = cell
    else:
        return False
    return -(2**63) <= value < 2**63


def _numbers(cell: Any, shape: tuple[int, ...]) -> list[float | None] | None:
    """A list of numbers, as JSON or as its text; one nested like `shape` is flattened."""
    if cell is None or cell == "":
        return None
    found = cell
    if isinstance(cell, str):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(f"{shown(cell)} is not a JSON list") from None
    if not isinstance(found, list):
        raise ValueError(f"{shown(cell)} is not a list")
    if any(isinstance(item, list) for item in found):
        found = _flattened(found, shape)
    return [_number(item) for item in found]


def _flattened(item: Any, shape: tuple[int, ...]) -> list[Any]:
    """The leaves of lists nested like `shape`."""
    if not shape:
        return [item]
    if not isinstance(item, list) or len(item) != shape[0]:
        raise ValueError(f"expected a list of {shape[0]}, seen {shown(item)}")
    leaves: list[Any] = []
    for inner in item:
        leaves += _flattened(inner, shape[1:])
    return leaves


def _text(cell: Any) -> str | None:
    if cell is None or cell == "":
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    if not is_utf8(text):  # JSON may escape half a surrogate pair, which is no character
        raise ValueError(f"{shown(cell)} is not Unicode")
    return text


def is_utf8(text: str) -> bool:
    """Whether a text can be stored: lone surrogates cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(cell: Any) -> str:
    text = repr(cell)
    if len(text) <= 60:
        return text
    return text[:57] + "..."
