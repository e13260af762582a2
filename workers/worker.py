"""A worker: loads the model once, then runs one shard after another while the next one's bytes are fetched."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
import torch

from integrand.schemas.errors import IntegrityError
from integrand.schemas.records import Plan, Shard, ShardFooter
from integrand.schemas.uris import Uri
from integrand.workers.embeddings import through_embeddings
from integrand.workers.models import CodeBundle, check_trust, code_digest, install_code, load_model
from integrand.workers.prepared import prepare_planned
from integrand.workers.shard import Job, read_shard, run_shard
from integrand.workers.statistics import read_means
from integrand.workers.store import Access, Store


@dataclass(frozen=True)
class Setup:
    """What a worker is told at its start: everything else it reads from the plan."""

    plan: bytes
    run: Uri
    access: Access
    trusted: tuple[str, ...]
    code: CodeBundle
    allow_mixed: bool = False


@dataclass(frozen=True)
class Beat:
    """How far a worker has come: `ticks` counts finished step batches and stages, not heartbeats."""

    ticks: int
    node: str
    pid: int


class Worker:
    """Runs shards of one plan. Raises SpecError, DataError or IntegrityError at its start if it cannot."""

    def __init__(self, setup: Setup) -> None:
        self.ticks = 0
        self.job = load_job(setup)
        self._reader = ThreadPoolExecutor(1, "prefetch")
        self._ahead: dict[str, Future[tuple[pa.Table, float]]] = {}

    def run(self, shard: Shard, prefetch: Shard | None = None) -> ShardFooter:
        """One shard's footer, once it is committed. `prefetch` is a hint: the next shard may go elsewhere."""
        ahead = self._ahead.pop(shard.id, None)
        self._ahead.clear()
        table, read_s = ahead.result() if ahead else self._read(shard)
        self._tick()
        if prefetch is not None:
            self._ahead[prefetch.id] = self._reader.submit(self._read, prefetch)
        return run_shard(self.job, shard, table, read_s, self._tick)

    def beat(self) -> Beat:
        return Beat(self.ticks, socket.gethostname(), os.getpid())

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, shard: Shard) -> tuple[pa.Table, float]:
        started = time.perf_counter()
        return read_shard(self.job, shard), time.perf_counter() - started

    def _tick(self) -> None:
        self.ticks += 1


def load_job(setup: Setup) -> Job:
    """Verify what the plan froze (code, weights, torch build), then load the model."""
    plan = Plan.model_validate_json(setup.plan)
    store, model = Store(setup.access), plan.spec.model
    check_trust(model, setup.trusted)
    install_code(setup.code)
    _check_code(plan)
    same_build = plan.numerics.torch_build == torch.__version__
    if not same_build and not setup.allow_mixed:
        raise IntegrityError("torch build", expected=plan.numerics.torch_build, seen=torch.__version__,
                             next_step="use the planned build, or --allow-mixed and lose bitwise equality")  # fmt: skip
    pin_numerics(plan.numerics.threads)
    device = plan.numerics.device
    forward = load_model(store, model, plan.artefacts, plan.numerics.precision, device)
    forward = through_embeddings(forward, plan.spec)
    means = read_means(store, store.parse(plan.statistics.uri), plan.statistics.sha256) if plan.statistics else None
    prepared = prepare_planned(forward, plan.spec, plan.inputs, plan.numerics)
    return Job(plan, hashlib.sha256(setup.plan).hexdigest(), store, setup.run, forward, prepared, means, device,
               versions(), _arrow_type(plan.row_id_type), same_build)  # fmt: skip


def _arrow_type(name: str) -> pa.DataType | None:
    """The type of a planned column; None for parametrised ones, which all files must share anyway."""
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return None


def _check_code(plan: Plan) -> None:
    seen = code_digest(plan.spec.model)
    if seen != plan.code_sha256:
        raise IntegrityError("model code", expected=f"sha256 {str(plan.code_sha256)[:16]}…", seen=f"{str(seen)[:16]}…",
                             next_step="plan again: other code is another run; install the same code on all workers")  # fmt: skip


def pin_numerics(threads: int) -> None:
    """Process-wide switches that change bits: threads, deterministic kernels, no TF32."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads it, and it costs 5%
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, **{name: version(name) for name in ("integrand", "pyarrow", "numpy")}}
