"""Jobs on a real GPU: planned, tuned and run. Skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from integrand.service.planning.tuning import tune_job
from tests.plugins.jobs import JobFolder
from tests.service.planning.test_preflight import refusal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus_per_worker": 1} | changes


def test_a_plan_counts_what_a_worker_takes_of_its_gpu(job: JobFolder) -> None:
    plan = job.plan(compute=gpu())
    part = job.plan(compute=gpu(gpus_per_worker=0.25))
    assert plan.numerics.device == part.numerics.device == "cuda"
    assert plan.projection.device_bytes >= part.projection.device_bytes > 0
    assert plan.numerics.batch_rows.bit_count() == 1
    assert plan.numerics.batch_rows >= 1024


def test_the_same_job_is_planned_the_same_again(job: JobFolder) -> None:
    held = torch.empty(64 << 20, device="cuda")
    plan = job.plan(compute=gpu())
    del held
    assert job.plan(compute=gpu()).run_id == plan.run_id


def test_one_digest_for_any_shards(job: JobFolder) -> None:
    job.write_rows(count=300)
    digests = set()
    for shard_rows in (300, 41):
        manifest = job.run(
            accuracy={"kind": "adaptive", "tolerance": 1e-3},
            compute=gpu(shard_rows=shard_rows),
            output={"uri": f"out/{shard_rows}"},
        )
        assert (manifest.complete, manifest.determinism) == (True, "bitwise")
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_tuning_goes_beyond_what_cpus_are_tried_with(job: JobFolder) -> None:
    found = tune_job(job.spec(compute=gpu()), base=str(job.path), trusted=(job.module,))
    assert found.device == "cuda"
    assert max(t.batch_rows for t in found.trials) > 1024
    assert "gpus_per_worker: 1" in found.lines()[0]


def test_a_row_that_does_not_fit_is_refused(job: JobFolder) -> None:
    job.write_model("return self.logits(x) + 0 * x.repeat(1, 1000000).square()[:, :2]")
    assert "compute.memory" in refusal(job, compute=gpu(memory=1 << 20))


def test_a_batch_that_does_not_fit_is_told(job: JobFolder) -> None:
    job.write_model("return self.logits(x) + 0 * x.repeat(1, 1000000).square()[:, :2]")
    message = refusal(job, compute=gpu(batch_rows=1 << 20))
    assert "memory of the GPU" in message
    assert "compute.batch_rows" in message
