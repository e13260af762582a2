"""A kind of job that only counts rows: no model, no engine, no columns of ours. Some rows and tasks
bring faults.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from integrand.schemas.ids import FOOTER_KEY, digest_rows, shard_object
from integrand.schemas.record import Record
from integrand.schemas.records import (
    JobManifest,
    JobPlan,
    Numerics,
    Projection,
    Quarantined,
    Shard,
    Slice,
    TaskFooter,
)
from integrand.schemas.specs.compute import Compute
from integrand.schemas.specs.job import Limits
from integrand.schemas.specs.output import Output
from integrand.schemas.tasks import Trial
from integrand.schemas.uris import Uri
from integrand.service.operator import Operator
from integrand.service.planning.request import AnyRequest
from integrand.service.pools.base import Mapper
from integrand.service.running.kind import JobKind
from integrand.service.runs.footers import Folder, list_shards, read_footers
from integrand.workers.models.code import CodeBundle
from integrand.workers.storage.store import Store
from integrand.workers.task_workers import Beat


class CountSpec(Record):
    """So many tasks of so many rows. What goes wrong:

    deadly      rows on which a worker raises, or is killed where `kills`
    unreadable  folder of files named like tasks: these raise whatever is asked of them
    flaky       a task that raises once
    """

    kind: Literal["count"] = "count"
    name: str = "counted"
    output: Output
    compute: Compute = Compute(attempts=2)
    limits: Limits = Limits()
    tasks: int = 6
    rows: int = 10
    deadly: tuple[int, ...] = ()
    kills: bool = False
    unreadable: str = ""
    flaky: str = ""


class CountFooter(TaskFooter):
    counted: int


@dataclass(frozen=True)
class Counted:
    rows_in: int = 0
    counted: int = 0


@dataclass(frozen=True)
class HeldRows:
    shards: frozenset[str]
    stats: Counted
    loose: tuple[str, ...] = ()


class CountManifest(JobManifest):
    counted: int
    quarantined: tuple[Quarantined, ...]
    created: str

    @property
    def has_given_up(self) -> bool:
        return bool(self.quarantined)

    @property
    def date(self) -> str:
        return self.created

    @property
    def contents(self) -> str:
        return str(self.counted)


@dataclass(frozen=True)
class CountSetup:
    plan: JobPlan[CountSpec]
    plan_sha256: str
    run: Uri

    def make_worker(self) -> CountWorker:
        return CountWorker(self)


class CountWorker:
    def __init__(self, setup: CountSetup) -> None:
        self.setup, self.spec, self.store, self.ticks = setup, setup.plan.spec, Store(), 0

    def run(self, task: Shard | Trial[Shard], prefetch: Shard | None = None) -> CountFooter | None:
        trial = task if isinstance(task, Trial) else Trial(task)
        self._read(trial.task)
        excluded = {culprit.row for culprit in trial.culprits}
        asked = range(*(trial.only or (0, task.rows)))
        rows = [row for row in asked if row not in excluded]
        first = trial.task.slices[0].start
        for row in rows:
            self._count(first + row)
        return None if trial.only is not None else self._commit(trial.task, len(rows))

    def beat(self) -> Beat:
        return Beat(self.ticks, "here", os.getpid())

    def close(self) -> None: ...

    def _read(self, shard: Shard) -> None:
        spoilt = Path(self.spec.unreadable, shard.id)
        if self.spec.unreadable and spoilt.exists():
            raise RuntimeError(f"{shard.id} cannot be read")
        if shard.id == self.spec.flaky:
            tried = self.setup.run.child("_tmp", "tried")
            if not self.store.exists(tried):
                self.store.replace(tried, b"")
                raise RuntimeError(f"{shard.id} fails once")

    def _count(self, row: int) -> None:
        if row not in self.spec.deadly:
            self.ticks += 1
        elif self.spec.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise RuntimeError(f"row {row} is deadly")

    def _commit(self, shard: Shard, counted: int) -> CountFooter:
        footer = CountFooter(
            run_id=self.setup.plan.run_id,
            shard=shard.id,
            plan_sha256=self.setup.plan_sha256,
            rows_in=shard.rows,
            rows_out=1,
            counted=counted,
        )
        table = pa.table({"counted": [counted]})
        table = table.replace_schema_metadata({FOOTER_KEY: footer.model_dump_json()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        place, scratch = self.setup.run.child(shard_object(shard.id)), self.setup.run.child("_tmp")
        self.store.create(place, sink.getvalue().to_pybytes(), scratch=scratch)
        return footer


class Counting(JobKind[JobPlan[CountSpec], Counted, CountManifest]):
    plan = JobPlan[CountSpec]
    manifest = CountManifest

    def make_plan(
        self, request: AnyRequest[CountSpec], pool: Mapper
    ) -> tuple[JobPlan[CountSpec], CodeBundle]:
        spec = request.spec
        starts = [number * spec.rows for number in range(spec.tasks)]
        slices = [Slice(file=0, start=start, stop=start + spec.rows) for start in starts]
        plan = JobPlan[CountSpec](
            run_id=f"count-{digest_rows([spec.model_dump_json().encode()])[:8]}",
            spec=spec,
            files=(),
            source_columns=(),
            row_id_type="int64",
            inputs=(),
            numerics=Numerics(
                numerics_version=0,
                batch_rows=1,
                threads=1,
                precision="float32",
                device="cpu",
                torch_build="none",
            ),
            artefacts=(),
            code_sha256=None,
            shards=tuple(Shard(id=f"{n:05d}", slices=(one,)) for n, one in enumerate(slices)),
            projection=Projection(
                seconds_per_row=0,
                evaluations_per_row=0,
                batch_seconds=0,
                output_bytes=0,
                memory_bytes=0,
                seconds=0,
            ),
            created="2026-01-01T00:00:00+00:00",
            versions={},
        )
        return plan, CodeBundle()

    def renew(self, stored: JobPlan[CountSpec], fresh: JobPlan[CountSpec]) -> JobPlan[CountSpec]:
        return stored

    def stored_code(self, run: Folder[JobPlan[CountSpec]], trusted: tuple[str, ...]) -> CodeBundle:
        return CodeBundle()

    def make_setup(
        self,
        run: Folder[JobPlan[CountSpec]],
        code: CodeBundle,
        operator: Operator,
        *,
        allow_mixed: bool,
    ) -> CountSetup:
        plan = run.plan.model_copy(update={"shards": ()})
        return CountSetup(plan, run.plan_sha256, run.uri)

    def read_from(self, plan: JobPlan[CountSpec], tasks: Collection[str]) -> Iterable[str]:
        return ()

    def held(self, run: Folder[JobPlan[CountSpec]], seen: Collection[str] = ()) -> HeldRows:
        footers = list(stored_footers(run, {*list_shards(run.store, run.uri), *seen}))
        totals = Counted()
        for footer in footers:
            totals = self.add(totals, footer)
        return HeldRows(frozenset(f.shard for f in footers), totals)

    def add(self, totals: Counted, footer: TaskFooter) -> Counted:
        assert isinstance(footer, CountFooter)
        return Counted(totals.rows_in + footer.rows_in, totals.counted + footer.counted)

    def highlights(self, totals: Counted) -> tuple[str, ...]:
        return (f"{totals.counted} counted",)

    def fold(
        self,
        run: Folder[JobPlan[CountSpec]],
        held: HeldRows,
        quarantined: Sequence[Quarantined],
        *,
        created: str,
        logical_date: str,
    ) -> CountManifest:
        return CountManifest(
            run_id=run.plan.run_id,
            name=run.plan.spec.name,
            complete=len(held.shards) == len(run.plan.shards),
            plan_sha256=run.plan_sha256,
            shards_done=len(held.shards),
            shards_planned=len(run.plan.shards),
            rows_in=held.stats.rows_in,
            rows_planned=run.plan.rows,
            rows_out=len(held.shards),
            counted=held.stats.counted,
            quarantined=tuple(quarantined),
            created=created,
        )


def stored_footers(
    run: Folder[JobPlan[CountSpec]], tasks: Collection[str]
) -> Iterator[CountFooter]:
    for _, footer in read_footers(run.store, run.uri, sorted(tasks), kind=CountFooter):
        assert footer.plan_sha256 == run.plan_sha256
        yield footer
