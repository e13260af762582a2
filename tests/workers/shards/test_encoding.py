"""A shard's bytes: its digest, its pages, its footer."""

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
from integrand.schemas.records import InputShape, ShardFooter, histogram_quantiles
from integrand.schemas.tables import RowStatus
from integrand.workers.shards.footer import histogram, shard_digest, shard_footer
from integrand.workers.shards.job import Job
from integrand.workers.shards.output import results_table, target_array
from integrand.workers.shards.parquet import encode
from integrand.workers.shards.results import Results, merge

STATUSES = [RowStatus.ok, RowStatus.not_converged, RowStatus.bad_input, RowStatus.failed]


def results(
    rows: int, seed: int = 0, shapes: tuple[tuple[int, ...], ...] = ((3,), (2, 2))
) -> Results:
    """Rows of every status; those without attributions hold NaN, as a shard leaves them."""
    random = np.random.default_rng(seed)
    status = [STATUSES[i % 4] for i in range(rows)]
    there = np.array([s in STATUSES[:2] for s in status], bool)

    def numbers(*shape: int) -> Any:
        return np.where(
            there.reshape(-1, *[1] * len(shape)), random.normal(size=(rows, *shape)), np.nan
        )

    return Results(
        pa.array(random.permutation(rows)),
        pa.array(random.integers(0, 3, rows), pa.int32()),
        status,
        [None if s == "ok" else str(s) for s in status],
        numbers(),
        numbers(),
        numbers(),
        np.abs(numbers()),
        random.integers(0, 500, rows).astype(np.int32),
        tuple(numbers(*shape) for shape in shapes),
    )


def take(whole: Results, index: list[int]) -> Results:
    """Some rows of a result, in that order."""
    chosen = np.array(index, np.int64)
    arrays = {
        n: getattr(whole, n)[chosen]
        for n in ("f_input", "f_baseline", "gap", "error_estimate", "evaluations")
    }
    return replace(
        whole,
        row_id=whole.row_id.take(pa.array(chosen)),
        target=whole.target.take(pa.array(chosen)),
        status=[whole.status[i] for i in index],
        reason=[whole.reason[i] for i in index],
        attributions=tuple(a[chosen] for a in whole.attributions),
        **arrays,
    )


# --- digest ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 30))
def test_the_digest_depends_neither_on_the_order_nor_on_the_cut(
    data: st.DataObject, rows: int
) -> None:
    whole = results(rows)
    order = data.draw(st.permutations(range(rows)))
    assert shard_digest(take(whole, order)) == shard_digest(whole)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, rows - 1)))) - {rows})
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    assert add_digests([shard_digest(take(whole, part)) for part in parts]) == shard_digest(whole)


def changes() -> dict[str, Callable[[Results], Results]]:
    def nudge(values: Any) -> Any:
        nudged = values.copy()
        nudged.flat[0] = np.nextafter(nudged.flat[0], np.inf)
        return nudged

    made: dict[str, Callable[[Results], Results]] = {
        name: lambda r, name=name: replace(r, **{name: nudge(getattr(r, name))})
        for name in ("f_input", "f_baseline", "gap", "error_estimate")
    }
    return made | {
        "attribution": lambda r: replace(
            r, attributions=(r.attributions[0], nudge(r.attributions[1]))
        ),
        "evaluations": lambda r: replace(r, evaluations=r.evaluations + 1),
        "status": lambda r: replace(r, status=[RowStatus.at_precision_floor, *r.status[1:]]),
        "identity": lambda r: replace(r, row_id=pa.array([99, *r.row_id.to_pylist()[1:]])),
        "type of the identity": lambda r: replace(r, row_id=r.row_id.cast(pa.string())),
        "target": lambda r: replace(
            r, target=pa.array([None, *r.target.to_pylist()[1:]], pa.int32())
        ),
        "a row twice": lambda r: take(r, [*range(8), 0]),
        "a row less": lambda r: take(r, list(range(7))),
    }


@pytest.mark.parametrize("name", changes())
def test_the_digest_sees_the_last_bit(name: str) -> None:
    assert shard_digest(changes()[name](results(8))) != shard_digest(results(8))


def test_the_digest_does_not_see_what_a_retry_may_change() -> None:
    other = replace(results(8), reason=["another machine said so"] * 8, padded=77)
    assert shard_digest(other) == shard_digest(results(8))


