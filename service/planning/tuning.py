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
from integrand.service.planning.forms import choose_form
from integrand.service.planning.planner import Request, pinned, survey
from integrand.service.planning.trials import seconds_per_batch, step_trial
from integrand.service.pools.local import LocalPool
from integrand.workers.engine.batching import activation_bytes
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.table import method_of
from integrand.workers.models.code import check_trust
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.storage.store import Access, Store

SIZES = (16, 32, 64, 128, 256, 512, 1024)
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
    """All trials; none where the integral is taken in closed form."""

    device: str
    trials: tuple[Timing, ...]
    exact: bool = False

    def lines(self) -> list[str]:
        """A `compute` for the fastest trial with each number of threads, as YAML."""
        best: dict[int, Timing] = {}
        for trial in self.trials:
            fastest = best.setdefault(trial.threads, trial)
            if trial.seconds < fastest.seconds:
                best[trial.threads] = trial
        return [
            f"compute: {{batch_rows: {t.batch_rows}, threads: {t.threads}, cpus_per_worker:"
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

    Sizes are powers of two within `compute.memory`; threads are one, and as many as torch takes by
    itself.
    """
    check_trust(spec.model, trusted)
    threads = sorted({1, torch.get_num_threads()})
    with pinned(1):
        job = survey(
            Request(spec, base, Store(access), trusted, ingest=False), LocalPool(), rebuild=False
        )
        sample = first_pass(spec, job.forward, job.sample)[0]
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
    return Tuning(job.device, tuple(trials))


def _trials(
    spec: AttributeSpec, prepared: Prepared, sample: RowTensors, threads: int
) -> Iterator[Timing]:
    """Step batches of growing size, while they fit into memory and are not slow."""
    row_bytes = activation_bytes(prepared, sample.inputs, sample.forward_args)
    gradients = method_of(spec.accuracy).needs_gradients
    with pinned(threads):
        for size in SIZES:
            if size > SIZES[0] and 2 * row_bytes * size > spec.compute.memory:
                return
            trial = step_trial(prepared, sample, size, gradients=gradients)
            seconds = seconds_per_batch(trial)
            yield Timing(size, threads, spec.compute.savings, seconds / size)
            if seconds > SLOW_S:
                return
