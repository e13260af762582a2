"""What stays on the device, how often the host waits for it, and what is left after a call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, FixedSteps
from integrand.workers.engine.parts import ByDevice
from integrand.workers.engine.prepared import Prepared, stepping
from integrand.workers.engine.results import Attribution, Report
from integrand.workers.methods import phases
from integrand.workers.models.outputs import Forward
from integrand.workers.rewriting.hoisting import hoist
from tests.plugins.explaining import attribute_untried

ELEMENTS = 997
"""A prime: what has so many numbers, or a multiple, is about elements."""
X = torch.randn(40, ELEMENTS, generator=torch.Generator().manual_seed(0)) / 10
WAYS_TO_THE_HOST = ("cpu", "numpy", "tolist", "item", "__array__")


def smooth(x: Tensor) -> Tensor:
    return torch.stack([(3 * x).sin().sum(1), x.square().sum(1)], 1)


def kinked(x: Tensor) -> Tensor:
    found = ((x * 30) % 2 - 1).abs().sum(1)
    return torch.stack([found, found.square()], 1)


def spiky(x: Tensor) -> Tensor:
    found = torch.sigmoid(2000 * (x[:, 0] - 0.03)) + 1e-3 * x.sum(1)
    return torch.stack([found, found], 1)


def behind_a_prefix() -> Prepared:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(ELEMENTS, 2 * ELEMENTS), nn.GELU(), nn.Linear(2 * ELEMENTS, 2))
    model = model.eval().requires_grad_(False)
    found = hoist(model, (X[:2],))
    assert found is not None
    return Prepared(model, found)


def half() -> Prepared:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(ELEMENTS, 32), nn.GELU(), nn.Linear(32, 2)).eval()
    return stepping(Prepared(model.requires_grad_(False)), "bfloat16", "cpu", compile=False)


CASES: dict[str, tuple[Callable[[], Forward], Accuracy]] = {
    "smooth": (lambda: smooth, Adaptive(tolerance=1e-3)),
    "kinked": (lambda: kinked, Adaptive(tolerance=0.05, max_evaluations=130)),
    "pieces": (lambda: spiky, Adaptive(tolerance=1e-3)),
    "behind a prefix": (behind_a_prefix, Adaptive(tolerance=1e-3)),
    "autocast": (half, Adaptive(tolerance=0.1)),
    "fixed": (lambda: smooth, FixedSteps(steps=70)),
}


@contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of what goes to the host meanwhile; anything about elements fails."""
    seen: list[int] = []

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(Tensor, name)

        def call(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            seen.append(tensor.numel())
            assert tensor.numel() % ELEMENTS or not tensor.numel(), f"{name} of a gradient"
            return real(tensor, *arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for name in WAYS_TO_THE_HOST:
            patched.setattr(Tensor, name, watched(name))
        yield seen


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what goes to the host until all verdicts are in."""
    taken: list[int] = []
    real = Report.take

    def watched(report: Report, verdicts: Any) -> None:
        with guarded(monkeypatch) as seen:
            real(report, verdicts)
        taken.extend(seen)

    monkeypatch.setattr(Report, "take", watched)
    return taken


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("targets", [[1], [0, 1]], ids=str)
def test_no_gradient_reaches_the_host_on_the_way_to_a_verdict(
    case: str, targets: list[int], taken: list[int]
) -> None:
    """By what takes numbers off a tensor; that none is moved there first, `test_devices.py` tells,
    on a device that refuses it.
    """
    make, accuracy = CASES[case]
    forward = make()
    found = attribute_untried(forward, X, target=targets, accuracy=accuracy, batch_rows=64)
    assert "ok" in found.status or "unchecked" in found.status or case == "kinked"
    assert taken or case == "fixed"  # where each track goes next


def test_the_guard_sees_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = torch.ones(3, ELEMENTS)
    for leave in (Tensor.cpu, Tensor.numpy, Tensor.tolist):
        with guarded(monkeypatch), pytest.raises(AssertionError, match="of a gradient"):
            getattr(gradient, leave.__name__)()


def test_the_host_waits_once_for_each_level_of_a_wave(taken: list[int]) -> None:
    """Smooth rows in one wave: one list of codes for every level that they reach."""
    scales = torch.linspace(1, 8, len(X))[:, None]
    found = attribute_untried(
        lambda v: (v[:, :5] * 4).sin().sum(1),
        X * scales,
        accuracy=Adaptive(tolerance=1e-6),
        batch_rows=1024,
    )
    levels = len(set(found.evaluations.tolist()))
    assert levels > 1
    # codes reach the host as `cpu` and as `numpy`; entering rows once more
    assert len([size for size in taken if size <= len(X)]) <= 2 * levels + 4


def test_nothing_is_left_of_a_call_without_the_collector() -> None:
    """A reference cycle would keep the tensors of a call until the collector runs, and a GPU's
    memory with them.
    """
    kept: list[Any] = []
    for case in ("smooth", "kinked", "pieces", "fixed"):
        make, accuracy = CASES[case]
        forward = make()
        attribute_untried(forward, X, target=[0, 1], accuracy=accuracy, batch_rows=64)
        gc.collect()
        gc.disable()
        try:
            before = _tensors()
            kept.append(
                attribute_untried(forward, X, target=[0, 1], accuracy=accuracy, batch_rows=64)
            )
            kept.clear()
            assert _tensors() == before, case
        finally:
            gc.enable()


def _tensors() -> int:
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_the_count_sees_a_cycle() -> None:
    gc.collect()
    before = _tensors()
    holder: list[Any] = [torch.ones(3)]
    holder.append(holder)
    del holder
    assert _tensors() == before + 1


@pytest.mark.parametrize("case", ["smooth", "kinked", "pieces"])
@pytest.mark.parametrize("ahead", [1, 3])
def test_results_do_not_depend_on_when_the_host_asks(
    case: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, accuracy = CASES[case]

    def explained() -> Attribution:
        return attribute_untried(make(), X, target=[0, 1], accuracy=accuracy, batch_rows=64)

    plain = explained()
    monkeypatch.setattr(phases, "AHEAD", ByDevice(cpu=ahead, gpu=ahead))
    later = explained()
    assert later.status == plain.status
    for name in ("attributions", "error_estimate", "gap", "evaluations"):
        assert torch.equal(getattr(later, name), getattr(plain, name)), name
