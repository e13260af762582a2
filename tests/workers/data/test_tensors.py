"""Rows become tensors in model units; a bad row has a reason and never an exception."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings, strategies as st

from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import ColumnsInput
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.workers.data.scaling import scale, spread
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import Rows, length_buckets, to_rows


def spec(inputs: list[dict[str, Any]], **fields: Any) -> AttributeSpec:
    return parse_spec(
        {
            "name": "t",
            "source": {"uri": "/data"},
            "model": {"kind": "factory", "entrypoint": "m:f"},
            "inputs": inputs,
            "output": {"uri": "/out"},
        }
        | fields
    )


def convert(table: pa.Table, inputs: list[dict[str, Any]], **fields: Any) -> Rows:
    job = spec(inputs, **fields)
    return to_rows(table, job, resolve_columns(table.schema, job))


AB = [{"name": "f", "columns": ["a", "b"]}]
PIXELS = [{"name": "image", "column": "p", "shape": [1, 2, 2]}]


def test_every_numeric_type_becomes_the_same_numbers() -> None:
    values = [0, 1, 1, 0]
    types = [
        pa.int8(),
        pa.uint8(),
        pa.int32(),
        pa.uint32(),
        pa.int64(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.decimal128(5, 2),
        pa.decimal256(5, 2),
        pa.bool_(),
    ]
    table = pa.table({f"c{i}": pa.array(values, pa.int8()).cast(t) for i, t in enumerate(types)})
    rows = convert(table, [{"name": "f", "columns": table.column_names}])
    assert rows.reasons == [None] * 4
    assert rows.inputs[0].dtype == torch.float32
    assert torch.equal(
        rows.inputs[0], torch.tensor(values, dtype=torch.float32)[:, None].expand(4, len(types))
    )


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, pa.float64(), "b is null"),
        (None, pa.int32(), "b is null"),
        (float("nan"), pa.float64(), "b is NaN"),
        (float("inf"), pa.float32(), "b is inf"),
        (float("-inf"), pa.float64(), "b is -inf"),
        (1e300, pa.float64(), "b is 1e+300: not finite as float32 in model units"),
    ],
)
def test_a_bad_feature_is_named(value: Any, kind: pa.DataType, reason: str) -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0], "b": pa.array([4, value, 6], kind)})
    rows = convert(table, AB)
    assert rows.reasons == [None, reason, None]
    assert rows.inputs[0].tolist() == [[1, 4], [0, 0], [3, 6]]


def test_float64_holds_what_float32_cannot() -> None:
    table = pa.table({"a": [1.0], "b": [1e300]})
    rows = convert(table, AB, compute={"precision": "float64"})
    assert rows.reasons == [None]
    assert rows.inputs[0].tolist() == [[1.0, 1e300]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "p is null"),
        ([1, 2, 3], "p has 3 values, expected 4"),
        ([], "p has 0 values, expected 4"),
        ([1, 2, None, 4], "p[2] is null"),
        ([1, float("nan"), 3, 4], "p[1] is NaN"),
        ([1, 2, 3, float("-inf")], "p[3] is -inf"),
    ],
)
def test_a_bad_list_is_named(value: Any, reason: str) -> None:
    table = pa.table({"p": pa.array([[1, 2, 3, 4], value, [5, 6, 7, 8]], pa.list_(pa.float64()))})
    rows = convert(table, PIXELS)
    assert rows.reasons == [None, reason, None]
    assert rows.inputs[0].shape == (3, 1, 2, 2)
    assert rows.inputs[0].flatten(1).tolist() == [[1, 2, 3, 4], [0] * 4, [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2], None], "p[1] is null"),
        ([[1, 2], [3]], "p[1] has 1 values, expected 2"),
        ([[1, 2]], "p has 1 values, expected 2"),
        ([[1, 2], [None, 4]], "p[1][0] is null"),
        ([[1, 2, 3], [4]], "p[0] has 3 values, expected 2"),
    ],
)
def test_a_bad_nested_list_is_named(value: Any, reason: str) -> None:
    table = pa.table(
        {"p": pa.array([[[1, 2], [3, 4]], value], pa.list_(pa.large_list(pa.int64())))}
    )
    rows = convert(table, [{"name": "image", "column": "p", "shape": [2, 2]}])
    assert rows.reasons == [None, reason]
    assert rows.inputs[0].tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]]]


def test_tensors_and_fixed_lists_over_several_chunks() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6)
    table = pa.table(
        {
            "p": pa.chunked_array([tensor[:1], tensor[1:]]),
            "q": pa.chunked_array([fixed[:3], fixed[3:]]),
        }
    )
    rows = convert(
        table, [{"name": "t", "column": "p"}, {"name": "u", "column": "q", "shape": [2, 3]}]
    )
    assert torch.equal(rows.inputs[0], torch.from_numpy(values))
    assert torch.equal(rows.inputs[1], torch.from_numpy(values))
    sliced = convert(table.slice(1, 2), [{"name": "t", "column": "p"}])
    assert torch.equal(sliced.inputs[0], torch.from_numpy(values[1:3]))


def test_a_null_tensor_row() -> None:
    storage = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    table = pa.table(
        {"p": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), storage)}
    )
    rows = convert(table, [{"name": "t", "column": "p"}])
    assert rows.reasons == [None, "p is null", None]
    assert rows.inputs[0].tolist() == [[1, 2], [0, 0], [3, 4]]


def test_another_type_than_planned_makes_every_row_bad() -> None:
    shapes = (InputShape(name="f", columns=("a", "b"), shape=(2,), named=True),)
    rows = to_rows(pa.table({"a": [1.0, 2.0], "b": ["x", "y"]}), spec(AB), shapes)
    assert rows.reasons == ["b: expected numbers, seen string"] * 2
    shapes = (InputShape(name="image", columns=("p",), shape=(1, 2, 2), named=False),)
    rows = to_rows(pa.table({"p": [1.0]}), spec(PIXELS), shapes)
    assert rows.reasons == ["p: expected lists of numbers, seen double"]
    rows = to_rows(pa.table({"p": pa.nulls(1)}), spec(PIXELS), shapes)
    assert rows.reasons == ["p is null"]


def test_what_ingest_found_comes_first() -> None:
    table = pa.table({"a": [1.0, None], "b": [2.0, None], "_bad": [None, "line 3: broken JSON"]})
    assert convert(table, AB).reasons == [None, "line 3: broken JSON"]


def test_a_reason_in_other_bytes_than_text_is_told_as_it_is() -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    assert convert(pa.table({"a": [1.0], "b": [2.0], "_bad": bad}), AB).reasons == ["a\\xff"]


def test_scaling_by_number_feature_and_channel() -> None:
    table = pa.table({"p": pa.array([[10, 20, 30, 40, 50, 60, 70, 80]], pa.list_(pa.uint8()))})
    rows = convert(
        table,
        [
            {
                "name": "image",
                "column": "p",
                "shape": [2, 2, 2],
                "divide": 10,
                "mean": [1, 2],
                "std": [0.5, 2],
            }
        ],
    )
    assert rows.inputs[0].flatten().tolist() == [0, 2, 4, 6, 1.5, 2, 2.5, 3]
    rows = convert(pa.table({"a": [1.0], "b": [5.0]}), [AB[0] | {"mean": [0.5, 1.0], "std": 2}])
    assert rows.inputs[0].tolist() == [[0.25, 2.0]]


def test_scaling_is_computed_in_the_jobs_precision() -> None:
    table = pa.table({"a": [0.1], "b": [1e8 + 1]})
    scaling = AB[0] | {"divide": 3.0, "mean": [0.1, 7.0], "std": [0.3, 11.0]}
    for precision, kind in (("float32", np.float32), ("float64", np.float64)):
        raw = np.array([[0.1, 1e8 + 1]]).astype(kind)
        expected = (raw / kind(3) - np.array([0.1, 7.0], kind)) / np.array([0.3, 11.0], kind)
        found = convert(table, [scaling], compute={"precision": precision}).inputs[0].numpy()
        assert found.dtype == kind
        assert np.array_equal(found, expected)


def test_spread_and_scale_of_a_raw_baseline() -> None:
    assert spread(2.0, (3, 2)).shape == ()
    assert spread((1.0, 2.0, 3.0), (3, 2)).shape == (3, 1)
    assert spread(tuple(range(6)), (3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="neither"):
        spread((1.0, 2.0), (3, 2))
    shape = InputShape(name="f", columns=("a", "b"), shape=(2,), named=True)
    plain = np.array([[1.0, 2.0]])
    assert scale(plain, ColumnsInput(name="f", columns=("a", "b")), shape) is plain


def test_integers_round_alike_beside_a_null() -> None:
    # to float32 directly it rounds up; over float64 it is a tie and rounds to even
    value = 2**60 + 2**36 + 1
    alone = convert(pa.table({"a": [value], "b": [0]}), AB).inputs[0]
    assert torch.equal(
        alone, convert(pa.table({"a": [value, None], "b": [0, 0]}), AB).inputs[0][:1]
    )


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (3, pa.int64(), None),
        (3.0, pa.float64(), None),
        (True, pa.bool_(), None),
        (None, pa.int64(), "y is null"),
        (2.5, pa.float64(), "y is 2.5: expected an output index, an integer from 0"),
        (-1, pa.int64(), "y is -1: expected an output index, an integer from 0"),
        (float("nan"), pa.float64(), "y is NaN"),
        (2**64 - 1, pa.uint64(), f"y is {2**64 - 1}: expected an output index, an integer from 0"),
        (
            Decimal("1.5"),
            pa.decimal128(4, 1),
            "y is 1.5: expected an output index, an integer from 0",
        ),
    ],
)
def test_targets(value: Any, kind: pa.DataType, reason: str | None) -> None:
    table = pa.table({"a": [1.0], "b": [1.0], "y": pa.array([value], kind)})
    rows = convert(table, AB, target={"kind": "column", "column": "y"})
    assert rows.reasons == [reason]
    assert rows.target is not None
    assert rows.target.dtype == torch.int64
    assert rows.target.tolist() == [0 if reason else int(value)]
    assert rows.inputs[0].abs().sum() == (0 if reason else 2)


def test_forward_args() -> None:
    table = pa.table(
        {
            "a": [1.0, 2.0],
            "b": [1.0, 2.0],
            "n": pa.array([2**60 + 1, 5]),
            "m": [[True, False], [True, True]],
            "u": [0.5, float("-inf")],
        }
    )
    rows = convert(
        table,
        AB,
        forward_args=[
            {"name": "n", "column": "n", "dtype": "int64"},
            {"name": "m", "column": "m", "shape": [2], "dtype": "bool"},
            {"name": "u", "columns": ["u"]},
            {"name": "w", "column": "u", "dtype": "float64"},
        ],
    )
    assert rows.reasons == [None, None]
    n, m, u, w = rows.forward_args
    assert n.tolist() == [2**60 + 1, 5]
    assert (m.dtype, m.tolist()) == (torch.bool, [[True, False], [True, True]])
    assert (u.shape, w.shape, u.dtype, w.dtype) == ((2, 1), (2,), torch.float32, torch.float64)
    assert u[1].item() == float("-inf")


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        ([1.0, None], "float32", "g is null"),
        ([1.0, float("nan")], "float64", "g is NaN"),
        ([1.0, 2.5], "int64", "g is 2.5: expected an integer"),
        ([1, 2], "bool", "g is 2: expected 0 or 1"),
        ([1, None], "bool", "g is null"),
        ([1, None], "int64", "g is null"),
    ],
)
def test_bad_forward_args(values: list[Any], dtype: str, reason: str) -> None:
    table = pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0], "g": values})
    rows = convert(table, AB, forward_args=[{"name": "g", "column": "g", "dtype": dtype}])
    assert rows.reasons == [None, reason]
    assert rows.forward_args[0][1].item() == 0


def test_baselines_held_by_columns() -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0], "c": [10.0, 20.0, None]})
    scaled = [AB[0] | {"divide": 10}]
    model = convert(table, scaled, baseline={"kind": "column", "columns": ["c", "c"]})
    raw = convert(table, scaled, baseline={"kind": "column", "columns": ["c", "c"], "units": "raw"})
    assert model.reasons == raw.reasons == [None, None, "c is null"]
    assert model.baselines[0] is not None
    assert raw.baselines[0] is not None
    assert model.baselines[0].tolist() == [[10, 10], [20, 20], [0, 0]]
    assert raw.baselines[0].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert convert(table, AB).baselines == (None,)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=5)),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_any_lists_convert_without_raising(lists: list[Any], cut: int) -> None:
    column = pa.array(lists, pa.list_(pa.float32()))
    cut = min(cut, len(lists))
    rows = convert(pa.table({"p": pa.chunked_array([column[:cut], column[cut:]])}), PIXELS)
    for value, reason, tensor in zip(lists, rows.reasons, rows.inputs[0].flatten(1), strict=True):
        good = (
            value is not None
            and len(value) == 4
            and all(v is not None and np.isfinite(v) for v in value)
        )
        assert (reason is None) == good
        assert tensor.tolist() == (value if good else [0] * 4)


def test_no_rows() -> None:
    rows = convert(pa.table({"a": pa.array([], pa.float64()), "b": pa.array([], pa.float64())}), AB)
    assert rows.inputs[0].shape == (0, 2)
    assert rows.reasons == []


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["clean", "all bad"])
def test_wide_tables_convert_quickly(share: float) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50_000, 96))
    values[random.random(50_000) < share, 95] = np.nan
    table = pa.table({f"c{j}": values[:, j] for j in range(96)})
    job = spec([{"name": "f", "columns": table.column_names}])
    started = time.perf_counter()
    rows = to_rows(table, job, resolve_columns(table.schema, job))
    assert time.perf_counter() - started < 2.0
    assert int(rows.clean.sum()) == (0 if share else 50_000)


# --- ids ---------------------------------------------------------------------------------------


def test_ids_become_presence_and_arguments() -> None:
    table = pa.table(
        {
            "t": pa.array([[7, 0, 3], [5]], pa.list_(pa.int16())),
            "p": [2, 0],
            "a": [4.0, 1.0],
            "b": [1, 5],
        }
    )
    job = spec(
        [
            {"name": "x", "columns": ["a"]},
            {"name": "tokens", "ids": "t", "embedding": "m", "pad": 0},
            {"name": "plan", "ids": "p", "embedding": "n"},
        ],
        forward_args=[
            {"name": "m", "mask_of": "tokens", "dtype": "bool"},
            {"name": "b", "column": "b"},
        ],
    )
    shapes = resolve_columns(table.schema, job)
    assert [(s.shape, s.named, s.varying) for s in shapes] == [
        ((1,), True, False),
        ((), False, True),
        ((1,), True, False),
    ]
    (bucket,) = length_buckets(table, job, shapes)
    rows = to_rows(bucket.of(table), job, bucket.shapes)
    assert rows.reasons == [None, None]
    assert [x.tolist() for x in rows.inputs[1:]] == [[[1] * 3 + [0] * 5, [1] + [0] * 7], [[1], [1]]]
    tokens, plan, mask, b = rows.forward_args
    assert tokens.tolist() == [[7, 0, 3] + [-1] * 5, [5] + [-1] * 7]
    assert (plan.tolist(), plan.dtype) == ([2, 0], torch.int64)
    assert torch.equal(mask, rows.inputs[1].bool())
    assert b.tolist() == [1, 5]


@pytest.mark.parametrize(
    ("pad", "lengths"),
    [
        ({"pad": 0}, {8: [0, 2, 5], 16: [1, 3], 20: [4, 6]}),
        ({}, {1: [2, 5], 7: [0], 9: [1], 16: [3], 18: [4], 20: [6]}),
    ],
)
def test_a_rows_bucket_is_its_own_affair(
    pad: dict[str, int], lengths: dict[int, list[int]]
) -> None:
    lists: list[Any] = [list(range(n)) for n in (7, 9, 0, 16, 18)] + [None, list(range(99))]
    table = pa.table({"t": pa.array(lists, pa.large_list(pa.int64()))})
    job = spec([{"name": "tokens", "ids": "t", "embedding": "m", "max_length": 20} | pad])
    shapes = resolve_columns(table.schema, job)
    assert {
        b.shapes[0].shape[0]: b.rows.tolist() for b in length_buckets(table, job, shapes)
    } == lengths
    reasons = dict.fromkeys((2, 5, 6))
    for b in length_buckets(table, job, shapes):
        found = to_rows(b.of(table), job, b.shapes)
        reasons |= {int(i): r for i, r in zip(b.rows, found.reasons, strict=True) if r}
    assert reasons == {
        2: "t has 0 ids, expected 1 to 20",
        5: "t is null",
        6: "t has 99 ids, expected 1 to 20",
    }


def test_a_file_without_a_list_is_full_of_nulls() -> None:
    job = spec([{"name": "tokens", "ids": "t", "embedding": "m"}])
    shapes = (InputShape(name="tokens", columns=("t",), shape=(), named=False, varying=True),)
    (bucket,) = length_buckets(pa.table({"t": pa.nulls(2)}), job, shapes)
    assert (
        to_rows(bucket.of(pa.table({"t": pa.nulls(2)})), job, bucket.shapes).reasons
        == ["t is null"] * 2
    )


def test_two_lists_have_a_bucket_for_every_pair_of_lengths() -> None:
    table = pa.table(
        {
            "t": [[1] * n for n in (3, 9, 3, 9)],
            "u": [[2] * n for n in (3, 3, 12, 2)],
            "n": [1, 2, 3, 4],
        }
    )
    job = spec(
        [
            {"name": "t", "ids": "t", "embedding": "m", "pad": 0},
            {"name": "f", "columns": ["n"]},
            {"name": "u", "ids": "u", "embedding": "o", "pad": 0},
        ]
    )
    buckets = length_buckets(table, job, resolve_columns(table.schema, job))
    found = [([s.shape for s in b.shapes], b.rows.tolist()) for b in buckets]
    assert found == [
        ([(8,), (1,), (8,)], [0]),
        ([(8,), (1,), (16,)], [2]),
        ([(16,), (1,), (8,)], [1, 3]),
    ]
    rows = to_rows(buckets[2].of(table), job, buckets[2].shapes)
    assert rows.inputs[1].tolist() == [[2], [4]]
    assert rows.inputs[2].sum(1).tolist() == [3, 2]
