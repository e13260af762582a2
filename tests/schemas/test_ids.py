"""Identities depend on content alone: not on order, spacing or how rows are cut."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from integrand.schemas.ids import (
    add_digests,
    canonical_json,
    digest_bytes,
    digest_json,
    digest_rows,
    shard_id,
    shard_object,
)


def test_one_byte_string_per_json_value():
    assert canonical_json({"b": 1, "a": [1e-3, "é"]}) == '{"a":[0.001,"é"],"b":1}'.encode()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(math.nan)


def test_chunks_cannot_be_shifted_between_each_other():
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc")
    assert digest_bytes(b"") != digest_bytes()


@given(st.lists(st.binary(max_size=8)), st.randoms(use_true_random=False), st.integers(1, 5))
def test_a_digest_of_rows_knows_neither_order_nor_cut(rows: list[bytes], order, pieces: int):
    shuffled = rows[:]
    order.shuffle(shuffled)
    whole = digest_rows(rows)
    assert digest_rows(shuffled) == whole
    assert add_digests(digest_rows(shuffled[i::pieces]) for i in range(pieces)) == whole


@given(st.lists(st.binary(max_size=8), min_size=1))
def test_a_digest_of_rows_counts_each_row(rows: list[bytes]):
    assert digest_rows([*rows, rows[0]]) != digest_rows(rows)
    assert digest_rows(rows[1:]) != digest_rows(rows)


def test_the_digest_of_no_rows_is_neutral():
    assert add_digests([digest_rows([]), digest_rows([b"x"])]) == digest_rows([b"x"])


def test_a_shard_has_one_object_without_an_attempt_number():
    assert shard_object(shard_id(17)) == "data/part-00017.parquet"
    assert shard_id(123456) == "123456"
