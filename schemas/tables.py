"""Arrow schemas and column names of every output table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import product
from typing import Literal

import pyarrow as pa


class RowStatus(StrEnum):
    """What became of one output row. Only the last three have null attributions."""

    ok = "ok"
    at_precision_floor = "at_precision_floor"
    not_converged = "not_converged"
    unchecked = "unchecked"
    bad_input = "bad_input"
    nonfinite = "nonfinite"
    failed = "failed"


class ReasonsStatus(StrEnum):
    """How certain the reasons of one output row are."""

    certified = "certified"
    order_uncertain = "order_uncertain"
    none_toward = "none_toward"
    not_converged = "not_converged"
    prohibited = "prohibited"


CONVERGED = (RowStatus.ok, RowStatus.at_precision_floor)
WITHOUT_ATTRIBUTION = (RowStatus.bad_input, RowStatus.nonfinite, RowStatus.failed)
PREFIX = "attr."
PLACES = "index."
"""Begins the names of columns that say where the largest attributions of an input are."""
Role = Literal["attr", "group", "mean_gradient", "spread"]
BESIDE: dict[Role, str] = {
    "group": (
        "Where output.with_features asks for groups beside features: the sum of a group's"
        " attributions; a feature in no group has a column too, so that they add up."
    ),
    "mean_gradient": "Where output.mean_gradients asks for it: ∫ ∂f/∂x_i dα on the path.",
    "spread": (
        "Where output.spread asks for it: standard deviation of an attribution over the baselines"
        " of its row."
    ),
}
"""Columns beside attributions, one for each of these under a prefix of their own."""
PREFIXES = (PREFIX, *(f"{role}." for role in BESIDE))
"""What the names of columns with a number for each feature begin with."""

COLUMNS: dict[str, str] = {
    "row_id": "The source's row_id column, or `<relative path>#<row>`.",
    "target": "Index of the explained output; null for scalar outputs, `1,0` for tensor outputs.",
    "status": "What became of the row: see the table of statuses.",
    "reason": "Why, for every status but ok and unchecked; null for those.",
    "f_input": "f(x): the explained output at the row.",
    "f_baseline": "f(x'): the explained output at its baseline.",
    "attribution_sum": "Sum of the row's attributions, in float64.",
    "gap": "attribution_sum − (f(x) − f(x')), signed, in units of f.",
    "error_estimate": "Estimated ‖a − a*‖₁ / ‖a‖₁; null where the rule gives none.",
    "evaluations": "Gradient evaluations that the row cost, as if it ran alone.",
}

OPTIONAL_COLUMNS: dict[str, str] = {
    "baseline_spread": (
        "Where rows have several baselines: root mean square over them of ‖a_k − ā‖₁, divided by"
        " ‖ā‖₁; null where there is no attribution."
    ),
    "draws": "Where rows have several baselines: how many the attributions are the mean of.",
    "reasons": (
        "Where `output.reasons` asks: what pushed f most, in order: rank, code, feature (of several"
        " with that code the one that pushed most), its value in the source as text, contribution"
        " (in units of f), share (of all that pushed the same way), separated (whether it is ahead"
        " of the next for certain), text; null where `when` does not hold or there is no"
        " attribution."
    ),
    "reasons_agree": (
        "Where rows have several baselines and reasons: share of the baselines against which alone"
        " the first reason is the same; null where the method does not take each by itself."
    ),
    "reasons_status": "Beside it: how certain the reasons are, see the table of these.",
    "token_end": "Where an input is a text: the character behind each token in it.",
    "token_special": "Beside it: which of them the tokenizer added, such as `[CLS]`.",
    "token_start": "Beside it: the first character of each token, from 0; both 0 of a special one.",
    "token_word": "Beside it: number of the word that each token is part of, from 0.",
    "tokens": "Beside it: the tokens as the tokenizer's vocabulary has them, one for each of attr.",
    "tokens_left_out": "Beside it: how many tokens are left out of its end, see `long`.",
    "words": "Beside it: the words, as they stand in the text; a special token is one of its own.",
}
"""Columns of runs that ask for them, behind the attributions and by name."""
REASON = pa.struct(
    [
        ("rank", pa.int32()),
        ("code", pa.string()),
        ("feature", pa.string()),
        ("value", pa.string()),
        ("contribution", pa.float64()),
        ("share", pa.float64()),
        ("separated", pa.bool_()),
        ("text", pa.string()),
    ]
)
"""One reason of a row."""
OPTIONAL_TYPES: dict[str, pa.DataType] = {
    "baseline_spread": pa.float64(),
    "draws": pa.int32(),
    "reasons": pa.list_(REASON),
    "reasons_agree": pa.float64(),
    "reasons_status": pa.string(),
    "token_end": pa.list_(pa.int32()),
    "token_special": pa.list_(pa.bool_()),
    "token_start": pa.list_(pa.int32()),
    "token_word": pa.list_(pa.int32()),
    "tokens": pa.list_(pa.string()),
    "tokens_left_out": pa.int32(),
    "words": pa.list_(pa.string()),
}
"""Null where a float is NaN and where anything but a number is None."""


def output_schema(
    row_id: pa.DataType,
    target: pa.DataType,
    attributions: list[pa.Field],
    optional: Sequence[str] = (),
) -> pa.Schema:
    """Schema of a shard's object: the ten columns of COLUMNS, then the attributions, then the
    optional columns that there are.
    """
    types = {
        "row_id": row_id,
        "target": target,
        "status": pa.string(),
        "reason": pa.string(),
        "evaluations": pa.int32(),
    }
    fields = [pa.field(name, types.get(name, pa.float64())) for name in COLUMNS]
    behind = [pa.field(name, OPTIONAL_TYPES[name]) for name in optional]
    return pa.schema(fields + attributions + behind)


def feature_fields(
    features: tuple[str, ...], value: pa.DataType, role: Role = "attr"
) -> list[pa.Field]:
    """One column per named feature."""
    return [pa.field(f"{role}.{name}", value) for name in features]


def tensor_field(
    name: str, shape: tuple[int, ...], value: pa.DataType, role: Role = "attr"
) -> pa.Field:
    """One fixed-size-list column for a whole input; its shape is in the field's metadata."""
    lists = pa.list_(value, math.prod(shape))
    metadata = {"shape": json.dumps(list(shape))}
    return pa.field(f"{role}.{name}", lists, metadata=metadata)


