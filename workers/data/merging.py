"""Files that were written apart as one table: a type for each column that holds what all have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import pyarrow as pa

from integrand.schemas.errors import DataError
from integrand.schemas.records import SourceFile
from integrand.workers.data.columns import BAD, is_number
from integrand.workers.data.partitions import hive_values, partition_columns


def source_schema(
    files: Sequence[SourceFile], schemas: Sequence[pa.Schema], columns: Sequence[str]
) -> pa.Schema:
    """All columns: those of `columns` in one type for all files, others as the first file has them,
    partition columns last.

    Raises DataError where one of `columns` is of unlike types, or is in some files and not in
    others. What a job does not read may be of any type, and there any number of times.
    """
    taken = set(columns) - {BAD}
    fields = [field for schema in schemas for field in schema.remove_metadata()]
    first = {field.name: field for field in reversed(fields)}
    names = list(dict.fromkeys(field.name for field in fields))
    merged: list[pa.Field] = []
    for name in names:
        if name in taken:
            _check_everywhere(files, schemas, name)
            times = max(len(schema.get_all_field_indices(name)) for schema in schemas)
            common = _common_field(files, schemas, name)
            merged += [common] * times
        else:
            merged.append(first[name])
    partitions = partition_columns(file.path for file in files)
    extra = [pa.field(name, kind) for name, kind in partitions.items() if name not in names]
    return pa.schema([*merged, *extra])


def _check_everywhere(files: Sequence[SourceFile], schemas: Sequence[pa.Schema], name: str) -> None:
    lacking = [
        f
        for f, s in zip(files, schemas, strict=True)
        if name not in s.names and name not in hive_values(f.path)
    ]
    if lacking:
        raise DataError(
            lacking[0].uri,
            expected=f"column `{name}`, as in the other files",
            seen=f"no such column here ({len(lacking)} of {len(files)} files lack it)",
            next_step="write all files with one schema",
        )


def _common_field(files: Sequence[SourceFile], schemas: Sequence[pa.Schema], name: str) -> pa.Field:
    """A column in the type that holds what every file has in it."""
    found: pa.DataType | None = None
    for file, schema in zip(files, schemas, strict=True):
        for place in schema.get_all_field_indices(name):
            kind = schema.field(place).type
            try:
                found = kind if found is None else common_type(found, kind)
            except pa.ArrowException:
                raise DataError(
                    file.uri,
                    expected=f"column `{name}` as {found}, its type in {files[0].uri}",
                    seen=str(kind),
                    next_step="write all files with one schema",
                ) from None
    return pa.field(name, found)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of two, whatever their encoding. Raises ArrowTypeError for
    unlike ones.
    """
    if one == other:
        return one
    kinds = [_plain(one), _plain(other)]
    numbers = all(map(is_number, kinds))
    if numbers:  # a boolean beside other numbers is 0 or 1, in their own type
        kinds = [pa.int8() if pa.types.is_boolean(kind) else kind for kind in kinds]
        if [pa.types.is_decimal(kind) for kind in kinds].count(True) == 1:
            return pa.float64()
    schemas = [pa.schema([("x", kind)]) for kind in kinds]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without the choices of whoever wrote it: dictionaries, 64-bit offsets, views."""
    t = pa.types
    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    return pa.list_(_plain(kind.value_type)) if t.is_large_list(kind) else kind


def join_parts(parts: Sequence[pa.Table], *, lenient: bool) -> pa.Table:
    """Tables below each other, columns of unlike encodings in their common type; of unlike types as
    text, if `lenient`.
    """
    names = dict.fromkeys(name for part in parts for name in part.column_names)
    kinds = {
        name: [part.schema.field(name).type for part in parts if name in part.column_names]
        for name in names
    }
    unlike = {
        name: _type_of_all(found, lenient=lenient)
        for name, found in kinds.items()
        if len(set(found)) > 1
    }
    cast = [_cast(part, unlike) for part in parts] if unlike else parts
    return pa.concat_tables(cast, promote_options="permissive")


def _cast(part: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    fields = []
    for field in part.schema:
        kind = types.get(field.name, field.type)
        fields.append(field.with_type(kind))
    return part.cast(pa.schema(fields))


def _type_of_all(kinds: Sequence[pa.DataType], *, lenient: bool) -> pa.DataType:
    try:
        return reduce(common_type, kinds)
    except pa.ArrowException:
        if lenient:
            return pa.string()
        raise
