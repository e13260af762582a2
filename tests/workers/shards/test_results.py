"""Results of parts of a shard as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from integrand.schemas.ids import add_digests
from integrand.workers.shards.footer import shard_digest
from integrand.workers.shards.results import merge
from tests.plugins.results import made_results, varying_results


def test_parts_merge_in_row_order() -> None:
    parts = [varying_results(5, 4, 1), varying_results(6, 9, 2)]
    places = [np.array([0, 3, 4, 9, 10]), np.array([1, 2, 5, 6, 7, 8])]
    whole = merge(list(zip(places, parts, strict=True)))
    assert add_digests([shard_digest(p) for p in parts]) == shard_digest(whole)
    for part, place in zip(parts, places, strict=True):
        for i, row in enumerate(place):
            assert whole.rows.status[row] == part.rows.status[i]
            assert whole.row_id[int(row)] == part.row_id[i]
            for mine, theirs in zip(whole.values(row), part.values(i), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    assert merge([(places[0], parts[0])]) is parts[0]


def test_what_was_counted_in_parts_is_of_all() -> None:
    parts = [
        replace(made_results(2), padded=3, duplicates=1, halved=8),
        replace(made_results(1), padded=4, halved=4),
        replace(made_results(3), duplicates=2),
    ]
    places = [np.array([4, 5]), np.array([0]), np.array([1, 2, 3])]
    whole = merge(list(zip(places, parts, strict=True)))
    assert (whole.padded, whole.duplicates, whole.halved) == (7, 3, 4)
    assert merge(list(zip(places[1:], [parts[2]] * 2, strict=True))).halved is None
