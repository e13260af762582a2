"""`integrand tune`: what it prints can be pasted, and it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import parse_spec
from integrand.service.cli.specfile import parse_text
from integrand.service.planning import tuning
from integrand.service.planning.tuning import Timing, Tuning, tune_job
from integrand.service.reports.plans import show_tuning
from integrand.workers.engine.memory import MemoryBudget
from tests.plugins.jobs import JobFolder

ON_CUDA = tuning.SIZES_ON_CUDA


def tune(job: JobFolder, **changes: object) -> Tuning:
    return tune_job(job.spec(**changes), base=str(job.path), trusted=(job.module,))


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SIZES", (16, 32, 64))


def test_every_way_is_timed_and_nothing_is_written(job: JobFolder) -> None:
    before, threads = sorted(job.path.rglob("*")), torch.get_num_threads()
    found = tune(job)
    assert {t.batch_rows for t in found.trials} == {16, 32, 64}
    assert {t.threads for t in found.trials} == {1, threads}
    assert all(t.seconds > 0 for t in found.trials)
    assert [p for p in sorted(job.path.rglob("*")) if "__pycache__" not in str(p)] == before
    assert torch.get_num_threads() == threads


def test_savings_are_compared_where_there_are_any(job: JobFolder) -> None:
    job.path.joinpath(f"{job.module}.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 8),"
        " nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).eval()\n"
    )
    assert {t.savings for t in tune(job).trials} == {"auto", "none"}


def test_memory_bounds_the_step_batch(job: JobFolder) -> None:
    job.write_model(
        "return self.logits(x) + (x[:, :1, None] * x.new_ones(1, 1, 9000)).sin().sum((1, 2))[:,"
        " None]"
    )
    found = tune(job, compute={"memory": 4 << 20})
    assert {t.batch_rows for t in found.trials} == {16, 32}


def test_slow_batches_are_not_made_larger(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SLOW_S", 0.0)
    assert {t.batch_rows for t in tune(job).trials} == {16}


def test_the_fastest_of_each_number_of_threads_is_a_line_for_the_spec(job: JobFolder) -> None:
    found = Tuning(
        "cpu",
        (Timing(16, 1, "auto", 3e-3), Timing(32, 1, "none", 1e-3), Timing(16, 4, "auto", 2e-3)),
    )
    parsed = [parse_text(line, "tune") for line in found.lines()]
    assert [p["compute"]["batch_rows"] for p in parsed] == [32, 16]
    specs = [parse_spec(job.fields(**p)) for p in parsed]
    assert [(s.compute.threads, s.compute.savings) for s in specs] == [(1, "none"), (4, "auto")]


@pytest.mark.parametrize(
    ("step", "sizes"),
    [(1 << 20, range(5, 13)), (8, range(5, 21)), (1 << 40, [5])],
    ids=["half of it", "a million rows", "less than there is"],
)
def test_on_a_gpu_sizes_go_up_to_half_of_its_memory(
    step: int, sizes: Iterable[int], job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = MemoryBudget(device="cuda", batch=2 << 30, kept=2 << 30, most=8 << 30)
    for name, stand_in in {
        "SIZES_ON_CUDA": ON_CUDA,
        "memory_of": lambda spec, device: budget,
        "row_cost": lambda method, prepared, sample: SimpleNamespace(step=step),
        "step_trial": lambda prepared, sample, size, *, gradients: size,
        "seconds_per_batch": lambda size: 1e-3,
    }.items():
        monkeypatch.setattr(tuning, name, stand_in)
    sample = SimpleNamespace(device=torch.device("cuda"))
    found = tuning._trials(job.spec(), object(), sample, 1)
    assert [t.batch_rows for t in found] == [1 << power for power in sizes]


def test_lines_for_a_gpu_ask_for_it(job: JobFolder) -> None:
    (line,) = Tuning("cuda", (Timing(1 << 16, 1, "auto", 1e-7),), gpus=0.5).lines()
    spec = parse_spec(job.fields(**parse_text(line, "tune")))
    assert (spec.compute.gpus_per_worker, spec.compute.batch_rows) == (0.5, 1 << 16)


def test_a_closed_form_has_nothing_to_tune(job: JobFolder) -> None:
    job.path.joinpath(f"{job.module}.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(),"
        " nn.Linear(8, 2)).eval()\n"
    )
    found = tune(job, accuracy={"kind": "adaptive"})
    assert (found.exact, found.trials) == (True, ())
    console = Console(record=True, width=120)
    show_tuning(console, found)
    assert "closed form" in console.export_text()


def test_model_code_must_be_trusted(job: JobFolder) -> None:
    with pytest.raises(SpecError, match="--trust-model-code"):
        tune_job(job.spec(), base=str(job.path))
