"""A worker: loads the model once, then runs one shard after another while the next one's bytes are
fetched.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import torch

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import Plan, Shard, ShardFooter
from integrand.schemas.tasks import Trial
from integrand.schemas.uris import Uri
from integrand.workers import kernels
from integrand.workers.data.means import read_means
from integrand.workers.engine.prepared import prepare_planned
from integrand.workers.failpoints import reach
from integrand.workers.models.code import (
    CodeBundle,
    check_shipped,
    check_trust,
    code_digest,
    install_code,
)
from integrand.workers.models.embeddings import through_embeddings
from integrand.workers.models.loading import DTYPES, load_model
from integrand.workers.models.outputs import Forward
from integrand.workers.models.portions import in_portions
from integrand.workers.models.state import State, probe_outputs, same_outputs
from integrand.workers.shards.job import Job
from integrand.workers.shards.shard import read_shard, run_shard, try_rows
from integrand.workers.storage.store import Access, Store
from integrand.workers.task_workers import Beat


@dataclass(frozen=True)
class Setup:
    """What a worker is told at its start: the plan without its shards, which come one by one, and
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
        ahead = self._ahead.pop(shard.id, None)
        self._ahead.clear()
        self._waiting = True
        table, read_s = ahead.result() if ahead else self._read(shard)
        self._waiting = False
        reach("shard.read")
        self._tick()
        if prefetch is not None:
            self._ahead[prefetch.id] = self._reader.submit(self._read, prefetch)
        if isinstance(task, Trial) and task.only is not None:
            return try_rows(self.job, task, table, self._tick)
        return run_shard(self.job, task, table, read_s, self._tick)

    def beat(self) -> Beat:
        return Beat(self.ticks, socket.gethostname(), os.getpid())

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, shard: Shard) -> tuple[pa.Table, float]:
        started = time.perf_counter()
        return read_shard(self.job, shard, self._tick_of_reading), time.perf_counter() - started

    def _tick(self) -> None:
        self.ticks += 1

    def _tick_of_reading(self) -> None:
        """Reading is progress while the shard waits for it; ahead of time it must not hide a model
        that hangs.
        """
        self.ticks += self._waiting


def load_job(setup: Setup) -> Job:
    """Verify what the plan froze (code, weights, torch build), then load the model."""
    plan = Plan.model_validate_json(setup.plan)
    store, model = Store(setup.access), plan.spec.model
    check_trust(model, setup.trusted)
    check_shipped(setup.code, setup.trusted)
    install_code(setup.code)
    _check_code(plan)
    same_build = plan.numerics.torch_build == torch.__version__
    if not same_build and not setup.allow_mixed:
        raise IntegrityError(
            "torch build",
            expected=plan.numerics.torch_build,
            seen=torch.__version__,
            next_step="use the planned build, or --allow-mixed and lose bitwise equality",
        )
    device = plan.numerics.device
    if plan.numerics.portable:
        kernels.ask_portable()
    pin_numerics(plan.numerics.threads)
    if not setup.allow_mixed:
        _check_kernels(plan, device)
    loaded = load_model(store, model, plan.artefacts, plan.numerics.precision, device)
    _check_state(plan, loaded.state, device)
    forward = in_portions(through_embeddings(loaded.forward, plan.spec), plan.numerics.takes_rows)
    _check_outputs(plan, forward, device)
    means = (
        read_means(store, store.parse(plan.statistics.uri), plan.statistics.sha256)
        if plan.statistics
        else None
    )
    prepared = prepare_planned(forward, plan.spec, plan.inputs, plan.numerics)
    return Job(
        plan,
        setup.plan_sha256,
        store,
        setup.run,
        forward,
        prepared,
        means,
        device,
        versions(device),
        _arrow_type(plan.row_id_type),
        same_build,
    )


