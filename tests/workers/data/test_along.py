"""Forward arguments that are lists as long as the ids of their rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import Rows, length_buckets, to_rows

IDS = [[5, 6, 7], [8], [9, 10], [1, 2, 3]]


def spec(arg: dict[str, Any], **changes: Any) -> AttributeSpec:
    fields = {
        "name": "t",
        "source": {"uri": "/d"},
        "model": {"kind": "factory", "entrypoint": "m:f"},
        "inputs": [{"name": "tok", "ids": "ids", "embedding": "words", "pad": 0}],
        "forward_args": [{"name": "types", "column": "tt"} | arg],
        "output": {"uri": "/o"},
    }
    return parse_spec(fields | changes)


def read(types: Any, arg: dict[str, Any], kind: pa.DataType | None = None) -> Rows:
    lists = pa.array(types, kind or pa.list_(pa.int64()))
    table = pa.table({"ids": pa.array(IDS, pa.list_(pa.int64())), "tt": lists})
    job = spec(arg)
    (bucket,) = length_buckets(table, job, resolve_columns(table.schema, job))
    return to_rows(table, job, bucket.shapes)


def test_lists_follow_the_ids_and_are_filled_up_like_them() -> None:
    rows = read([[0, 0, 1], [1], [0, 1], [1, 1, 1]], {"dtype": "int64", "fill": 4})
    assert rows.reasons == [None] * 4
    assert rows.forward_args[1].tolist() == [
        [0, 0, 1, 4, 4, 4, 4, 4],
        [1, 4, 4, 4, 4, 4, 4, 4],
        [0, 1, 4, 4, 4, 4, 4, 4],
        [1, 1, 1, 4, 4, 4, 4, 4],
    ]
    assert rows.forward_args[1].dtype == torch.int64


def test_what_is_wrong_with_a_list_is_its_rows_reason() -> None:
    rows = read([[0, 0], None, [0, None], [1, 1, 1]], {"dtype": "int64"})
    assert rows.reasons == [
        "tt has 2 values, expected 3, one for each id",
        "tt has no list, expected 1, one for each id",
        "tt[1] is null",
        None,
    ]
    assert rows.forward_args[1][:3].abs().sum() == 0


def test_flags_and_floats_are_judged_by_their_dtype() -> None:
    flags = read([[0, 1, 2], [1], [0, 1], [1, 1, 1]], {"dtype": "bool"})
    assert flags.reasons == ["tt[2] is 2: expected 0 or 1", None, None, None]
    floats = pa.list_(pa.float64())
    rows = read([[0.5, 1, 2], [float("nan")], [0, 1], [1, 1, 1]], {"fill": -1}, floats)
    assert rows.reasons == [None, "tt[0] is NaN", None, None]
    assert rows.forward_args[1][0].tolist() == [0.5, 1, 2, -1, -1, -1, -1, -1]


def test_of_several_inputs_one_must_be_named() -> None:
    inputs = [
        {"name": name, "ids": name, "embedding": module, "pad": 0}
        for name, module in (("a", "words"), ("b", "others"))
    ]
    lists = pa.list_(pa.int64())
    schema = pa.schema([("a", lists), ("b", lists), ("tt", lists)])
    with pytest.raises(SpecError, match="name the input in `along`"):
        resolve_columns(schema, spec({}, inputs=inputs))
    resolve_columns(schema, spec({"along": "b"}, inputs=inputs))
    with pytest.raises(SpecError, match="`along` names no input of ids: c"):
        spec({"along": "c"}, inputs=inputs)


def test_what_has_one_length_follows_nothing() -> None:
    fixed = pa.list_(pa.int64(), 3)
    schema = pa.schema([("ids", pa.list_(pa.int64())), ("tt", fixed)])
    resolve_columns(schema, spec({}))
    with pytest.raises(SpecError, match="along `tok`"):
        resolve_columns(schema, spec({"along": "tok"}))
    with pytest.raises(SpecError, match="`along` is for a `column` of lists"):
        spec({"along": "tok", "shape": [3]})
