"""A shard's footer: the digest of its rows, and what it counts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from integrand.schemas.ids import FOOTER_KEY, add_digests
from integrand.schemas.quantiles import histogram_quantiles
from integrand.schemas.records import ShardFooter
from integrand.schemas.tables import RowStatus
from integrand.workers.shards.footer import histogram, shard_digest
from integrand.workers.shards.job import Job
from integrand.workers.shards.results import Results
from tests.plugins.results import (
    encoded,
    made_results,
    varying_results,
    with_columns,
)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 30))
def test_the_digest_depends_neither_on_the_order_nor_on_the_cut(
    data: st.DataObject, rows: int
) -> None:
    whole = made_results(rows)
    order = data.draw(st.permutations(range(rows)))
    assert shard_digest(whole.take(np.array(order))) == shard_digest(whole)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, rows - 1)))) - {rows})
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    assert add_digests(
        [shard_digest(whole.take(np.array(part))) for part in parts]
    ) == shard_digest(whole)


def changes() -> dict[str, Callable[[Results], Results]]:
    def nudge(values: Any) -> Any:
        nudged = values.copy()
        nudged.flat[0] = np.nextafter(nudged.flat[0], np.inf)
        return nudged

    made: dict[str, Callable[[Results], Results]] = {
        name: lambda r, name=name: with_columns(r, **{name: nudge(getattr(r.rows, name))})
        for name in ("f_input", "f_baseline", "gap", "error_estimate")
    }

    def nudged_attribution(r: Results) -> Results:
        first, second = r.rows.attributions
        return with_columns(r, attributions=(first, nudge(second)))

    def other_status(r: Results) -> Results:
        status = np.array([RowStatus.at_precision_floor, *r.rows.status[1:]], object)
        return with_columns(r, status=status)

    return made | {
        "attribution": nudged_attribution,
        "evaluations": lambda r: with_columns(r, evaluations=r.rows.evaluations + 1),
        "status": other_status,
        "identity": lambda r: replace(r, row_id=pa.array([99, *r.row_id.to_pylist()[1:]])),
        "type of the identity": lambda r: replace(r, row_id=r.row_id.cast(pa.string())),
        "target": lambda r: replace(
            r, target=pa.array([None, *r.target.to_pylist()[1:]], pa.int32())
        ),
        "a row twice": lambda r: r.take(np.array([*range(8), 0])),
        "a row less": lambda r: r.take(np.arange(7)),
    }


@pytest.mark.parametrize("name", changes())
def test_the_digest_sees_the_last_bit(name: str) -> None:
    assert shard_digest(changes()[name](made_results(8))) != shard_digest(made_results(8))


def test_the_digest_does_not_see_what_a_retry_may_change() -> None:
    reasons = np.array(["another machine said so"] * 8, object)
    other = with_columns(made_results(8), reason=reasons)
    assert shard_digest(replace(other, padded=77)) == shard_digest(made_results(8))


@pytest.mark.parametrize(
    ("ids", "digest"),
    [
        (pa.array(range(4), pa.date32()), "d7b1cb6d1d619279"),
        (pa.array(range(4), pa.timestamp("us")), "f71f662e8423692f"),
    ],
)
def test_the_digest_of_dates_stays(ids: pa.Array, digest: str) -> None:
    assert shard_digest(replace(made_results(4), row_id=ids)).startswith(digest)


@pytest.mark.parametrize(
    "kind", [pa.date32(), pa.timestamp("us"), pa.timestamp("s", "Europe/Berlin"), pa.duration("s")]
)
def test_dates_beyond_pythons_count_one_by_one(kind: pa.DataType) -> None:
    """Nor does the name of a date depend on a neighbour that Python has not."""
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    far = [2**31 - 1, 2**31 - 2] if width == pa.int32() else [2**62, 2**62 + 1]
    whole = replace(made_results(4), row_id=pa.array([0, *far, 1], width).cast(kind))
    assert add_digests(
        [shard_digest(whole.take(np.array(part))) for part in ([0, 3], [1, 2])]
    ) == shard_digest(whole)
    other = replace(whole, row_id=pa.array([0, far[0], far[1] - 2, 1], width).cast(kind))
    assert shard_digest(other) != shard_digest(whole)


def test_what_lies_beyond_a_rows_length_counts_nowhere() -> None:
    one = varying_results(12, 6)
    first, second = one.rows.attributions
    wider = np.concatenate([first, np.full((12, 5), 7.0)], 1)
    assert shard_digest(with_columns(one, attributions=(wider, second))) == shard_digest(one)
    tail = first.copy()
    tail[0, int(one.lengths[0][0]) - 1] += 1  # type: ignore[index]
    assert shard_digest(with_columns(one, attributions=(tail, second))) != shard_digest(one)


def test_the_footer_counts_the_rows(job: Job) -> None:
    found = made_results(40)
    metadata = pq.read_metadata(io.BytesIO(encoded(job, found))).metadata
    footer = ShardFooter.model_validate_json(metadata[FOOTER_KEY.encode()])
    assert (footer.run_id, footer.shard, footer.plan_sha256) == (
        job.plan.run_id,
        "00000",
        job.plan_sha256,
    )
    assert (footer.rows_in, footer.rows_out) == (10, 40)
    assert footer.statuses == {"ok": 10, "not_converged": 10, "bad_input": 10, "failed": 10}
    assert footer.evaluations == found.rows.evaluations.sum()
    assert footer.digest == shard_digest(found)
    assert (footer.determinism, footer.batch_rows, footer.seconds) == (
        "bitwise",
        16,
        {"compute": 1.0},
    )
    gap = np.sort(np.abs(found.rows.gap[found.rows.attributed]))
    assert footer.gap.max == gap[-1]
    assert gap[9] <= footer.gap.p50 <= gap[9] * 10**0.1
    assert sum(footer.gap_histogram.values()) == sum(footer.error_histogram.values()) == 20


def test_a_shard_without_any_attribution_has_no_quantiles(job: Job) -> None:
    bad = made_results(40).take(np.array([i for i in range(40) if i % 4 > 1]))
    metadata = pq.read_metadata(io.BytesIO(encoded(job, bad))).metadata
    footer = ShardFooter.model_validate_json(metadata[FOOTER_KEY.encode()])
    assert footer.gap.max is footer.error.p50 is None
    assert footer.gap_histogram == {}


@given(st.lists(st.floats(1e-35, 1e35), min_size=1, max_size=50))
def test_quantiles_of_a_histogram_are_upper_bounds(values: list[float]) -> None:
    array = np.array(values)
    found = histogram_quantiles(histogram(array), float(array.max()))
    for share, bound in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        exact = float(np.sort(array)[math.ceil(share * len(array)) - 1])
        assert bound is not None
        assert exact * (1 - 1e-12) <= bound <= exact * 10**0.1 * (1 + 1e-12)


def test_zero_and_infinity_have_their_ends_of_the_histogram() -> None:
    assert histogram(np.array([0.0, math.inf, 1.0, 10**-3.15])) == {
        "-400": 1,
        "-31": 1,
        "0": 1,
        "400": 1,
    }
