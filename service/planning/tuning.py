"""What a gradient evaluation of a job's model costs on this machine, by rows of a step batch,
threads and savings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from integrand.schemas.specs.job import AttributeSpec
from integrand.service.planning.contract import first_pass
from integrand.service.planning.cost import memory_of, row_cost
from integrand.service.planning.forms import choose_form
from integrand.service.planning.presets import with_presets
from integrand.service.planning.request import Request
from integrand.service.planning.survey import pinned, survey
from integrand.service.planning.texts import settle_texts
from integrand.service.planning.trials import seconds_per_batch, step_trial
from integrand.service.pools.local import LocalPool
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.table import method_of
from integrand.workers.models.code import check_trust
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.storage.store import Access, Store

SIZES = (16, 32, 64, 128, 256, 512, 1024)
SIZES_ON_CUDA = tuple(1 << power for power in range(5, 21))
_CHOICES: tuple[Literal["auto", "none"], ...] = ("auto", "none")
SLOW_S = 5.0
"""Seconds of a step batch after which larger ones are not tried."""


@dataclass(frozen=True)
class Timing:
    """One way to run step batches, and the seconds of one gradient evaluation."""

    batch_rows: int
    threads: int
    savings: Literal["auto", "none"]
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """All trials; none where the integral is taken in closed form.

    gpus  that a worker has
    """

    device: str
    trials: tuple[Timing, ...]
    exact: bool = False
    gpus: float = 0.0

    def lines(self) -> list[str]:
        """A `compute` for the fastest trial with each number of threads, as YAML."""
        best: dict[int, Timing] = {}
        for trial in self.trials:
            fastest = best.setdefault(trial.threads, trial)
            if trial.seconds < fastest.seconds:
                best[trial.threads] = trial
        gpus = f"gpus_per_worker: {self.gpus:g}, " if self.gpus else ""
        return [
            f"compute: {{batch_rows: {t.batch_rows}, threads: {t.threads}, {gpus}cpus_per_worker:"
            f" {t.threads}, savings: {t.savings}}}  # {1 / t.seconds:.4g} evaluations/s in each"
            " worker"
            for _, t in sorted(best.items())
        ]


def tune_job(
    spec: AttributeSpec,
    *,
    base: str = "/",
    trusted: tuple[str, ...] = (),
    access: Access = Access(),
) -> Tuning:
    """Time step batches of a job's first rows. Raises like `plan_job`; writes nothing.

    Sizes are powers of two within `compute.memory`, on a GPU up to half of what a worker may have
    of it; threads are one, and as many as torch takes by itself, but one alone beside a GPU.
    """
    check_trust(spec.model, trusted)
    spec = settle_texts(Store(access), with_presets(Store(access), spec, base), base)
    every = torch.get_num_threads()
    with pinned(1):
        job = survey(
            Request(spec, base, Store(access), trusted, ingest=False), LocalPool(), rebuild=False
        )
        threads = [1] if job.device == "cuda" else sorted({1, every})
        sample = first_pass(spec, job.forward, job.sample)[0].first_draw()
        trials: list[Timing] = []
        for savings in _CHOICES:
            compute = spec.compute.model_copy(update={"savings": savings})
            asked = spec.model_copy(update={"compute": compute})
            form = choose_form(asked, job.forward, sample)
            if form.exact:
                return Tuning(job.device, (), exact=True)
            for count in threads:
                trials += _trials(asked, form.prepared, sample, count)
            if not form.savings.names:  # then `none` is the same
                break
    gpus = spec.compute.gpus_per_worker if job.device == "cuda" else 0.0
    return Tuning(job.device, tuple(trials), gpus=gpus)


def _most_rows(spec: AttributeSpec, prepared: Prepared, sample: RowTensors) -> int:
    """Rows that fit into memory: on a GPU into half of what a worker may have there, so that more
    than a plan takes is tried too.
    """
    budget = memory_of(spec, sample.device)
    step = row_cost(method_of(spec.accuracy, spec.method), prepared, sample).step
    if budget.device != "cuda":
        return budget.batch // (2 * step)
    return max(budget.batch, budget.most // 2) // step


def _trials(
    spec: AttributeSpec, prepared: Prepared, sample: RowTensors, threads: int
) -> Iterator[Timing]:
    """Step batches of growing size, while they fit into memory and are not slow."""
    most = _most_rows(spec, prepared, sample)
    sizes = SIZES_ON_CUDA if sample.device.type == "cuda" else SIZES
    gradients = method_of(spec.accuracy, spec.method).needs_gradients
    with pinned(threads):
        for size in sizes:
            if size > max(most, sizes[0]):
                return
            try:
                trial = step_trial(prepared, sample, size, gradients=gradients)
                seconds = seconds_per_batch(trial)
            except torch.OutOfMemoryError:
                return
            yield Timing(size, threads, spec.compute.savings, seconds / size)
            if seconds > SLOW_S:
                return
