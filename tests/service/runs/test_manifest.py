"""The manifest tells what is stored, and nothing that is not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.ids import add_digests
from integrand.schemas.record import dump
from integrand.schemas.records import (
    Quarantined,
    RunManifest,
    ShardFooter,
)
from integrand.schemas.sidecars import (
    Pointer,
)
from integrand.schemas.stats import Member
from integrand.schemas.uris import Uri
from integrand.service.runs.footers import RunFolder, list_shards, read_footers
from integrand.service.runs.manifest import (
    fold,
    load_manifest,
    load_plan,
    point_latest,
    read_pointer,
    read_quarantined,
    write_manifest,
)
from integrand.service.runs.totals import add_footers
from integrand.workers.storage.store import Store

Place = tuple[Store, Uri]
NOW = "2026-01-02T00:00:00+00:00"
LOST = Quarantined(shard="00001", rows=10, attempts=3, reason="boom", detail="", node="n")


@pytest.fixture
def local(tmp_path) -> Place:
    return Store(), Uri("file", str(tmp_path))


def parquet(rows: int, footer: str | None) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": range(rows)}))
        if footer is not None:
            writer.add_key_value_metadata({"integrand.shard": footer})
    return sink.getvalue()


def read_footer(store: Store, run: Uri, shard: str) -> ShardFooter | None:
    return next((footer for _, footer in read_footers(store, run, [shard])), None)


def stored_footers(store: Store, run: Uri) -> dict[str, ShardFooter]:
    listed = list_shards(store, run)
    return {footer.shard: footer for _, footer in read_footers(store, run, listed, listed)}


def folder(run: Any) -> RunFolder:
    return RunFolder(Store(), run.uri, run.plan, run.plan_sha256)


def manifest_of(
    run: Any, footers: Iterable[ShardFooter], quarantined: Sequence[Quarantined] = (), **dates: str
) -> RunManifest:
    committed = add_footers(folder(run), footers)
    return fold(run.plan, run.plan_sha256, committed, quarantined, **{"created": NOW} | dates)


def test_footers_read_back_as_written(place: Place, write_run: Callable) -> None:
    store, root = place
    run = write_run(store, root, commit=("00000", "00002"))
    assert stored_footers(store, run.uri) == run.footers
    (found,) = read_footers(store, run.uri, ["00001", "00002"])
    entry = store.info(run.uri.child("data", "part-00002.parquet"))
    assert found == (
        Member("00002", entry.size, entry.etag or str(entry.mtime_ns)),
        run.footers["00002"],
    )
    assert read_footer(store, run.uri, "00000") == run.footers["00000"]
    assert read_footer(store, run.uri, "00001") is None
    assert load_plan(store, run.uri) == (run.plan, run.plan_sha256)


def test_a_footer_larger_than_the_first_read(local: Place, write_run: Callable) -> None:
    store, root = local
    run = write_run(store, root, commit=())
    footer = ShardFooter.model_validate(
        write_run(store, root, run_id="other").footers["00000"].model_dump()
        | {
            "rows_out": 3,
            "versions": {"padding": "x" * 200_000},
        }
    )
    store.create(run.uri.child("data", "part-00000.parquet"), parquet(3, footer.model_dump_json()))
    assert read_footer(store, run.uri, "00000") == footer


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"not parquet at all", parquet(3, None), parquet(3, "{}")]
)
def test_a_foreign_or_broken_object_is_refused(
    local: Place, write_run: Callable, content: bytes
) -> None:
    store, root = local
    run = write_run(store, root, commit=("00000",))
    store.create(run.uri.child("data", "part-00001.parquet"), content)
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet"):
        read_footer(store, run.uri, "00001")
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet"):
        stored_footers(store, run.uri)
    assert [footer for _, footer in read_footers(store, run.uri, ["00000"])] == [
        run.footers["00000"]
    ]


def test_a_shard_under_another_shards_name_is_refused(local: Place, write_run: Callable) -> None:
    store, root = local
    run = write_run(store, root, commit=("00000",))
    store.create(
        run.uri.child("data", "part-00001.parquet"),
        store.read(run.uri.child("data", "part-00000.parquet")),
    )
    with pytest.raises(IntegrityError, match="shard 00000"):
        read_footer(store, run.uri, "00001")


@pytest.mark.parametrize(
    "name", ["extra.parquet", "more/part-00001.parquet", "part-1.parquet.parquet"]
)
def test_parquet_that_glob_readers_would_take_for_ours_is_refused(
    local: Place, write_run: Callable, name: str
) -> None:
    store, root = local
    run = write_run(store, root)
    store.create(run.uri.child("data", name), parquet(3, None))
    with pytest.raises(IntegrityError, match=name):
        list_shards(store, run.uri)


def test_fold_adds_up(local: Place, write_run: Callable) -> None:
    run = write_run(*local, outputs=2)
    manifest = manifest_of(run, run.footers.values(), [LOST], logical_date="2026-01-01")
    assert (manifest.complete, manifest.missing, manifest.quarantined) == (True, (), ())
    assert (manifest.rows_in, manifest.rows_planned, manifest.rows_out) == (30, 30, 60)
    assert sum(manifest.statuses.values()) == 60
    assert manifest.statuses["bad_input"] == 2 * sum(i % 7 == 0 for i in range(1000, 1030))
    assert manifest.digest == add_digests(f.digest for f in reversed(run.footers.values()))
    assert manifest.evaluations == sum(f.evaluations for f in run.footers.values())
    assert manifest.seconds == {"total": 4.5}
    assert manifest.determinism == "bitwise"
    assert (manifest.name, manifest.logical_date, manifest.created) == ("credit", "2026-01-01", NOW)


def test_quantiles_are_upper_bounds_within_a_tenth_of_a_decade(
    local: Place, write_run: Callable
) -> None:
    run = write_run(*local)
    error = manifest_of(run, run.footers.values()).error
    exact = sorted((i - 999) / 1e3 for i in range(1000, 1030) if i % 7)
    assert exact[len(exact) // 2 - 1] <= error.p50 <= exact[len(exact) // 2] * 10**0.1
    assert error.max == exact[-1] >= error.p99 >= error.p90


def test_fold_tells_what_is_missing(local: Place, write_run: Callable) -> None:
    run = write_run(*local, commit=("00000",))
    manifest = manifest_of(run, run.footers.values(), [LOST])
    assert not manifest.complete
    assert manifest.missing == ("00001", "00002")
    assert manifest.quarantined == (LOST,)
    assert (manifest.shards_done, manifest.rows_in) == (1, 10)
    nothing = manifest_of(run, [])
    assert (nothing.rows_out, nothing.error.max, nothing.missing) == (
        0,
        None,
        ("00000", "00001", "00002"),
    )


@pytest.mark.parametrize(
    "change",
    [{"determinism": "tolerance"}, {"versions": {"torch": "3.0"}}],
    ids=["footer says so", "two torch builds"],
)
def test_one_shard_lowers_the_determinism_of_the_run(
    local: Place, write_run: Callable, change: dict
) -> None:
    run = write_run(*local)
    footers = run.footers | {"00001": run.footers["00001"].model_copy(update=change)}
    assert manifest_of(run, footers.values()).determinism == "tolerance"


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "other"},
        {"plan_sha256": "0" * 64},
        {"rows_in": 9},
        {"rows_out": 11},
        {"statuses": {"ok": 9}},
        {"shard": "00002"},
    ],
    ids=str,
)
def test_a_footer_that_is_not_of_this_plan_is_refused(
    local: Place, write_run: Callable, change: dict
) -> None:
    run = write_run(*local)
    footers = run.footers | {"00001": run.footers["00001"].model_copy(update=change)}
    with pytest.raises(IntegrityError, match=f"shard {change.get('shard', '00001')}"):
        manifest_of(run, footers.values())


def test_a_shard_beyond_the_plan_is_refused(local: Place, write_run: Callable) -> None:
    run = write_run(*local)
    extra = run.footers["00001"].model_copy(update={"shard": "00009"})
    with pytest.raises(IntegrityError, match="does not have"):
        manifest_of(run, [extra])


def test_the_manifest_appears_only_when_complete(place: Place, write_run: Callable) -> None:
    store, root = place
    run = write_run(store, root)
    some = [run.footers["00000"]]
    write_manifest(store, run.uri, manifest_of(run, some))
    assert not store.exists(run.uri.child("_partial.json"))
    partial = manifest_of(run, some, [LOST])
    for _ in range(2):
        write_manifest(store, run.uri, partial)
        assert (
            RunManifest.model_validate_json(store.read(run.uri.child("_partial.json"))) == partial
        )
    assert load_manifest(store, run.uri) is None
    complete = manifest_of(run, run.footers.values(), [LOST])
    write_manifest(store, run.uri, complete)
    assert load_manifest(store, run.uri) == complete
    assert not store.exists(run.uri.child("_partial.json"))


def test_a_second_manifest_must_tell_the_same(local: Place, write_run: Callable) -> None:
    store, root = local
    run = write_run(store, root)
    first = manifest_of(run, run.footers.values())
    write_manifest(store, run.uri, first)
    write_manifest(store, run.uri, first.model_copy(update={"created": "later"}))
    assert load_manifest(store, run.uri) == first
    with pytest.raises(IntegrityError, match=r"_manifest\.json"):
        write_manifest(store, run.uri, first.model_copy(update={"digest": "f" * 64}))


def test_quarantined_shards_read_back(place: Place) -> None:
    store, root = place
    assert read_quarantined(store, root) == ()
    store.replace(root.child("_quarantine", "00001.json"), dump(LOST))
    assert read_quarantined(store, root) == (LOST,)


def test_the_pointer_never_goes_back_in_time(place: Place) -> None:
    store, root = place

    def point(run_id: str, logical_date: str) -> bool:
        return point_latest(
            store, root, "credit", Pointer(run_id=run_id, logical_date=logical_date, written=NOW)
        )

    assert read_pointer(store, root, "credit") is None
    assert point("b", "2026-01-02")
    assert not point("a", "2026-01-01")
    assert not point("a", "2026-01-02T00:00:00+01:00")
    assert read_pointer(store, root, "credit").run_id == "b"
    assert point("c", "2026-01-02")
    assert point("d", "2026-01-02T03:00:00+00:00")
    assert read_pointer(store, root, "credit").run_id == "d"
    with pytest.raises(SpecError, match="yesterday"):
        point("e", "yesterday")


def test_a_pointer_cannot_lead_out_of_its_root(local: Place) -> None:
    store, root = local
    pointer = Pointer(run_id="../elsewhere", logical_date="2026-01-01", written=NOW)
    store.replace(root.child("_latest", "credit.json"), dump(pointer))
    with pytest.raises(IntegrityError, match="elsewhere"):
        read_pointer(store, root, "credit")


def test_plans_that_cannot_be_read(local: Place, write_run: Callable) -> None:
    store, root = local
    with pytest.raises(SpecError, match="run folder"):
        load_plan(store, root)
    run = write_run(store, root)
    store.replace(
        run.uri.child("_plan.json"),
        dump(run.plan).replace(b'"format_version": 1', b'"format_version": 2'),
    )
    with pytest.raises(DataError, match="another format"):
        load_plan(store, run.uri)
    store.replace(run.uri.child("_plan.json"), b"{")
    with pytest.raises(IntegrityError, match=r"_plan\.json"):
        load_plan(store, run.uri)