@pytest.mark.parametrize(
    ("ids", "digest"),
    [
        (pa.array(range(4), pa.date32()), "d7b1cb6d1d619279"),
        (pa.array(range(4), pa.timestamp("us")), "f71f662e8423692f"),
    ],
)
def test_the_digest_of_dates_stays(ids: pa.Array, digest: str) -> None:
    assert shard_digest(replace(results(4), row_id=ids)).startswith(digest)


@pytest.mark.parametrize(
    "kind", [pa.date32(), pa.timestamp("us"), pa.timestamp("s", "Europe/Berlin"), pa.duration("s")]
)
def test_dates_beyond_pythons_count_one_by_one(kind: pa.DataType) -> None:
    """Nor does the name of a date depend on a neighbour that Python has not."""
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    far = [2**31 - 1, 2**31 - 2] if width == pa.int32() else [2**62, 2**62 + 1]
    whole = replace(results(4), row_id=pa.array([0, *far, 1], width).cast(kind))
    assert add_digests(
        [shard_digest(take(whole, part)) for part in ([0, 3], [1, 2])]
    ) == shard_digest(whole)
    other = replace(whole, row_id=pa.array([0, far[0], far[1] - 2, 1], width).cast(kind))
    assert shard_digest(other) != shard_digest(whole)


# --- bytes -------------------------------------------------------------------------------------


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    table = pa.table(
        {
            "id": np.arange(20),
            **{c: np.random.default_rng(1).normal(size=20) for c in "abc"},
            "p": pa.array(np.random.default_rng(2).normal(size=(20, 4)).tolist()),
        }
    )
    inputs = [
        {"name": "f", "columns": ["a", "b", "c"]},
        {"name": "image", "column": "p", "shape": [2, 2]},
    ]
    return make_job(
        table,
        "masked",
        inputs,
        target={"kind": "scalar"},
        forward_args=[{"name": "mask", "columns": ["a", "b", "c"], "dtype": "float64"}],
    )


def encoded(job: Job, found: Results, seconds: float = 1.0) -> bytes:
    footer = shard_footer(
        job.plan,
        job.plan_sha256,
        job.plan.shards[0],
        found,
        seconds={"compute": seconds},
        versions=job.versions,
        same_build=True,
    )
    return encode(results_table(job.plan, found), footer)


def test_columns_hold_the_results(job: Job) -> None:
    found = results(40)
    table = pq.read_table(io.BytesIO(encoded(job, found)))
    assert table.column_names == [
        "row_id",
        "target",
        "status",
        "reason",
        "f_input",
        "f_baseline",
        "attribution_sum",
        "gap",
        "error_estimate",
        "evaluations",
        "attr.a",
        "attr.b",
        "attr.c",
        "attr.image",
    ]
    assert table.column("status").to_pylist() == found.status
    assert table.column("reason").to_pylist() == found.reason
    assert table.schema.field("attr.image").metadata == {b"shape": b"[2, 2]"}
    there = found.attributed
    for name in ("f_input", "gap", "error_estimate", "attribution_sum", "attr.a", "attr.image"):
        assert table.column(name).is_valid().to_pylist() == there.tolist()
    np.testing.assert_array_equal(
        table.column("attr.b").to_numpy()[there], found.attributions[0][there, 1]
    )
    images = np.array(table.column("attr.image").filter(pa.array(there)).to_pylist()).reshape(
        -1, 2, 2
    )
    np.testing.assert_array_equal(images, found.attributions[1][there])
    sums = sum(a.reshape(40, -1).sum(1) for a in found.attributions)
    np.testing.assert_allclose(
        table.column("attribution_sum").to_numpy()[there], sums[there], rtol=1e-12
    )


def test_the_same_rows_give_the_same_pages(job: Job) -> None:
    """Timings lie in the footer, whose length is written 8 bytes before the end."""
    first, second = encoded(job, results(40)), encoded(job, results(40), seconds=12345.678)
    pages = [data[: -8 - int.from_bytes(data[-8:-4], "little")] for data in (first, second)]
    assert pages[0] == pages[1]
    assert first != second


def test_a_flipped_byte_in_any_column_is_caught(job: Job) -> None:
    data = encoded(job, results(40))
    columns = pq.read_metadata(io.BytesIO(data)).row_group(0)
    for i in range(columns.num_columns):
        column = columns.column(i)
        start = (
            column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        )
        broken = bytearray(data)
        broken[start + column.total_compressed_size - 1] ^= 1
        with pytest.raises(OSError, match=r"[Cc]hecksum|CRC"):
            pq.read_table(io.BytesIO(bytes(broken)), page_checksum_verification=True)
    pq.read_table(io.BytesIO(data), page_checksum_verification=True)


