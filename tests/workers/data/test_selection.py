"""Rows that are chosen before a run: the same whatever row groups, order and workers."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.workers.data.prepasses import base
from integrand.workers.data.prepasses.base import Arrays, PrePass, Scan
from integrand.workers.data.prepasses.selection import Selection
from integrand.workers.data.shapes import resolve_columns
from integrand.workers.philox import keys_of, uniforms
from integrand.workers.storage.store import Store
from tests.toys import put, spec

FEATURES = {"name": "f", "columns": ["a", "b"], "divide": 2}
LISTS = {"name": "l", "column": "l", "shape": [3]}
TEXT = {"name": "t", "ids": "t", "embedding": "e", "pad": 0}


def dataset(count: int = 60) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "id": [f"row {i}" for i in range(count)],
            "a": [None if i == 7 else i for i in range(count)],
            "b": draw.normal(size=count),
            "l": draw.normal(size=(count, 3)).tolist(),
            "t": [list(range(1, 2 + i % 11)) for i in range(count)],
            "good": [i % 3 == 0 for i in range(count)],
        }
    )


def scan_of(
    folder: Path,
    table: pa.Table,
    *inputs: Any,
    group: int = 10,
    cut: int = 23,
    row_id: str | None = "id",
) -> Scan:
    parts = [table.slice(0, cut), table.slice(cut)]
    names = [f"{group}-{cut}-{i}.parquet" for i in range(2)]
    files = [put(folder, name, part, group) for name, part in zip(names, parts, strict=True)]
    job = spec(*inputs, source={"uri": "/d"} | ({"row_id": row_id} if row_id else {}))
    shapes = resolve_columns(table.schema, job)
    return Scan(store=Store(), files=tuple(files), spec=job, shapes=shapes, schema=table.schema)


def found(selection: Selection, scan: Scan, order: random.Random | None = None) -> Arrays:
    result: Arrays | PrePass[Any] = selection
    while isinstance(result, PrePass):
        step = pickle.loads(pickle.dumps(result))
        groups = scan.groups
        if order is not None:
            order.shuffle(groups)
        partials = [step.partial(scan, file, group) for file, group in groups]
        result = step.merge([*step.condensed(partials[:2]), *partials[2:]])
    return result


def drawn(count: int = 8, seed: int = 3, where: str | None = None) -> Selection:
    return Selection(name="training", count=count, seed=seed, where=where)


def turns(rows: list[int], seed: int = 3) -> dict[int, float]:
    keys = keys_of([f"row {i}" for i in rows])
    numbers = uniforms(keys, seed=seed, stream=1 << 30, draws=range(1), count=1)
    return dict(zip(rows, numbers.flatten().tolist(), strict=True))


def test_rows_of_the_lowest_turns_are_drawn_and_bad_ones_never(tmp_path: Path) -> None:
    table = dataset()
    features, lists, places = found(drawn(), scan_of(tmp_path, table, FEATURES, LISTS))
    clean = turns([i for i in range(60) if i != 7])
    expected = sorted(clean, key=lambda i: clean[i])[:8]
    assert (features[:, 0] * 2).tolist() == expected
    assert np.array_equal(lists, np.array(table["l"].to_pylist(), np.float32)[expected])
    assert [row + 23 * file for file, row in places.tolist()] == expected


def test_row_groups_files_blocks_and_order_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = dataset()
    expected = found(drawn(), scan_of(tmp_path, table, FEATURES, LISTS))[:2]
    for group, cut, block in [(3, 23, 100), (60, 41, 7), (7, 1, 2)]:
        monkeypatch.setattr(base, "BLOCK_ROWS", block)
        scan = scan_of(tmp_path, table, FEATURES, LISTS, group=group, cut=cut)
        again = found(drawn(), scan, random.Random(group))[:2]
        assert [one.tobytes() for one in again] == [one.tobytes() for one in expected]
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(60)))
    again = found(drawn(), scan_of(tmp_path, shuffled, FEATURES, LISTS, group=8))[:2]
    assert [one.tobytes() for one in again] == [one.tobytes() for one in expected]


def test_fewer_rows_are_the_first_of_more(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, dataset(), FEATURES)
    assert np.array_equal(found(drawn(20), scan)[0][:5], found(drawn(5), scan)[0])
    assert not np.array_equal(found(drawn(5), scan)[0], found(drawn(5, seed=4), scan)[0])
    everything = found(drawn(59), scan)[0][:, 0] * 2
    assert sorted(everything.tolist()) == [i for i in range(60) if i != 7]


def test_where_is_an_expression_over_all_columns(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, dataset(), FEATURES)
    features, _ = found(drawn(where="good and a > 10"), scan)
    clean = turns([i for i in range(60) if i % 3 == 0 and i > 10])
    assert (features[:, 0] * 2).tolist() == sorted(clean, key=lambda i: clean[i])[:8]


def test_ids_without_a_column_are_path_and_row(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, dataset(), FEATURES, row_id=None)
    by_place, _ = found(drawn(), scan)
    names = [f"10-23-0.parquet#{i}" for i in range(23)] + [
        f"10-23-1.parquet#{i}" for i in range(37)
    ]
    keys = keys_of(names)
    order = uniforms(keys, seed=3, stream=1 << 30, draws=range(1), count=1).flatten().argsort()
    expected = [i for i in order.tolist() if i != 7][:8]
    assert (by_place[:, 0] * 2).tolist() == expected


def test_lists_of_ids_are_filled_up(tmp_path: Path) -> None:
    table = dataset()
    ids, places = found(drawn(6), scan_of(tmp_path, table, TEXT))
    assert ids.dtype == np.int64
    for row, (file, number) in zip(ids, places.tolist(), strict=True):
        own = table["t"][number + 23 * file].as_py()
        assert row.tolist() == own + [-1] * (len(row) - len(own))


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, dataset(), FEATURES)
    with pytest.raises(DataError, match=r"60 clean rows to draw(.|\n)*seen: 59"):
        found(drawn(60), scan)
    with pytest.raises(DataError, match=r"3 clean rows to draw with `a < 2`(.|\n)*seen: 2"):
        found(drawn(3, where="a < 2"), scan)


@pytest.mark.parametrize(
    ("name", "expected"),
    [({"where": "a = 31"}, 31), ({"row": "row 40"}, 40), ({"where": "id = 'row 5'"}, 5)],
)
def test_a_row_is_named_by_an_expression_or_its_id(
    tmp_path: Path, name: dict[str, str], expected: int
) -> None:
    scan = scan_of(tmp_path, dataset(), FEATURES)
    features, places = found(Selection(name="row", **name), scan)
    assert features.shape == (1, 2)
    assert features[0, 0] * 2 == expected
    assert places[0, 1] + 23 * places[0, 0] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ({"where": "a < 2"}, r"exactly one row with `a < 2`(.|\n)*seen: 2"),
        ({"where": "a > 100"}, r"exactly one row with(.|\n)*seen: 0"),
        ({"row": "row 60"}, r"exactly one row of id 'row 60'(.|\n)*seen: 0"),
    ],
)
def test_a_name_of_none_or_several_is_refused(
    tmp_path: Path, name: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        found(Selection(name="row", **name), scan_of(tmp_path, dataset(), FEATURES))


def test_a_bad_row_cannot_be_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a clean row(.|\n)*a is null"):
        found(Selection(name="row", row="row 7"), scan_of(tmp_path, dataset(), FEATURES))


@pytest.mark.parametrize("where", ["nothing > 1", "a +", "1; drop table x", "a > random()"])
def test_an_expression_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(SpecError, match=r"baseline\.where"):
        drawn(where=where).check_columns(dataset().schema)
