"""What rows cost, by method."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.specs.job import AttributeSpec, parse_spec
from integrand.service.planning import trials
from integrand.service.planning.cost import (
    RowCost,
    affordable_rows,
    evaluations_per_row,
    memory_of,
    row_cost,
    seconds_per_row,
    worker_memory,
)
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors

SAMPLE = RowTensors((torch.randn(4, 3, dtype=torch.float64),), (torch.zeros(1, 3),))


def evaluations(accuracy: Accuracy, batch_s: float) -> float:
    prepared = Prepared(lambda x: x.square().sum(1))
    return evaluations_per_row(method_of(accuracy), prepared, SAMPLE, 16, batch_s)


@pytest.mark.parametrize(
    ("accuracy", "batch_s", "expected"),
    [
        (Adaptive(), 1e-6, 7.0),
        (Adaptive(max_evaluations=99), 100.0, 99.0),
        (FixedSteps(rule="trapezoid", steps=9), 1e-6, 10.0),
        (Exact(), 1e-6, 1.0),
    ],
    ids=["tried", "too slow to try", "fixed", "exact"],
)
def test_rows_that_differ_are_tried_where_that_is_quick(
    accuracy: Any, batch_s: float, expected: float
) -> None:
    assert evaluations(accuracy, batch_s) == expected


def test_a_row_takes_its_evaluations_and_its_ends() -> None:
    assert seconds_per_row(7, 16, 1.6) == pytest.approx(8 * 0.1 * 1.2)


def test_a_plain_sum_keeps_less_than_a_certificate() -> None:
    wide = RowTensors((torch.zeros(1, 1 << 20),))
    prepared = Prepared(lambda x: x.sum(1))
    methods = [method_of(a) for a in (FixedSteps(steps=7), Adaptive())]
    fixed, adaptive = (worker_memory(m, row_cost(m, prepared, wide), 16).host for m in methods)
    assert adaptive - fixed > 7 * 60 * 8 << 20


# --- on a GPU ------------------------------------------------------------------------------------

CUDA = torch.device("cuda")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 GiB, of which 2 are in use."""
    told = {"mem_get_info": (22 * GIB, 24 * GIB), "memory_allocated": GIB, "memory_reserved": GIB}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


def job(**compute: Any) -> AttributeSpec:
    fields = {
        "kind": "attribute",
        "name": "job",
        "source": {"uri": "rows"},
        "model": {"kind": "torch_export", "uri": "model.pt2"},
        "inputs": [{"name": "features", "columns": ["a"]}],
        "target": {"kind": "scalar"},
        "output": {"uri": "out"},
        "compute": {"gpus_per_worker": 1} | compute,
    }
    return parse_spec(fields)


def row(step: int, kept: int = 0) -> RowCost:
    return RowCost(device=CUDA, step=step, kept=kept, kept_by_step=kept)


def rows_of(spec: AttributeSpec, of_row: RowCost) -> int:
    return affordable_rows(spec, memory_of(spec, CUDA), of_row, lambda x: x)


@pytest.mark.parametrize(
    ("compute", "rows"),
    [
        ({}, 4096),
        ({"gpus_per_worker": 0.25}, 1024),
        ({"memory": 128 << 20}, 128),
        ({"batch_rows": 77}, 77),
    ],
    ids=["a quarter of it", "of a quarter", "asked for", "rows asked for"],
)
def test_step_batches_on_a_gpu_follow_its_memory(compute: dict[str, Any], rows: int) -> None:
    assert rows_of(job(**compute), row(1 << 20)) == rows


@pytest.mark.parametrize(("targets", "shared"), [(1, 1), (3, 3), (1000, 8)])
def test_room_is_left_for_some_of_its_targets(targets: int, shared: int) -> None:
    method, prepared = method_of(Adaptive()), Prepared(lambda x: x.square().sum(1))
    one, found = (row_cost(method, prepared, SAMPLE, count) for count in (1, targets))
    assert found.kept == one.kept == 3 * method.needs.kept_bytes
    assert found.kept_by_step == -(-2 * one.kept * shared // 7)


def test_one_row_may_take_more_than_a_step_batch_does() -> None:
    assert rows_of(job(), row(20 * GIB)) == 1


@pytest.mark.parametrize(
    ("compute", "seen", "advice"),
    [
        ({}, "22,528 MiB free for a worker with 1 of it", "a GPU with more"),
        ({"gpus_per_worker": 0.5}, "12,288 MiB free for a worker with 0.5", "gpus_per_worker to 1"),
        ({"memory": GIB}, "1,024 MiB", "raise compute.memory"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(
    compute: dict[str, Any], seen: str, advice: str
) -> None:
    with pytest.raises(SpecError) as caught:
        rows_of(job(**compute), row(23 * GIB))
    for words in ("at least 23,552 MiB", seen, advice):
        assert words in str(caught.value)


def test_a_worker_takes_memory_of_its_gpu_and_of_its_host() -> None:
    """Weights that are there, a step batch, and rows under way: 2 x 3 + 1 of them."""
    found = worker_memory(method_of(Adaptive()), row(1000, kept=10), 21)
    assert found.device == GIB + 21 * 1000 + 7 * 10
    assert found.host < worker_memory(method_of(Adaptive()), on_cpu(1 << 40), 21).host


def on_cpu(step: int) -> RowCost:
    return RowCost(device=torch.device("cpu"), step=step, kept=0, kept_by_step=0)


def test_timing_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the clock starts, and before it stops."""
    told: list[str] = []

    class Trial:
        def run(self) -> Any:
            told.append("run")
            return SimpleNamespace(device=CUDA)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: told.append("t") or 0))
    trials.seconds_per_batch(Trial())
    assert told[:5] == ["run", "wait", "t", "run", "wait"]
    assert told.count("wait") == 1 + trials.ROUNDS


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [(0, 4, 4.0), (1, 4, 4.0), (2, 4, 4.0), (0.25, 8, 2.0), (0.25, {"max": 2}, 1.0)],
)
def test_workers_with_a_part_of_a_gpu_take_turns(
    gpus: float, workers: Any, expected: float
) -> None:
    assert job(gpus_per_worker=gpus, workers=workers).compute.side_by_side == expected
