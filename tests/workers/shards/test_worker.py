"""A worker takes nothing for granted that the plan froze, and runs shards one after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.record import dump
from integrand.schemas.records import Plan
from integrand.schemas.tasks import Trial
from integrand.workers.models.code import CodeBundle
from integrand.workers.shards.numerics import pin_numerics, versions
from integrand.workers.shards.worker import Setup, Worker, load_job

MakeSetup = Callable[..., Setup]
TABLE = pa.table(
    {
        "id": np.arange(30),
        **{c: np.random.default_rng(i).normal(size=30) for i, c in enumerate("abc")},
    }
)


def changed(setup: Setup, **numerics: object) -> Setup:
    plan = Plan.model_validate_json(setup.plan)
    return replace(
        setup,
        plan=dump(plan.model_copy(update={"numerics": plan.numerics.model_copy(update=numerics)})),
    )


def test_a_worker_runs_its_shards_with_or_without_the_hint(make_setup: MakeSetup) -> None:
    setup = make_setup(TABLE)
    worker = Worker(setup)
    first, second, third = worker.job.plan.shards
    digests = [
        worker.run(first, prefetch=third).digest,
        worker.run(second, prefetch=third).digest,
        worker.run(third).digest,
    ]
    worker.close()
    again = Worker(replace(setup, run=setup.run.child("again")))
    assert [again.run(shard).digest for shard in again.job.plan.shards] == digests
    again.close()


def test_beats_count_progress_and_not_time(make_setup: MakeSetup) -> None:
    worker = Worker(make_setup(TABLE))
    before = worker.beat()
    assert worker.beat() == before
    worker.run(worker.job.plan.shards[0])
    assert worker.beat().ticks > before.ticks + 3
    worker.close()


def test_a_trial_of_some_rows_answers_and_commits_nothing(make_setup: MakeSetup) -> None:
    setup = make_setup(TABLE)
    worker = Worker(setup)
    shard = worker.job.plan.shards[1]
    assert worker.run(Trial(shard, only=(2, 5))) is None
    assert worker.job.store.list(worker.job.run) == []
    whole = worker.run(Trial(shard))
    assert whole is not None
    plain = Worker(replace(setup, run=setup.run.child("again")))
    assert plain.run(shard) == whole.model_copy(update={"seconds": plain.run(shard).seconds})
    plain.close()
    worker.close()


def test_reading_is_progress_while_a_shard_waits_for_it(make_setup: MakeSetup) -> None:
    """Ahead of time it is none: it would hide a model that hangs."""
    worker = Worker(make_setup(TABLE))
    worker._waiting = True
    worker._read(worker.job.plan.shards[0])
    waited = worker.ticks
    assert waited > 0
    worker._waiting = False
    worker._read(worker.job.plan.shards[0])
    assert worker.ticks == waited
    worker.close()


def test_a_source_that_vanished_is_told_by_the_shard_that_needs_it(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    worker = Worker(make_setup(TABLE))
    first, second, _ = worker.job.plan.shards
    worker.run(first)
    (tmp_path / "job" / "data" / "rows.parquet").unlink()
    with pytest.raises((DataError, IntegrityError), match=r"rows\.parquet"):
        worker.run(second)
    worker.close()


def test_untrusted_code_is_not_loaded(make_setup: MakeSetup) -> None:
    with pytest.raises(SpecError, match="toys"):
        load_job(replace(make_setup(TABLE), trusted=("toy", "toys.sub")))


def test_other_code_is_refused(make_setup: MakeSetup) -> None:
    setup = make_setup(TABLE)
    ((name, source),) = setup.code.parts
    with pytest.raises(IntegrityError, match=r"model code(.|\n)*plan again"):
        load_job(replace(setup, code=CodeBundle(((name, source + b"\n"),))))
    load_job(setup)


def test_other_weights_are_refused(make_setup: MakeSetup, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    module = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 2))
    save_file(module.state_dict(), weights)
    model = {
        "kind": "factory",
        "entrypoint": "toys:smooth",
        "code": ["toys.py"],
        "weights": str(weights),
    }
    setup = make_setup(TABLE, model=model)
    job = load_job(setup)
    x = torch.ones(1, 3, dtype=torch.float64)
    torch.testing.assert_close(job.forward(x), module.double()(x).detach())
    save_file({name: value + 1 for name, value in module.float().state_dict().items()}, weights)
    with pytest.raises(IntegrityError, match=r"w\.safetensors"):
        load_job(setup)


def test_another_torch_build_needs_allow_mixed_and_lowers_the_level(make_setup: MakeSetup) -> None:
    setup = changed(make_setup(TABLE), torch_build="2.0.0+other")
    with pytest.raises(
        IntegrityError, match=r"torch build(.|\n)*2\.0\.0\+other(.|\n)*--allow-mixed"
    ):
        Worker(setup)
    worker = Worker(replace(setup, allow_mixed=True))
    assert worker.run(worker.job.plan.shards[0]).determinism == "tolerance"
    worker.close()


def test_a_worker_without_the_gpu_that_was_planned_does_not_start(make_setup: MakeSetup) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SpecError, match=r"GPU of the worker(.|\n)*gpus_per_worker: 0"):
        load_job(changed(make_setup(TABLE), device="cuda"))


def test_numerics_are_pinned(make_setup: MakeSetup) -> None:
    load_job(changed(make_setup(TABLE), threads=2))
    assert torch.get_num_threads() == 2
    pin_numerics(1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_worker_starts_without_torchs_compiler() -> None:
    """To import it takes 2 s, of every worker."""
    code = (
        "import sys; from integrand.workers.shards.numerics import pin_numerics; pin_numerics(1); "
        "assert 'torch._inductor' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_versions_of_what_can_change_bits() -> None:
    found = versions("cpu")
    named = {"torch", "integrand", "pyarrow", "numpy", "pillow", "processor"}
    assert set(found) == named
    assert found["torch"] == torch.__version__
    assert all(found.values())


# --- the model that the factory builds, and the kernels that run it ----------------------------


def planned(setup: Setup, **changes: object) -> Setup:
    plan = Plan.model_validate_json(setup.plan)
    return replace(setup, plan=dump(plan.model_copy(update=changes)))


def test_a_factory_that_builds_another_model_here_is_refused(make_setup: MakeSetup) -> None:
    setup = make_setup(TABLE)
    for changes in ({"model_bits": "0" * 64}, {"model_state": "0" * 64, "model_bits": "0" * 64}):
        with pytest.raises(
            IntegrityError, match=r"the factory built another model here(.|\n)*no random"
        ):
            load_job(planned(setup, **changes))


def test_on_other_kernels_the_model_may_differ_by_rounding_and_no_more(
    make_setup: MakeSetup,
) -> None:
    """Seeded initial values are rounded by the processor's kernels."""
    elsewhere = changed(make_setup(TABLE), kernels="another processor")
    load_job(planned(elsewhere, model_bits="0" * 64))
    with pytest.raises(IntegrityError, match="another model"):
        load_job(planned(elsewhere, model_state="0" * 64))


