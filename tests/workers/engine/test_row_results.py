"""Columns of results: made empty, put in their places, taken apart and joined, all alike."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from integrand.schemas.tables import RowStatus
from integrand.workers.engine.row_results import FILLS, NUMBERS, OPTIONAL_FILLS, RowResults
from tests.plugins.results import assert_same

COLUMNS = [*FILLS, "attributions"]
OPTIONAL = sorted(OPTIONAL_FILLS)


def empty(shape: tuple[int, ...], width: int = 3) -> RowResults:
    kinds = ["float32", "float64"]
    return RowResults.empty(shape, inputs=[(width,), (2, 2)], dtypes=kinds, optional=OPTIONAL)


def made(rows: int, targets: int = 2, width: int = 3) -> RowResults:
    """A number of its own in each place."""
    shape = (rows, targets)
    found = empty(shape, width)
    count = np.arange(rows * targets).reshape(shape)
    for place, name in enumerate(NUMBERS):
        getattr(found, name)[:] = 100 * place + count
    found.status[:] = np.array([RowStatus.ok, RowStatus.failed], object)[count % 2]
    found.reason[:] = [[None if n % 2 == 0 else f"why {n}" for n in row] for row in count]
    for values in found.attributions:
        values[:] = np.random.default_rng(rows).normal(size=values.shape)
    for place, column in enumerate(found.optional.values()):
        column[:] = 1000 * place + count
    return found


def test_nothing_is_known_of_empty_rows() -> None:
    found = RowResults.empty((2, 3), inputs=[(4,)], dtypes=["float32"])
    assert {type(status) for status in found.status.flat} == {RowStatus}
    assert set(found.status.flat) == {RowStatus.bad_input}
    assert set(found.reason.flat) == {None}
    assert np.isnan([found.f_input, found.f_baseline, found.gap, found.error_estimate]).all()
    assert (found.evaluations.dtype, found.evaluations.sum()) == (np.int32, 0)
    assert (found.attributions[0].shape, found.attributions[0].dtype) == ((2, 3, 4), np.float32)
    assert not found.attributed.any()


def test_rows_put_back_where_they_were_taken_from() -> None:
    whole, order = made(5), np.array([3, 0, 4, 1, 2])
    again = empty((5, 2))
    again.put(order, whole.take(order))
    assert_same(again, whole)


def test_parts_joined_are_the_whole() -> None:
    whole = made(5)
    parts = [whole.take(slice(0, 2)), whole.take(slice(2, 2)), whole.take(slice(2, 5))]
    assert_same(RowResults.concat(parts), whole)
    assert RowResults.concat(parts[:1]) is parts[0]


def test_targets_joined_lie_side_by_side() -> None:
    parts = [made(4, 1), made(4, 3)]
    found = RowResults.concat(parts, axis=1)
    assert found.attributions[1].shape == (4, 4, 2, 2)
    rows = np.arange(4)
    for target, part, its in ((0, parts[0], 0), (1, parts[1], 0), (3, parts[1], 2)):
        assert_same(found.take((rows, rows * 0 + target)), part.take((rows, rows * 0 + its)))


def test_shorter_attributions_get_zeros_behind_them() -> None:
    found = RowResults.concat([made(2, width=3), made(1, width=5)])
    assert found.attributions[0].shape == (3, 2, 5)
    assert (found.attributions[0][:2, :, 3:] == 0).all()


def test_optional_columns_that_a_part_lacks_hold_their_fill() -> None:
    whole = made(3)
    lacking = replace(made(2), optional={})
    found = RowResults.concat([lacking, whole])
    assert list(found.optional) == OPTIONAL
    for name, column in found.optional.items():
        assert column.dtype == whole.optional[name].dtype
        np.testing.assert_array_equal(column[2:], whole.optional[name])
        fill = np.full((2, 2), OPTIONAL_FILLS[name], column.dtype)
        np.testing.assert_array_equal(column[:2], fill)
    found.put(slice(2, 4), lacking)
    np.testing.assert_array_equal(found.optional["draws"][2:], whole.optional["draws"])


@pytest.mark.parametrize("name", COLUMNS)
def test_flat_rows_are_target_by_target(name: str) -> None:
    whole = made(3)
    one, other = getattr(whole.flat(), name), getattr(whole, name)
    one, other = (c[1] if isinstance(c, tuple) else c for c in (one, other))
    np.testing.assert_array_equal(one, other.reshape(6, *other.shape[2:]))


def test_reading_results_takes_no_torch() -> None:
    code = (
        "import sys, integrand.workers.shards.output, integrand.workers.shards.footer;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