def _arrow_type(name: str) -> pa.DataType | None:
    """The type that a plan names; None for those without a form of their own, which all files must
    share anyway.
    """
    if zoned := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name):
        return pa.timestamp(zoned[1], zoned[2])
    if decimal := re.fullmatch(r"decimal(128|256)\((\d+), (-?\d+)\)", name):
        return {"128": pa.decimal128, "256": pa.decimal256}[decimal[1]](
            int(decimal[2]), int(decimal[3])
        )
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return None


def _check_kernels(plan: Plan, device: str) -> None:
    """IntegrityError for other kernels than the plan's, where the spec insists on bits: they would
    be other ones here.
    """
    insisted, planned, seen = (
        plan.spec.compute.reproducible,
        plan.numerics.kernels,
        processor(device),
    )
    if insisted != "prefer" and planned not in (None, seen):
        raise IntegrityError(
            f"kernels, for compute.reproducible: {insisted}",
            expected=f"{planned}, as planned",
            seen=seen,
            next_step=(
                "plan and run on like machines, take `portable` for x86 of several kinds, or "
                "--allow-mixed (level `tolerance`); --fresh SALT plans anew here"
            ),
        )


def _check_state(plan: Plan, found: State | None, device: str) -> None:
    """IntegrityError for a factory that built another model here: in any bit where kernels are the
    planned ones.
    """
    if found is None or plan.model_state is None:
        return
    exact = plan.numerics.kernels == processor(device)
    planned, seen = (plan.model_bits, found.exactly) if exact else (plan.model_state, found.roughly)
    if planned != seen:
        raise IntegrityError(
            "model",
            expected=f"the parameters that were planned, digest {str(planned)[:16]}…",
            seen=f"{seen[:16]}…: the factory built another model here",
            next_step=(
                "let it depend on nothing but its arguments, code and weights: no random or"
                " machine's own state; or plan again"
            ),
        )


def _check_outputs(plan: Plan, forward: Forward, device: str) -> None:
    """IntegrityError for a model that says something else here, whatever it keeps that in."""
    if plan.model_outputs is None:
        return
    shapes, dtype = [s.shape for s in plan.inputs], DTYPES[plan.numerics.precision]
    seen = probe_outputs(forward, shapes, dtype, device)
    if seen is None or not same_outputs(plan.model_outputs, seen):
        raise IntegrityError(
            "model",
            expected=(
                f"the outputs that were planned for two made-up rows, {plan.model_outputs[:3]} …"
            ),
            seen=f"{seen and seen[:3]} …: the factory built another model here",
            next_step=(
                "let it depend on nothing but its arguments, code and weights: no random or"
                " process's own numbers"
            ),
        )


def _check_code(plan: Plan) -> None:
    seen = code_digest(plan.spec.model)
    if seen != plan.code_sha256:
        raise IntegrityError(
            "model code",
            expected=f"sha256 {str(plan.code_sha256)[:16]}…",
            seen=f"{str(seen)[:16]}…",
            next_step="plan again: other code is another run; install the same code on all workers",
        )


def pin_numerics(threads: int) -> None:
    """Process-wide switches that change bits: threads, deterministic kernels, no TF32."""
    torch.set_num_threads(threads)
    # use_deterministic_algorithms would import the compiler, for 2 s
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # nothing here reads it, and it costs 5%
    )
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def versions(device: str) -> dict[str, str]:
    """Of everything beside the plan that chooses the kernels, and with them the last bits."""
    packages = {name: version(name) for name in ("integrand", "pyarrow", "numpy")}
    return {"torch": torch.__version__, **packages, "processor": processor(device)}


def processor(device: str) -> str:
    """The CPU's architecture and kernels, and its vendor where they go by it; any CUDA device."""
    found = kernels.in_force()
    cpu = ["" if found.portable else _cpu_vendor(), platform.machine(), str(found)]
    name = " ".join(part for part in cpu if part)
    return f"{name} with {torch.cuda.get_device_name()}" if device == "cuda" else name


def _cpu_vendor() -> str:
    """As Linux tells it: `vendor_id` on x86, `CPU implementer` on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = (
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith(("vendor_id", "CPU implementer"))
    )
    return next(found, "")