def test_the_footer_counts_the_rows(job: Job) -> None:
    found = results(40)
    metadata = pq.read_metadata(io.BytesIO(encoded(job, found))).metadata
    footer = ShardFooter.model_validate_json(metadata[FOOTER_KEY.encode()])
    assert (footer.run_id, footer.shard, footer.plan_sha256) == (
        job.plan.run_id,
        "00000",
        job.plan_sha256,
    )
    assert (footer.rows_in, footer.rows_out) == (10, 40)
    assert footer.statuses == {"ok": 10, "not_converged": 10, "bad_input": 10, "failed": 10}
    assert footer.evaluations == found.evaluations.sum()
    assert footer.digest == shard_digest(found)
    assert (footer.determinism, footer.batch_rows, footer.seconds) == (
        "bitwise",
        16,
        {"compute": 1.0},
    )
    gap = np.sort(np.abs(found.gap[found.attributed]))
    assert footer.gap.max == gap[-1]
    assert gap[9] <= footer.gap.p50 <= gap[9] * 10**0.1
    assert sum(footer.gap_histogram.values()) == sum(footer.error_histogram.values()) == 20


def test_a_shard_without_any_attribution_has_no_quantiles(job: Job) -> None:
    bad = take(results(40), [i for i in range(40) if i % 4 > 1])
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


@pytest.mark.parametrize(
    ("targets", "expected", "kind"),
    [
        (None, [None, None], pa.int32()),
        ([[3], [4]], [3, None], pa.int32()),
        ([[1, 0], [0, 2]], ["1,0", None], pa.string()),
    ],
)
def test_target_columns(targets: Any, expected: list[Any], kind: pa.DataType) -> None:
    array = None if targets is None else np.array(targets)
    found = target_array(array, np.array([True, False]))
    assert (found.to_pylist(), found.type) == (expected, kind)


# --- rows of varying length --------------------------------------------------------------------


def varying(rows: int, width: int, seed: int = 0) -> Results:
    """Two inputs, the first of varying length; what lies beyond a row's own length is rubbish."""
    found = results(rows, seed, ((width,), (3,)))
    return replace(found, lengths=(np.random.default_rng(seed).integers(1, width + 1, rows), None))


def test_what_lies_beyond_a_rows_length_counts_nowhere() -> None:
    one = varying(12, 6)
    wider = np.concatenate([one.attributions[0], np.full((12, 5), 7.0)], 1)
    other = replace(one, attributions=(wider, one.attributions[1]))
    assert shard_digest(other) == shard_digest(one)
    tail = one.attributions[0].copy()
    tail[0, int(one.lengths[0][0]) - 1] += 1  # type: ignore[index]
    assert shard_digest(replace(one, attributions=(tail, one.attributions[1]))) != shard_digest(one)


def test_parts_merge_in_row_order() -> None:
    parts = [varying(5, 4, 1), varying(6, 9, 2)]
    places = [np.array([0, 3, 4, 9, 10]), np.array([1, 2, 5, 6, 7, 8])]
    whole = merge(list(zip(places, parts, strict=True)))
    assert add_digests([shard_digest(p) for p in parts]) == shard_digest(whole)
    for part, place in zip(parts, places, strict=True):
        for i, row in enumerate(place):
            assert whole.status[row] == part.status[i]
            assert whole.row_id[int(row)] == part.row_id[i]
            for mine, theirs in zip(whole.values(row), part.values(i), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    assert merge([(places[0], parts[0])]) is parts[0]


def test_lists_of_varying_length_are_written_without_padding(make_job: Callable[..., Job]) -> None:
    plan = make_job(pa.table({"id": range(4), "a": [1.0] * 4, "b": [1.0] * 4, "c": [2.0] * 4})).plan
    shapes = (
        InputShape(name="t", columns=("t",), shape=(8,), named=False, varying=True),
        plan.inputs[0],
    )
    found = varying(8, 6)
    table = results_table(plan.model_copy(update={"inputs": shapes}), found)
    assert table.schema.field("attr.t").type == pa.list_(pa.float64())
    for i, (values, total) in enumerate(
        zip(table["attr.t"].to_pylist(), table["attribution_sum"].to_pylist(), strict=True)
    ):
        expected = found.values(i)[0].tolist() if found.attributed[i] else None
        assert values == expected
        assert (total is None) == (expected is None)
        if expected is not None:
            assert total == math.fsum(expected) + found.values(i)[1].sum()
