"""JSON lines: one object in each line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from integrand.schemas.errors import DataError
from integrand.schemas.uris import Uri
from integrand.workers.data.cells import Line, is_utf8, shown, some
from integrand.workers.data.columns import BAD
from integrand.workers.data.formats.base import (
    LINE_BYTES,
    TextFormat,
    TextTable,
    Wanted,
    check_width,
)
from integrand.workers.data.signatures import HEAD


class JsonLines(TextFormat):
    """Cells are JSON values; no string is a whole number, since those who join on it tell "7" from
    7.
    """

    name = "json_lines"
    title = "JSON lines"
    extensions = (".jsonl", ".ndjson")
    near = MappingProxyType(
        {
            ".json": (
                "one object in each line is JSON lines: name it .jsonl, or set source.format:"
                " json_lines"
            )
        }
    )

    def table(self, stream: BinaryIO, uri: Uri, wanted: Wanted) -> TextTable:
        """The columns that are not declared are the keys of the first object."""
        objects = _json_objects(stream, uri)
        first = next(objects, None)
        keys = first.found or {} if first else {}
        _check_objects(first, wanted.columns, uri)
        check_width(keys, uri)
        known = {*wanted.columns, *wanted.partitions, BAD}
        names = [name for name in wanted.columns if name not in wanted.partitions]
        names += [key for key in keys if key not in known and is_utf8(key)]
        rows = chain([first] if first else [], objects)
        return TextTable(names, _picked(rows, names))

    def head(self, stream: BinaryIO, uri: Uri, wanted: Wanted, rows: int) -> TextTable:
        """All keys of the first objects."""
        found = some(_json_objects(stream, uri), rows)
        first = found[0] if found else None
        _check_objects(first, wanted.columns, uri)
        keys: dict[str, None] = {}
        for row in found:
            keys |= dict.fromkeys(row.found or {})
        names = [key for key in keys if key != BAD and is_utf8(key)]
        check_width(names, uri)
        return TextTable(names, _picked(iter(found), names))


class _Row(NamedTuple):
    """One line: the object that it is, or the fault that left it without; `size` is what it took in
    the file.

    `text` is how a line without an object begins.
    """

    number: int
    found: dict[str, Any] | None
    fault: str | None
    size: int
    text: bytes = b""


def _check_objects(first: _Row | None, wanted: Sequence[str], uri: Uri) -> None:
    """Raises DataError for a JSON document that is no lines of objects, and for columns that lie
    within an object.
    """
    if first is None:
        return
    begins = first.text.strip()
    array = begins[:1] == b"[" and begins[1:].lstrip()[:1] in (b"", b"{", b"[")
    if first.found is None and (array or begins == b"{"):
        raise DataError(
            str(uri),
            expected="JSON lines: one object in each line",
            seen=f"a JSON document: {'an array' if array else 'an object over several lines'}",
            next_step="write lines: jq -c '.[]', or df.to_json(..., orient='records', lines=True)",
        )
    nested = next((name for name in wanted if _within(first.found or {}, name)), None)
    if nested is not None:
        raise DataError(
            str(uri),
            expected=f"column `{nested}` as a key of its own",
            seen=f"a field of the object `{nested.split('.')[0]}`",
            next_step=(
                "flatten the objects: pandas.json_normalize(...).to_json(..., orient='records',"
                " lines=True)"
            ),
        )


def _within(found: dict[str, Any], name: str) -> bool:
    """Whether a dotted name leads into objects, and is no key itself."""
    value: Any = found
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return name not in found and "." in name and value is not None


def _json_objects(stream: BinaryIO, uri: Uri) -> Iterator[_Row]:
    """Every line that is not blank."""
    for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), 1):
        if len(line) == LINE_BYTES:
            raise DataError(
                f"{uri} line {number}",
                expected=f"lines below {LINE_BYTES} bytes",
                seen="a longer one",
                next_step="is this JSON lines? set source.format",
            )
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            found, fault = _json_object(text)
            yield _Row(number, found, fault, len(line), b"" if fault is None else text[:HEAD])


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys is there twice: only the last value would be left."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key in counts if counts[key] > 1)
        raise ValueError(f"key {shown(repeated)} is given twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_with_distinct_keys)


def _json_object(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        found = _JSON.decode(line.decode())
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {error}"[:200]
    if not isinstance(found, dict):
        return None, f"expected an object, seen {shown(found)}"
    return found, None


def _picked(objects: Iterator[_Row], names: list[str]) -> Iterator[Line]:
    for row in objects:
        cells = None
        if row.found is not None:
            cells = [row.found.get(name) for name in names]
        yield Line(row.number, cells, row.fault, row.size)