def test_a_plan_from_before_models_were_digested_runs(make_setup: MakeSetup) -> None:
    job = load_job(
        planned(make_setup(TABLE), model_bits=None, model_state=None, model_outputs=None)
    )
    assert torch.isfinite(job.forward(torch.ones(1, 3, dtype=torch.float64))).all()


@pytest.mark.parametrize("level", ["prefer", "require"])
def test_other_kernels_are_refused_where_bits_are_required(
    make_setup: MakeSetup, level: str
) -> None:
    setup = make_setup(TABLE, compute={"batch_rows": 16, "shard_rows": 10, "reproducible": level})
    elsewhere = changed(setup, kernels="another processor")
    if level == "prefer":
        load_job(elsewhere)
        return
    with pytest.raises(
        IntegrityError,
        match=r"reproducible: require(.|\n)*another processor, as planned(.|\n)*--allow-mixed",
    ):
        load_job(elsewhere)
    load_job(replace(elsewhere, allow_mixed=True))


def test_a_model_that_says_something_else_here_is_refused_whatever_it_keeps_that_in(
    make_setup: MakeSetup,
) -> None:
    """Python's own numbers are in no digest: two made-up rows tell."""
    setup = make_setup(TABLE)
    plan = Plan.model_validate_json(setup.plan)
    assert plan.model_outputs is not None
    load_job(planned(setup, model_outputs=tuple(v * (1 + 1e-6) for v in plan.model_outputs)))
    with pytest.raises(IntegrityError, match="another model here"):
        load_job(planned(setup, model_outputs=tuple(v * 1.1 + 0.1 for v in plan.model_outputs)))
