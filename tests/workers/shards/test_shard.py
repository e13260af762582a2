"""One shard's whole life: rows in × targets = rows out, bad rows in their places, one commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from integrand.schemas.errors import IntegrityError, SpecError
from integrand.schemas.ids import FOOTER_KEY, add_digests
from integrand.schemas.records import Shard, ShardFooter
from integrand.schemas.tasks import Culprit, Trial
from integrand.schemas.uris import Uri
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.attribution import attribute
from integrand.workers.shards.job import Job
from integrand.workers.shards.shard import read_shard, run_shard, try_rows
from integrand.workers.storage.store import Store

ATTRIBUTIONS = ["attr.a", "attr.b", "attr.c"]
MakeJob = Callable[..., Job]


def table(rows: int = 30, **columns: Any) -> pa.Table:
    values = np.random.default_rng(0).normal(size=(rows, 3))
    return pa.table(
        {"id": np.arange(100, 100 + rows), **dict(zip("abc", values.T, strict=True))} | columns
    )


def run(job: Job, task: Shard | Trial[Shard]) -> ShardFooter:
    shard = task.task if isinstance(task, Trial) else task
    return run_shard(job, task, read_shard(job, shard), 0.0, lambda: None)


def rows_of(job: Job) -> pa.Table:
    """Run every shard and read the folder as pandas users do."""
    for shard in job.plan.shards:
        run(job, shard)
    return pq.read_table(job.run.child("data").path)


def spoil(source: pa.Table, column: str, values: dict[int, Any]) -> pa.Table:
    changed = source.column(column).to_pylist()
    for row, value in values.items():
        changed[row] = value
    return source.set_column(
        source.column_names.index(column), column, pa.array(changed, source.column(column).type)
    )


def values(found: pa.Table) -> np.ndarray:
    return np.stack([found.column(name).to_numpy() for name in ATTRIBUTIONS], 1)


@pytest.mark.needs_strict_kernels
def test_a_shard_holds_what_attribute_says(make_job: MakeJob) -> None:
    source = table()
    job = make_job(source)
    found = rows_of(job)
    x = torch.from_numpy(np.stack([source.column(c).to_numpy() for c in "abc"], 1))
    expected = attribute(job.forward, x, target=1, batch_rows=16)
    np.testing.assert_array_equal(values(found), expected.attributions.numpy())
    for name in ("f_input", "f_baseline", "gap", "error_estimate", "evaluations"):
        np.testing.assert_array_equal(
            found.column(name).to_numpy(), getattr(expected, name).numpy()
        )
    assert found.column("row_id").to_pylist() == list(range(100, 130))
    assert set(found.column("target").to_pylist()) == {1}
    assert set(found.column("status").to_pylist()) == {"ok"}
    sums = found.column("attribution_sum").to_numpy()
    np.testing.assert_allclose(
        sums - found.column("f_input").to_numpy() + found.column("f_baseline").to_numpy(),
        found.column("gap").to_numpy(),
        atol=1e-14,
    )


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("shard_rows", [1, 7, 30])
def test_no_bit_depends_on_the_cut(make_job: MakeJob, shard_rows: int) -> None:
    compute = {"batch_rows": 16, "precision": "float32"}
    source = spoil(table(), "b", {11: None, 29: np.nan})
    one = make_job(source, "kinked", compute=compute | {"shard_rows": 10})
    other = make_job(source, "kinked", place="other", compute=compute | {"shard_rows": shard_rows})
    assert one.plan.run_id == other.plan.run_id
    digests = [
        add_digests([run(job, shard).digest for shard in job.plan.shards]) for job in (one, other)
    ]
    assert digests[0] == digests[1]
    assert rows_of(one).equals(rows_of(other))


def test_bad_rows_keep_their_place(make_job: MakeJob) -> None:
    clean = rows_of(make_job(table()))
    job = make_job(spoil(table(), "b", {8: None, 19: np.inf, 29: np.nan}), place="spoilt")
    found = rows_of(job)
    assert [i for i, s in enumerate(found.column("status").to_pylist()) if s == "bad_input"] == [
        8,
        19,
        29,
    ]
    assert found.column("reason").take(pa.array([8, 19, 29])).to_pylist() == [
        "b is null",
        "b is inf",
        "b is NaN",
    ]
    others = pa.array([i for i in range(30) if i not in (8, 19, 29)])
    assert found.take(others).equals(clean.take(others))
    bad = found.take(pa.array([8, 19, 29])).to_pylist()
    assert [row["row_id"] for row in bad] == [108, 119, 129]
    assert {
        row[name]
        for row in bad
        for name in (*ATTRIBUTIONS, "f_input", "gap", "error_estimate", "attribution_sum")
    } == {None}
    assert {row["evaluations"] for row in bad} == {0}


@pytest.mark.parametrize(
    "target",
    [{"kind": "index", "index": 1}, {"kind": "argmax"}, {"kind": "top_k", "k": 2}, {"kind": "all"}],
    ids=lambda t: t["kind"],
)
def test_a_shard_of_bad_rows_alone(make_job: MakeJob, target: dict[str, Any]) -> None:
    """Its target column must not depend on whether a clean row lies beside the bad ones."""
    source = spoil(table(), "a", dict.fromkeys(range(20, 30)))
    found = rows_of(make_job(source, target=target))
    whole = rows_of(
        make_job(
            source,
            target=target,
            place="whole",
            compute={"shard_rows": 30, "batch_rows": 16, "precision": "float64"},
        )
    )
    assert found.equals(whole)
    last = found.slice(found.num_rows * 2 // 3)
    assert set(last.column("status").to_pylist()) == {"bad_input"}
    expected = {"index": [1] * 10, "argmax": [None] * 10, "top_k": [None] * 20, "all": [0, 1] * 10}[
        target["kind"]
    ]
    assert last.column("target").to_pylist() == expected


# --- targets -----------------------------------------------------------------------------------


def test_all_targets_give_a_row_each(make_job: MakeJob) -> None:
    source = spoil(table(), "c", {12: None})
    found = rows_of(make_job(source, target={"kind": "all"}))
    assert found.num_rows == 60
    assert found.column("row_id").to_pylist() == [i for i in range(100, 130) for _ in range(2)]
    assert found.column("target").to_pylist() == [0, 1] * 30
    assert [i for i, s in enumerate(found.column("status").to_pylist()) if s == "bad_input"] == [
        24,
        25,
    ]
    for target in (0, 1):
        alone = rows_of(
            make_job(source, target={"kind": "index", "index": target}, place=f"index{target}")
        )
        assert found.take(pa.array(range(target, 60, 2))).equals(alone)


def test_argmax_explains_each_rows_largest_output(make_job: MakeJob) -> None:
    every = rows_of(make_job(table(), target={"kind": "all"}))
    found = rows_of(make_job(table(), target={"kind": "argmax"}, place="argmax"))
    largest = every.column("f_input").to_numpy().reshape(30, 2).argmax(1)
    assert found.column("target").to_pylist() == largest.tolist()
    assert len(set(largest.tolist())) == 2
    assert found.equals(every.take(pa.array(np.arange(0, 60, 2) + largest)))


def test_column_targets_and_those_out_of_range(make_job: MakeJob) -> None:
    labels = [i % 2 for i in range(30)]
    labels[9], labels[15], labels[20] = 2, -1, None
    found = rows_of(
        make_job(
            table(label=pa.array(labels, pa.int64())), target={"kind": "column", "column": "label"}
        )
    )
    every = rows_of(make_job(table(), target={"kind": "all"}, place="all"))
    good = [i for i in range(30) if i not in (9, 15, 20)]
    assert found.take(pa.array(good)).equals(every.take(pa.array([2 * i + i % 2 for i in good])))
    bad = found.take(pa.array([9, 15, 20])).to_pylist()
    assert [(row["status"], row["target"]) for row in bad] == [("bad_input", None)] * 3
    assert [row["reason"] for row in bad[:2]] == [
        "target 2 is outside 0..1",
        "label is -1: expected an output index, an integer from 0",
    ]
    assert "label" in bad[2]["reason"]


def test_transforms_come_before_the_target(make_job: MakeJob) -> None:
    logits = (
        rows_of(make_job(table(), target={"kind": "all"}))
        .column("f_input")
        .to_numpy()
        .reshape(30, 2)
    )
    found = rows_of(
        make_job(
            table(), target={"kind": "index", "index": 1, "transform": "softmax"}, place="softmax"
        )
    )
    expected = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    np.testing.assert_allclose(found.column("f_input").to_numpy(), expected, rtol=1e-12)


def test_several_inputs_and_arguments(make_job: MakeJob) -> None:
    """f = Σ mask · a² + Σ b², so the attributions against 0 are the squares themselves."""
    pixels = np.random.default_rng(3).normal(size=(30, 4))
    mask = (np.arange(90).reshape(30, 3) % 2).astype(float)
    source = table(p=pa.array(pixels.tolist()), **{f"m{i}": mask[:, i] for i in range(3)})
    inputs = [
        {"name": "f", "columns": ["a", "b", "c"]},
        {"name": "image", "column": "p", "shape": [2, 2]},
    ]
    arguments = [{"name": "mask", "columns": ["m0", "m1", "m2"], "dtype": "float64"}]
    found = rows_of(
        make_job(source, "masked", inputs, target={"kind": "scalar"}, forward_args=arguments)
    )
    x = np.stack([source.column(c).to_numpy() for c in "abc"], 1)
    np.testing.assert_allclose(values(found), x**2 * mask, atol=1e-14)
    np.testing.assert_allclose(
        np.array(found.column("attr.image").to_pylist()), pixels**2, atol=1e-14
    )
    assert found.column("target").null_count == 30


def test_a_baseline_of_each_row_travels_with_it(make_job: MakeJob) -> None:
    """Only one clean row in the last shard: its baseline must not be taken for one that all rows
    share.
    """
    base = {f"base_{c}": np.arange(30.0) + i for i, c in enumerate("abc")}
    source = spoil(table(**base), "a", dict.fromkeys(range(21, 30)))
    job = make_job(
        source,
        baseline={"kind": "column", "columns": list(base)},
        compute={"batch_rows": 16, "precision": "float64", "shard_rows": 10},
    )
    found = rows_of(job)
    with torch.no_grad():
        expected = job.forward(torch.from_numpy(np.stack(list(base.values()), 1)))[:, 1].numpy()
    np.testing.assert_allclose(
        found.column("f_baseline").to_numpy()[:21], expected[:21], rtol=1e-12
    )


def test_the_k_largest_outputs_are_explained_as_they_are_among_all(make_job: MakeJob) -> None:
    source = table(20)
    every = rows_of(make_job(source, target={"kind": "all"})).to_pandas()
    largest = rows_of(make_job(source, target={"kind": "top_k", "k": 2})).to_pandas()
    assert (largest.groupby("row_id", sort=False)["f_input"].diff().dropna() <= 0).all()
    key = ["row_id", "target"]
    pd.testing.assert_frame_equal(
        largest.sort_values(key, ignore_index=True), every.sort_values(key, ignore_index=True)
    )


# --- rows that the model raises on -------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [{"kind": "index", "index": 1}, {"kind": "argmax"}, {"kind": "top_k", "k": 2}, {"kind": "all"}],
    ids=lambda t: t["kind"],
)
def test_rows_that_the_model_raises_on_fail_alone(
    make_job: MakeJob, target: dict[str, Any]
) -> None:
    """Two shards: three culprits in one, the first row of the other."""
    culprits = [23, 24, 27, 30]
    source = spoil(table(40), "a", dict.fromkeys(culprits, 99.0))
    per_row = 2 if target["kind"] in ("all", "top_k") else 1
    fine = rows_of(make_job(source, "smooth", target=target))
    found = rows_of(make_job(source, "picky", target=target, place="picky"))
    assert found.num_rows == fine.num_rows == 40 * per_row
    places = [i * per_row + t for i in culprits for t in range(per_row)]
    others = pa.array([i for i in range(40 * per_row) if i not in places])
    assert found.take(others).equals(fine.take(others))
    failed = found.take(pa.array(places)).to_pylist()
    assert {row["status"] for row in failed} == {"failed"}
    assert {row["reason"] for row in failed} == {
        "the model raised RuntimeError: first feature is out of my range"
    }
    assert {row[name] for row in failed for name in (*ATTRIBUTIONS, "f_input", "gap")} == {None}
    assert {row["evaluations"] for row in failed} == {0}
    expected = {"index": [1] * 4, "argmax": [None] * 4, "top_k": [None] * 8, "all": [0, 1] * 4}[
        target["kind"]
    ]
    assert [row["target"] for row in failed] == expected


TARGETS = [
    {"kind": "index", "index": 1},
    {"kind": "argmax"},
    {"kind": "top_k", "k": 2},
    {"kind": "all"},
    {"kind": "column", "column": "label"},
    {"kind": "column", "columns": ["label"]},
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t["kind"])
def test_culprits_are_not_run_and_end_as_failed(make_job: MakeJob, target: dict[str, Any]) -> None:
    """The model takes its process along on these rows, one of them bad anyway; all others are as if
    nothing were.
    """
    source = spoil(table(label=np.arange(30) % 2), "a", {13: 99.0, 14: 99.0, 17: 99.0})
    source = spoil(source, "b", {14: float("nan")})
    per_row = 2 if target["kind"] in ("all", "top_k") else 1
    fine = make_job(source, "smooth", target=target)
    deadly = make_job(source, "deadly", target=target, place="deadly")
    shard = deadly.plan.shards[1]
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(deadly, shard)
    culprits = tuple(Culprit(row=row, reason=f"row {row} kills") for row in (3, 4, 7))
    trial = Trial(shard, culprits=culprits)
    footer = run(deadly, trial)
    run(fine, fine.plan.shards[1])
    kept, expected = (
        pq.read_table(job.run.child("data").path).to_pylist() for job in (deadly, fine)
    )
    assert (footer.rows_in, footer.statuses) == (
        10,
        {"bad_input": per_row, "failed": 2 * per_row, "ok": 7 * per_row},
    )
    lost = [kept[row * per_row + t] for row in (3, 7) for t in range(per_row)]
    assert [(r["row_id"], r["reason"]) for r in lost] == [
        (100 + 10 + i, f"row {i} kills") for i in (3, 7) for _ in range(per_row)
    ]
    assert {(r["status"], r["evaluations"]) for r in lost} == {("failed", 0)}
    assert {
        r[name] for r in lost for name in (*ATTRIBUTIONS, "f_input", "gap", "error_estimate")
    } == {None}
    known = {
        "index": [1, 1],
        "argmax": [None] * 2,
        "top_k": [None] * 4,
        "all": [0, 1] * 2,
        "column": [1, 1],
    }
    assert [r["target"] for r in lost] == known[target["kind"]]
    others = [i for i in range(10 * per_row) if i // per_row not in (3, 7)]
    assert [kept[i] for i in others] == [expected[i] for i in others]


def test_waiting_for_the_store_is_no_stall(make_job: MakeJob) -> None:
    """A slow link takes minutes for a large object; the store's own deadline ends what takes too
    long.
    """

    class Slow(Store):
        def create(self, uri: Uri, data: bytes, *, scratch: Uri | None = None) -> None:
            before = len(ticks)
            deadline = time.monotonic() + 20
            while len(ticks) < before + 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            waited.append(len(ticks) - before)
            super().create(uri, data, scratch=scratch)

    ticks, waited = list[int](), list[int]()
    job = replace(make_job(table()), store=Slow())
    shard = job.plan.shards[0]
    run_shard(job, shard, read_shard(job, shard), 0.0, lambda: ticks.append(1))
    assert waited == [2]
    assert job.store.exists(job.run.child("data", f"part-{shard.id}.parquet"))


@pytest.mark.parametrize(
    ("only", "raises"), [((0, 0), False), ((0, 3), False), ((3, 4), True), ((4, 10), False)]
)
def test_a_trial_runs_its_rows_alone_and_commits_nothing(
    make_job: MakeJob, only: tuple[int, int], raises: bool
) -> None:
    job = make_job(spoil(table(), "a", {13: 99.0}), "deadly")
    shard = job.plan.shards[1]
    trial, ticks = Trial(shard, only=only), list[int]()
    with pytest.raises(RuntimeError, match="CUDA error") if raises else nullcontext():
        try_rows(job, trial, read_shard(job, shard), lambda: ticks.append(1))
    assert bool(ticks) == (only != (0, 0) and not raises)
    assert not job.store.exists(job.run.child("data", f"part-{shard.id}.parquet"))


def test_a_fault_that_no_row_explains_is_not_a_row_status(make_job: MakeJob) -> None:
    """What is wrong with the job or the machine ends the shard; it never marks rows as failed."""
    job = make_job(table())
    for error, kind in (
        (MemoryError(), MemoryError),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError),
        (SpecError("model output", expected="x", seen="y"), SpecError),
    ):

        def broken(x: torch.Tensor, error: Exception = error) -> torch.Tensor:
            raise error

        with pytest.raises(kind):
            run(replace(job, prepared=Prepared(broken)), job.plan.shards[0])
    assert not job.store.list(job.run.child("data"))


# --- commit ------------------------------------------------------------------------------------


def stored(job: Job, shard: Shard) -> str:
    return str(job.run.child("data", f"part-{shard.id}.parquet").path)


def test_a_second_attempt_returns_what_the_first_one_stored(make_job: MakeJob) -> None:
    job, shard = (made := make_job(table())), made.plan.shards[1]
    first = run_shard(job, shard, read_shard(job, shard), 111.0, lambda: None)
    with open(stored(job, shard), "rb") as file:
        before = file.read()
    second = run_shard(job, shard, read_shard(job, shard), 222.0, lambda: None)
    assert second == first
    assert first.seconds["read"] == 111.0
    with open(stored(job, shard), "rb") as file:
        assert file.read() == before
    assert len(job.store.list(job.run.child("data"))) == 1


def test_footers_say_what_was_done(make_job: MakeJob) -> None:
    job = make_job(spoil(table(), "b", {8: None}))
    ticks = []
    footer = run_shard(
        job, job.plan.shards[0], read_shard(job, job.plan.shards[0]), 0.5, lambda: ticks.append(1)
    )
    assert (footer.rows_in, footer.rows_out, footer.statuses) == (10, 10, {"bad_input": 1, "ok": 9})
    assert (footer.run_id, footer.shard, footer.plan_sha256) == (
        job.plan.run_id,
        "00000",
        job.plan_sha256,
    )
    found = pq.read_table(stored(job, job.plan.shards[0]))
    assert footer.evaluations == sum(found.column("evaluations").to_pylist())
    assert (footer.evaluations + footer.padded_evaluations) % 16 == 0
    # f(x), f(x'), encoded
    assert len(ticks) == (footer.evaluations + footer.padded_evaluations) // 16 + 3
    assert set(footer.seconds) == {"read", "compute", "table"}


def foreign(job: Job, other: Job, kind: str) -> bytes:
    shard = job.plan.shards[0]
    if kind == "not Parquet":
        return b"something else entirely, and long enough to be looked at as a footer"
    if kind == "empty":
        return b""
    if kind in ("another run", "another shard"):
        source = other if kind == "another run" else job
        place = source.plan.shards[0 if kind == "another run" else 1]
        run(source, place)
        with open(stored(source, place), "rb") as file:
            return file.read()
    sink = pa.BufferOutputStream()
    metadata = {FOOTER_KEY: '{"run_id": 1}'} if kind == "a broken footer" else None
    pq.write_table(pa.table({"x": [1] * shard.rows}).replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "kind",
    ["not Parquet", "empty", "plain Parquet", "a broken footer", "another run", "another shard"],
)
def test_a_foreign_object_is_never_taken_for_the_shard(make_job: MakeJob, kind: str) -> None:
    job, other = make_job(table()), make_job(table(), "kinked", place="other")
    shard = job.plan.shards[0]
    job.store.create(job.run.child("data", f"part-{shard.id}.parquet"), foreign(job, other, kind))
    with pytest.raises(
        IntegrityError, match=f"part-00000.parquet(.|\n)*shard 00000 of run {job.plan.run_id}"
    ) as refused:
        run(job, shard)
    assert refused.value.next_step