def list_field(name: str, value: pa.DataType, role: Role = "attr") -> pa.Field:
    """One list column for an input whose rows have lengths of their own."""
    return pa.field(f"{role}.{name}", pa.list_(value))


def top_fields(
    name: str, shape: tuple[int, ...] | None, features: tuple[str, ...], value: pa.DataType
) -> list[pa.Field]:
    """Two list columns for the largest attributions of an input and their places in it, flat and
    from 0. Of named features the metadata has the names, of a tensor its shape.
    """
    metadata = {"index": PLACES + name}
    if features:
        metadata["features"] = json.dumps(list(features))
    elif shape:
        metadata["shape"] = json.dumps(list(shape))
    values = pa.field(PREFIX + name, pa.list_(value), metadata=metadata)
    return [values, pa.field(PLACES + name, pa.list_(pa.int32()))]


def places_column(field: pa.Field) -> str | None:
    """Which column says where the values of this one are, if it holds the largest ones alone."""
    metadata = field.metadata or {}
    found = metadata.get(b"index")
    return None if found is None else str(found.decode())


def tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """Shape that a tensor column declares, or None for a plain column."""
    metadata = field.metadata or {}
    if b"shape" not in metadata:
        return None
    return tuple(json.loads(metadata[b"shape"]))


def feature_names(field: pa.Field, length: int | None = None) -> list[str]:
    """Names of the features in an attribution column: the column's own, or `image[0,12,3]` for each
    tensor element.

    A list of varying length is one feature, or `length` of them where one row is meant.
    """
    name = field.name.removeprefix(PREFIX)
    named = (field.metadata or {}).get(b"features")
    if named is not None:
        return list(json.loads(named))
    shape = tensor_shape(field)
    if shape is None and pa.types.is_list(field.type) and length is not None:
        return [f"{name}[{i}]" for i in range(length)]
    if shape is None and pa.types.is_fixed_size_list(field.type):
        shape = (field.type.list_size,)
    if shape is None:
        return [name]
    names = []
    for index in product(*map(range, shape)):
        place = ",".join(map(str, index))
        names.append(f"{name}[{place}]")
    return names
