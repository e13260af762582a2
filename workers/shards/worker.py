"""A worker: loads the model once, then runs one shard after another while the next one's bytes are
fetched.
"""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from integrand.schemas.records import Plan, Shard, ShardFooter
from integrand.schemas.tasks import Trial
from integrand.schemas.uris import Uri
from integrand.workers import kernels
from integrand.workers.data.prepasses.found import read_prepasses
from integrand.workers.data.values import arrow_type
from integrand.workers.engine.prepared import prepare_planned
from integrand.workers.failpoints import reach
from integrand.workers.models.code import CodeBundle, check_shipped, check_trust, install_code
from integrand.workers.models.embeddings import through_embeddings
from integrand.workers.models.loading import load_model
from integrand.workers.models.outputs import Forward
from integrand.workers.models.portions import in_portions
from integrand.workers.models.targets.table import with_view
from integrand.workers.shards.agreement import (
    check_build,
    check_code,
    check_decoder,
    check_device,
    check_kernels,
    check_outputs,
    check_state,
    is_planned_build,
)
from integrand.workers.shards.job import Job
from integrand.workers.shards.numerics import pin_numerics, versions
from integrand.workers.shards.shard import read_shard, run_shard, try_rows
from integrand.workers.storage.store import Access, Store
from integrand.workers.task_workers import Beat


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker is made from: the plan without its shards, which come one by one, and
    where it is stored.
    """

    plan: bytes
    plan_sha256: str
    run: Uri
    access: Access
    trusted: tuple[str, ...]
    code: CodeBundle
    allow_mixed: bool = False

    def make_worker(self) -> Worker:
        return Worker(self)


class Worker:
    """Runs shards of one plan. Raises SpecError, DataError or IntegrityError at its start if it
    cannot.
    """

    def __init__(self, setup: Setup) -> None:
        self.ticks = 0
        self.job = load_job(setup)
        self._reader = ThreadPoolExecutor(1, "prefetch")
        self._waiting = False
        self._ahead: dict[str, Future[tuple[pa.Table, float]]] = {}

    def run(self, task: Shard | Trial[Shard], prefetch: Shard | None = None) -> ShardFooter | None:
        """One shard's footer, once it is committed; None after a trial of some of its rows, which
        commits nothing.

        `prefetch` is a hint: the next shard may go elsewhere.
        """
        shard = task.task if isinstance(task, Trial) else task
        reach("shard.begun")
        table, read_s = self._table(shard)
        reach("shard.read")
        self._tick()
        if prefetch is not None:
            self._ahead[prefetch.id] = self._reader.submit(self._read, prefetch)
        if isinstance(task, Trial) and task.only is not None:
            try_rows(self.job, task, table, self._tick)
            return None
        return run_shard(self.job, task, table, read_s, self._tick)

    def beat(self) -> Beat:
        return Beat(self.ticks, socket.gethostname(), os.getpid())

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _table(self, shard: Shard) -> tuple[pa.Table, float]:
        """The shard's source rows, read ahead or now, and the seconds that took."""
        ahead = self._ahead.pop(shard.id, None)
        self._ahead.clear()
        self._waiting = True
        found = ahead.result() if ahead else self._read(shard)
        self._waiting = False
        return found

    def _read(self, shard: Shard) -> tuple[pa.Table, float]:
        started = time.perf_counter()
        table = read_shard(self.job, shard, self._tick_of_reading)
        return table, time.perf_counter() - started

    def _tick(self) -> None:
        self.ticks += 1

    def _tick_of_reading(self) -> None:
        """Reading is progress while the shard waits for it; ahead of time it must not hide a model
        that hangs.
        """
        self.ticks += self._waiting


def load_job(setup: Setup) -> Job:
    """Verify what the plan froze (code, weights, torch build), then load the model."""
    plan, store = Plan.model_validate_json(setup.plan), Store(setup.access)
    _admit_code(setup, plan)
    _pin(plan, allow_mixed=setup.allow_mixed)
    forward = _load_forward(store, plan)
    return Job(
        plan=plan,
        plan_sha256=setup.plan_sha256,
        store=store,
        run=setup.run,
        forward=forward,
        prepared=prepare_planned(forward, plan.spec, plan.inputs, plan.numerics),
        counted=read_prepasses(store, plan),
        device=plan.numerics.device,
        versions=versions(plan.numerics.device),
        row_id_type=arrow_type(plan.row_id_type),
        same_build=is_planned_build(plan),
    )


def _admit_code(setup: Setup, plan: Plan) -> None:
    """Install the shipped code, once it is trusted; it must be what was planned."""
    check_trust(plan.spec.model, setup.trusted)
    check_shipped(setup.code, setup.trusted)
    install_code(setup.code)
    check_code(plan)


def _pin(plan: Plan, *, allow_mixed: bool) -> None:
    """Set what decides bits in this process, and hold it against the plan."""
    check_device(plan)
    if not allow_mixed:
        check_build(plan)
        check_decoder(plan)
    if plan.numerics.portable:
        kernels.ask_portable()
    pin_numerics(plan.numerics.threads)
    if not allow_mixed:
        check_kernels(plan)


def _load_forward(store: Store, plan: Plan) -> Forward:
    numerics = plan.numerics
    loaded = load_model(store, plan.spec.model, plan.artefacts, numerics.precision, numerics.device)
    check_state(plan, loaded.state)
    viewed = with_view(loaded.forward, plan.spec.target)
    embedded = through_embeddings(viewed, plan.spec.inputs_with_baselines)
    forward = in_portions(embedded, numerics.takes_rows)
    check_outputs(plan, forward)
    return forward
