"""Shared fixtures: the places to write to, and run folders made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.ids import NUMERICS_VERSION, shard_object
from integrand.schemas.record import dump
from integrand.schemas.records import (
    InputShape,
    Numerics,
    Plan,
    Projection,
    Shard,
    ShardFooter,
    Slice,
    SourceFile,
)
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.schemas.tables import RowStatus
from integrand.schemas.uris import Uri
from integrand.workers.data.inspection import inspect_file
from integrand.workers.data.reading import read_slices
from integrand.workers.engine.row_results import RowResults
from integrand.workers.shards.footer import shard_footer
from integrand.workers.shards.output import results_table
from integrand.workers.shards.parquet import encode
from integrand.workers.shards.results import Results
from integrand.workers.storage.store import Store

pytest_plugins = [
    "tests.plugins.requirements",
    "tests.plugins.strictness",
    "tests.plugins.jobs",
    "tests.plugins.listener",
    "tests.plugins.local_ray",
    "tests.plugins.proxy",
    "tests.plugins.seaweed",
    "tests.plugins.texts",
    "tests.plugins.strings",
]


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Uri]:
    """A store and an empty root in it, once for local files and once for S3."""
    if request.param == "file":
        return Store(), Uri("file", str(tmp_path / "root"))
    return Store(request.getfixturevalue("s3_server").access), request.getfixturevalue("s3_root")


# --- run folders -------------------------------------------------------------------------------

ROWS, SHARD_ROWS = 30, 10
FEATURES = ("age", "income")
PIXELS = (1, 2, 3)


@dataclass(frozen=True)
class StoredRun:
    """A run folder over 30 rows in two source files, cut into three shards, of which some are
    committed.
    """

    uri: Uri
    root: Uri
    plan: Plan
    plan_sha256: str
    footers: dict[str, ShardFooter]
    sources: tuple[Uri, ...]


@pytest.fixture
def write_run() -> Callable[..., StoredRun]:
    """A function that writes a run folder below a root, as a driver and its workers would have left
    it.
    """
    return _write_run


def _write_run(
    store: Store,
    root: Uri,
    *,
    commit: Collection[str] = ("00000", "00001", "00002"),
    outputs: int = 1,
    tensor: bool = False,
    name: str = "credit",
    run_id: str = "0a1b2c",
) -> StoredRun:
    """Sources, plan and the shards `commit`; no manifest. `outputs` > 1 gives target `all`;
    `tensor` an image input.
    """
    sources = _write_sources(store, root.child("_source"))
    plan = _plan(store, root, sources, outputs=outputs, tensor=tensor, name=name, run_id=run_id)
    run, data = root.child(run_id), dump(plan)
    store.create(run.child("_plan.json"), data)
    digest = hashlib.sha256(data).hexdigest()
    footers = {
        shard.id: _commit(store, run, plan, digest, shard)
        for shard in plan.shards
        if shard.id in commit
    }
    return StoredRun(run, root, plan, digest, footers, sources)


def _write_sources(store: Store, folder: Uri) -> tuple[Uri, ...]:
    """17 and 13 rows in groups of 5; `status` collides with an output column."""
    ids = np.arange(ROWS)
    table = pa.table(
        {
            "id": ids + 1000,
            "age": ids * 1.5,
            "income": 100.0 - ids,
            "status": [f"customer {i}" for i in ids],
            "image": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(ROWS * 6.0)), 6),
        }
    )
    places = (folder.child("a.parquet"), folder.child("b.parquet"))
    for place, part in zip(places, (table[:17], table[17:]), strict=True):
        if not store.exists(place):
            sink = pa.BufferOutputStream()
            pq.write_table(part, sink, row_group_size=5)
            store.create(place, sink.getvalue().to_pybytes())
    return places


def _plan(
    store: Store,
    root: Uri,
    sources: tuple[Uri, ...],
    *,
    outputs: int,
    tensor: bool,
    name: str,
    run_id: str,
) -> Plan:
    files = tuple(inspect_file(store, store.info(s), s.name)[0] for s in sources)
    shape = (
        InputShape(name="image", columns=("image",), shape=PIXELS, named=False)
        if tensor
        else InputShape(name="features", columns=FEATURES, shape=(len(FEATURES),), named=True)
    )
    return Plan(
        run_id=run_id,
        spec=_spec(root, shape, outputs, name),
        files=files,
        source_columns=("id", *shape.columns),
        row_id_type="int64",
        inputs=(shape,),
        numerics=Numerics(
            numerics_version=NUMERICS_VERSION,
            batch_rows=32,
            threads=1,
            precision="float32",
            device="cpu",
            torch_build="2.0",
            outputs=outputs,
        ),
        artefacts=(),
        code_sha256=None,
        shards=_shards(files),
        created="2026-01-01T00:00:00+00:00",
        versions={},
        projection=Projection(
            seconds_per_row=0.1,
            evaluations_per_row=7,
            batch_seconds=0.1,
            output_bytes=1000,
            memory_bytes=1000,
            seconds=3,
        ),
    )


def _spec(root: Uri, shape: InputShape, outputs: int, name: str) -> AttributeSpec:
    return parse_spec(
        {
            "name": name,
            "source": {"uri": str(root.child("_source")), "row_id": "id"},
            "model": {"kind": "factory", "entrypoint": "models:build"},
            "inputs": [
                (
                    {"name": "features", "columns": FEATURES}
                    if shape.named
                    else {"name": "image", "column": "image", "shape": PIXELS}
                )
            ],
            "target": {"kind": "all" if outputs > 1 else "scalar"},
            "output": {"uri": str(root)},
        }
    )


def _shards(files: tuple[SourceFile, ...]) -> tuple[Shard, ...]:
    rows = [(i, row) for i, file in enumerate(files) for row in range(file.rows)]
    cuts = [rows[at : at + SHARD_ROWS] for at in range(0, len(rows), SHARD_ROWS)]
    slices = [[[row for i, row in cut if i == file] for file in range(len(files))] for cut in cuts]
    return tuple(
        Shard(
            id=f"{n:05d}",
            slices=tuple(
                Slice(file=i, start=r[0], stop=r[-1] + 1) for i, r in enumerate(parts) if r
            ),
        )
        for n, parts in enumerate(slices)
    )


def _commit(store: Store, run: Uri, plan: Plan, plan_sha256: str, shard: Shard) -> ShardFooter:
    results = _results(read_slices(store, plan.files, shard.slices, None), plan)
    footer = shard_footer(
        plan,
        plan_sha256,
        shard,
        results,
        seconds={"total": 1.5},
        versions={"torch": "2.0"},
        same_build=True,
    )
    store.create(
        run.child(shard_object(shard.id)),
        encode(results_table(plan, results), footer),
        scratch=run.child("_tmp"),
    )
    return footer


def _results(source: pa.Table, plan: Plan) -> Results:
    """Attribution = raw value · (target + 1), negative for odd ids; every seventh row is bad, every
    fifth not sure.
    """
    times = plan.targets_per_row
    ids = np.repeat(source["id"].to_numpy(), times)
    target = np.tile(np.arange(times), source.num_rows)
    columns = [
        np.stack(source[c].to_numpy()).reshape(source.num_rows, -1) for c in plan.inputs[0].columns
    ]
    values = (
        np.repeat(np.concatenate(columns, axis=1), times, axis=0)
        * ((target + 1) * (-1.0) ** ids)[:, None]
    )
    bad, unsure = ids % 7 == 0, (ids % 5 == 0) & (ids % 7 != 0)
    status = np.where(
        bad, RowStatus.bad_input, np.where(unsure, RowStatus.not_converged, RowStatus.ok)
    )
    found = RowResults(
        status=np.array([RowStatus(s) for s in status], object),
        reason=np.array(["why" if s != "ok" else None for s in status], object),
        f_input=np.where(bad, np.nan, ids / 10),
        f_baseline=np.where(bad, np.nan, 0.5),
        gap=np.where(bad, np.nan, (ids - 1015) / 1e4),
        error_estimate=np.where(bad, np.nan, (ids - 999) / 1e3),
        evaluations=np.where(bad, 0, 7).astype(np.int32),
        attributions=(values.astype(np.float32),),
    )
    return Results(
        row_id=pa.array(ids),
        target=pa.array(target, pa.int32()) if times > 1 else pa.nulls(len(ids), pa.int32()),
        rows=found,
    )
