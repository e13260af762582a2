"""Which columns of a source a job takes, and what their types can hold; without reading a row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from math import prod

import pyarrow as pa

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.part import Part

BAD = "_bad"
"""Reserved column of ingested pieces: why the row could not be parsed, null for clean rows."""

TOKEN_BYTES = 64
"""Of a token of a text: ids, offsets and the token itself."""


def declared_columns(spec: AttributeSpec) -> tuple[str, ...]:
    """Every column that a worker reads, each once; the last is `_bad`, which only ingested pieces
    have.
    """
    names: list[str] = []
    if spec.source.row_id is not None:
        names.append(spec.source.row_id)
    for part in (*spec.inputs, *spec.baselines, *spec.passed, spec.target, spec.output):
        names += columns_of(part)
    names.append(BAD)
    return tuple(dict.fromkeys(names))


def columns_of(part: Part) -> tuple[str, ...]:
    """Names of the columns that a part reads, in order."""
    return tuple(read.column for read in part.reads)


def check_column(schema: pa.Schema, name: str) -> pa.DataType:
    """Type of a column. Raises SpecError with the nearest name if it is missing, or if it is there
    twice.
    """
    if name == BAD:
        raise SpecError(
            f"column `{BAD}`",
            expected="a column of another name",
            seen="the one that tells of bad rows",
            next_step="rename the column",
        )
    found = schema.get_all_field_indices(name)
    if len(found) == 1:
        return schema.field(found[0]).type
    known = [n for n in schema.names if n != BAD]
    near = difflib.get_close_matches(name, known, 1, 0.5)
    if _struct_of(schema, name) is not None:
        raise SpecError(
            f"column `{name}`",
            expected="a column of its own",
            seen=f"a field of the struct `{_struct_of(schema, name)}`",
            next_step=(
                "write the struct's fields as columns: pyarrow's table.flatten() names them so"
            ),
        )
    listed = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    raise SpecError(
        f"column `{name}`",
        expected="one column of this name in the source",
        seen=f"{len(found)} of them; the source has {listed or 'no columns'}",
        next_step=f"did you mean `{near[0]}`?" if near else "name one of its columns",
    )


def _struct_of(schema: pa.Schema, name: str) -> str | None:
    """The struct column that a dotted name leads into; None where it leads nowhere."""
    for place in (i for i, mark in enumerate(name) if mark == "."):
        outer, inner = name[:place], name[place + 1 :].split(".")[0]
        found = schema.get_all_field_indices(outer)
        if (
            found
            and pa.types.is_struct(schema.field(found[0]).type)
            and schema.field(found[0]).type.get_field_index(inner) >= 0
        ):
            return outer
    return None


def check_number(schema: pa.Schema, name: str) -> pa.DataType:
    """Type of a column of plain numbers or booleans. Raises SpecError for any other."""
    kind = check_column(schema, name)
    if is_number(kind):
        return kind
    _, levels = unnest(kind)
    if pa.types.is_struct(kind):
        step = "write the struct's fields as columns: pyarrow's table.flatten()"
    elif levels:
        step = "give it as `column:` with a shape"
    else:
        step = "encode it as numbers first"
    raise SpecError(f"column `{name}`", expected="a numeric column", seen=str(kind), next_step=step)


def check_scalar(schema: pa.Schema, name: str) -> pa.DataType:
    """Type of a column of plain values, fit for a row id. Raises SpecError for any other, lists and
    extensions too.
    """
    kind = check_column(schema, name)
    if is_plain(kind.value_type if pa.types.is_dictionary(kind) else kind):
        return kind
    raise SpecError(
        f"column `{name}`",
        expected="one plain value per row",
        seen=str(kind),
        next_step="name a column of integers or strings",
    )


def is_plain(kind: pa.DataType) -> bool:
    """True for the types a row id may have: numbers, strings, bytes, dates and times.

    Not those that Arrow cannot compare (half floats, views), and no nanoseconds of a day, which
    Python's times lack.
    """
    t = pa.types
    number = is_number(kind) and not t.is_float16(kind)
    text = t.is_string(kind) or t.is_large_string(kind)
    data = t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
    return (
        number
        or text
        or data
        or t.is_null(kind)
        or (t.is_temporal(kind) and kind != pa.time64("ns"))
    )


def is_number(kind: pa.DataType) -> bool:
    """True for the types a feature may have: integers, floats, booleans and decimals."""
    t = pa.types
    exact = t.is_integer(kind) or t.is_boolean(kind) or t.is_decimal(kind)
    return bool(exact or t.is_floating(kind))


def unnest(kind: pa.DataType) -> tuple[pa.DataType, tuple[int | None, ...]]:
    """What the lists of a type hold in the end, and each level's length, None where it varies."""
    sizes: list[int | None] = []
    kind = kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind
    while (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        sizes.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return kind, tuple(sizes)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    t = pa.types
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def row_bytes(schema: pa.Schema, shapes: Sequence[InputShape]) -> int:
    """What the inputs of one row take as they are stored, once they are decoded."""
    total = 0
    for shape in shapes:
        values = 1 if shape.named else prod(shape.shape)
        for name in shape.columns:
            leaf, _ = unnest(schema.field(name).type)
            tokens = shape.varying and is_text(leaf)
            total += (TOKEN_BYTES if tokens else _width(leaf)) * values
    return total


def _width(leaf: pa.DataType) -> int:
    """Bytes of a number; of a picture there is one for each pixel."""
    return (leaf.bit_width + 7) // 8 if is_number(leaf) else 1


def list_sizes(kind: pa.DataType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The length that each list level must have: nested like the shape, else flat."""
    _, levels = unnest(kind)
    if len(levels) == len(shape):
        return shape
    return (prod(shape),)


def column_shape(name: str, kind: pa.DataType, declared: tuple[int, ...]) -> tuple[int, ...]:
    """Row shape of a list or tensor column. Raises SpecError if it holds no numbers or cannot have
    that shape.
    """
    leaf, sizes = unnest(kind)
    if not is_number(leaf) or not sizes or _permuted(kind):
        step = f"use `columns: [{name}]`" if is_number(kind) else "store lists of numbers"
        raise SpecError(
            f"column `{name}`",
            expected="lists or tensors of numbers in row-major order",
            seen=str(kind),
            next_step=step,
        )
    natural = tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else sizes
    if not declared:
        known = tuple(n for n in natural if n is not None)
        if len(known) < len(natural):
            raise SpecError(
                f"column `{name}`",
                expected="a shape, since its lists vary in length",
                seen=str(kind),
                next_step="give the input's `shape`, for instance [1, 28, 28]",
            )
        return known
    wanted = list_sizes(kind, declared)
    if len(wanted) != len(sizes) or any(
        n not in (None, w) for n, w in zip(sizes, wanted, strict=True)
    ):
        raise SpecError(
            f"column `{name}`",
            expected=f"{prod(declared)} values for shape {list(declared)}, flat or nested like it",
            seen=str(kind),
            next_step="fix the input's `shape`",
        )
    return declared


def _permuted(kind: pa.DataType) -> bool:
    if not isinstance(kind, pa.FixedShapeTensorType):
        return False
    order = kind.permutation
    if order is None:
        return False
    return list(order) != sorted(order)
