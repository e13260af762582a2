"""Rows in another order: sequences of one-hot letters, and of anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.workers.baselines.tensors import (
    Given,
    baseline_ids,
    baseline_tensors,
    check_baselines,
)
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.data.tensors import to_rows
from integrand.workers.philox import keys_of
from tests.toys import spec

LENGTH, DRAWS = 24, 6
KINDS = pytest.mark.parametrize("preserve", ["nothing", "dinucleotide"])


def letters(rows: int = 5) -> np.ndarray:
    """`[rows, length]` of four letters, and of a fifth for an unknown one."""
    return np.random.default_rng(0).integers(0, 5, (rows, LENGTH))


def one_hot(sequences: np.ndarray) -> np.ndarray:
    """`[rows, 4, length]`: nothing for the unknown letter."""
    known = np.vstack([np.eye(4), np.zeros(4)])
    return np.moveaxis(known[sequences], 2, 1)


def shuffles(values: np.ndarray, ids: list[str] | None = None, **part: Any) -> Tensor:
    """`[rows × draws, ...]` of rows of any shape."""
    flat = pa.array(values.reshape(len(values), -1).tolist())
    part = {"kind": "shuffle", "draws": DRAWS} | part
    one = {"name": "s", "column": "p", "shape": list(values.shape[1:]), "baseline": part}
    job = spec(one, compute={"precision": "float64"})
    table = pa.table({"p": flat})
    shapes = resolve_columns(table.schema, job)
    check_baselines(job, shapes)
    keys = keys_of(ids or [str(row) for row in range(len(values))])
    (found,) = baseline_tensors(job, shapes, Given.of(to_rows(table, job, shapes), keys), {})
    return found


def read(found: Tensor) -> np.ndarray:
    """The letters of one-hot sequences, `[rows, draws, length]`."""
    sequences = found.reshape(-1, DRAWS, 4, LENGTH).numpy()
    return np.where(sequences.any(2), sequences.argmax(2), 4)


@KINDS
def test_letters_stay_as_many_and_pairs_where_asked(preserve: str) -> None:
    sequences = letters()
    found = read(shuffles(one_hot(sequences), preserve=preserve))
    for own, draws in zip(sequences.tolist(), found.tolist(), strict=True):
        assert len(set(map(tuple, draws))) > 1
        for other in draws:
            assert Counter(other) == Counter(own)
            if preserve == "dinucleotide":
                assert Counter(pairwise(other)) == Counter(pairwise(own))
                assert (other[0], other[-1]) == (own[0], own[-1])


@KINDS
def test_channels_may_be_last(preserve: str) -> None:
    first = shuffles(one_hot(letters()), preserve=preserve)
    last = shuffles(one_hot(letters()).swapaxes(1, 2), preserve=preserve, channels="last")
    assert torch.equal(first, last.mT)


@KINDS
def test_a_row_s_orders_depend_on_it_and_its_id_alone(preserve: str) -> None:
    values = one_hot(letters())
    found = shuffles(values, preserve=preserve).reshape(5, DRAWS, 4, LENGTH)
    some = shuffles(values[[3, 1]], ["3", "1"], preserve=preserve, draws=2)
    assert torch.equal(some.reshape(2, 2, 4, LENGTH), found[[3, 1], :2])
    renamed = shuffles(values[[3]], ["other"], preserve=preserve)
    assert not torch.equal(renamed, found[3])
    assert not torch.equal(shuffles(values, preserve=preserve, seed=1), found.flatten(0, 1))


def test_letters_are_whatever_differs() -> None:
    """Signs of zeros and scales of letters do not matter; numbers that all differ keep their
    order.
    """
    values = one_hot(letters())
    scaled = shuffles(values * -3.0, preserve="dinucleotide") / -3.0
    assert torch.equal(scaled.abs(), shuffles(values[:, :], preserve="dinucleotide"))
    signals = np.random.default_rng(1).normal(size=(3, 2, 9))
    kept = shuffles(signals, preserve="dinucleotide")
    assert torch.equal(kept, torch.from_numpy(signals).repeat_interleave(DRAWS, 0))


@pytest.mark.parametrize("shape", [(12,), (1, 4, 6)])
def test_what_is_no_sequence_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"(?s)baseline of input `s`.*one-hot letters"):
        shuffles(np.zeros((2, *shape)))


def test_one_more_input_has_its_own_orders(made: Callable[..., Any]) -> None:
    part = {"kind": "shuffle", "draws": 2}
    one = {"column": "p", "shape": [10, 6], "baseline": part}
    first, second = made({"name": "one"} | one, {"name": "two"} | one)
    assert first.shape == second.shape == (24, 10, 6)
    assert not torch.equal(first, second)


@KINDS
def test_padding_stays_at_the_end(preserve: str) -> None:
    """That of a bucket, and ids that lists were filled up with; inside a list it is an id."""
    lists = [[5, 0, 5, 6, 5, 0, 6, 0, 0], [7, 8, 7, 9, 7, 8], [0, 0, 0]]
    part = {"kind": "shuffle", "draws": 40, "preserve": preserve}
    ids = {"name": "x", "ids": "x", "embedding": "e", "pad": 0, "baseline": part}
    job = spec(ids)
    table = pa.table({"x": lists})
    (shape,) = resolve_columns(table.schema, job)
    shapes = (shape.model_copy(update={"shape": (16,)}),)
    given = Given.of(to_rows(table, job, shapes), keys_of(["a", "b", "c"]))
    (found,) = baseline_ids(job, shapes, given, {})
    for own, draws in zip(lists, found.reshape(3, 40, 16).tolist(), strict=True):
        while len(own) > 1 and own[-1] == 0:
            own = own[:-1]
        for draw in draws:
            assert sorted(draw[: len(own)]) == sorted(own)
            assert all(one in (0, PADDING) for one in draw[len(own) :])
        assert len(set(map(tuple, draws))) > 1 or len(own) == 1
