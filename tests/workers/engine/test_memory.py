"""What a call may take of a device: rules on numbers as a GPU gives them, and measured where there
is one.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from integrand.workers.engine import memory
from integrand.workers.engine.batching import KEPT_BYTES, activation_bytes, step_batch_rows
from integrand.workers.engine.memory import (
    CUDA_ROWS,
    MemoryBudget,
    memory_budget,
    row_bytes,
)
from integrand.workers.models.outputs import Forward

GIB, MIB = 1 << 30, 1 << 20
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
sizes = st.integers(1, 1 << 40)


class Card:
    """A GPU as torch tells of it."""

    def __init__(self, total: int, free: int, reserved: int = 0, allocated: int = 0) -> None:
        self.numbers = {
            "mem_get_info": (free, total),
            "memory_reserved": reserved,
            "memory_allocated": allocated,
        }

    def put(self, patch: pytest.MonkeyPatch) -> None:
        for name, value in self.numbers.items():
            patch.setattr(torch.cuda, name, lambda device, value=value: value)


H200 = Card(140 * GIB, 139 * GIB)


def budget(card: Card, patch: pytest.MonkeyPatch, **options: object) -> MemoryBudget:
    card.put(patch)
    return memory_budget(CUDA, **options)


@given(sizes, st.integers(MIB, 1 << 50))
def test_a_cpu_takes_what_fills_its_caches(of_row: int, asked: int) -> None:
    assert memory_budget(CPU).batch_rows(of_row, 1 << 30) == step_batch_rows(of_row, 512 * MIB)
    assert memory_budget(CPU, asked).batch_rows(of_row) == step_batch_rows(of_row, asked)
    assert memory_budget(CPU, share=0.1).kept == KEPT_BYTES


MEASURED = {
    "MLP-96": (8.23 / 1024, 1 << 20, 1 << 20),
    "MNIST CNN": (179.5 / 1024, 1 << 14, 1 << 16),
    "MiniLM": (6.7, 1024, 1024),
    "BERT-base": (50.3, 256, 128),
    "ViT-B/16": (77.0, 128, 128),
    "ResNet-50": (86.0, 256, 128),
}
"""MiB of a row on an H200, the fastest of a few step batches there, and what is chosen."""


@pytest.mark.parametrize("model", MEASURED)
def test_step_batches_come_near_the_fastest_that_were_measured(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_row, fastest, chosen = MEASURED[model]
    assert budget(H200, monkeypatch).batch_rows(int(of_row * MIB)) == chosen
    assert fastest / 4 <= chosen <= 4 * fastest


@given(sizes, st.integers(0, 1 << 40))
def test_batches_on_a_gpu_are_powers_of_two_within_its_memory(of_row: int, kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = budget(H200, patch)
    rows = found.batch_rows(of_row, kept)
    assert rows.bit_count() == 1
    assert rows <= CUDA_ROWS
    assert rows == 1 or (rows * of_row <= found.batch and rows * kept <= found.kept)


@pytest.mark.parametrize(
    ("card", "share", "asked", "batch", "most"),
    [
        (H200, 1.0, "auto", 12 * GIB, 139 * GIB),
        (H200, 0.25, "auto", 35 * GIB // 4, 35 * GIB),
        (H200, 2.0, "auto", 12 * GIB, 139 * GIB),
        (Card(24 * GIB, 23 * GIB), 1.0, "auto", 6 * GIB, 23 * GIB),
        (Card(24 * GIB, 4 * GIB), 1.0, "auto", 2 * GIB, 4 * GIB),
        (Card(24 * GIB, GIB, 22 * GIB, 2 * GIB), 1.0, "auto", 6 * GIB, 21 * GIB),
        (Card(24 * GIB, 23 * GIB), 1.0, GIB, GIB, GIB),
    ],
    ids=["whole", "a quarter", "two", "smaller", "busy", "held unused by this process", "asked"],
)
def test_what_a_worker_may_take(
    card: Card,
    share: float,
    asked: int | str,
    batch: int,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = budget(card, monkeypatch, asked=asked, share=share)
    assert (found.batch, found.most) == (batch, most)


def test_rows_under_way_bound_a_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = budget(Card(16 * GIB, 16 * GIB), monkeypatch)
    assert found.batch_rows(1024, 4 * MIB) == 1024


NET = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
X = torch.randn(3, 8)


def test_a_row_on_a_cpu_takes_what_autograd_saves() -> None:
    assert row_bytes(NET, [X], []) == activation_bytes(NET, [X], [])


class Elsewhere(torch.Tensor):
    """Numbers that say they are on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


@pytest.mark.parametrize(
    ("each", "expected"), [(700, 700), (0, 2 * activation_bytes(NET, [X], []))]
)
def test_on_a_gpu_it_is_measured_by_twice_as_many_rows(
    each: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all rows share cancels out; where the allocator says nothing it is counted."""
    tried = []

    def peak_bytes(forward: object, inputs: object, arguments: object, rows: int) -> int:
        tried.append(rows)
        return 5000 + each * rows

    monkeypatch.setattr(memory, "_peak_bytes", peak_bytes)
    x = X.as_subclass(Elsewhere)
    assert row_bytes(NET, [x], []) == expected
    assert tried == [1024, 2048]


@pytest.mark.parametrize("forward", [NET, lambda x: x.detach().sum(1)], ids=["net", "no gradient"])
def test_what_is_measured_is_the_peak_beside_what_was_there(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [{"requested_bytes.all.current": 500}, {"requested_bytes.all.peak": 1700}]
    begun: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: told.pop(0))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", begun.append)
    assert memory._peak_bytes(forward, [X], [], 64) == 1200
    assert len(begun) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), ValueError("16 rows")])
def test_where_so_many_rows_do_not_fit_it_is_counted(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak_bytes(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(memory, "_peak_bytes", peak_bytes)
    assert row_bytes(NET, [X.as_subclass(Elsewhere)], []) == 2 * activation_bytes(NET, [X], [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_row_as_a_gpu_measures_it() -> None:
    """No less than what is saved of it; the same again, whatever the allocator holds by then."""
    net, x = NET.cuda(), X.cuda()
    found = row_bytes(net, [x], [])
    kept = torch.empty(1 << 20, device="cuda")
    assert row_bytes(net, [x], []) == found
    assert found >= activation_bytes(net, [x], [])
    assert kept.is_cuda
