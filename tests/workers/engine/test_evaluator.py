"""What the model is shown, how often, in batches of which shape, what happens when memory runs out,
and that a row's bits depend on the row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers.engine import steps
from integrand.workers.engine.evaluator import Evaluator, is_out_of_memory
from integrand.workers.engine.groups import TrackGroup
from integrand.workers.engine.prepared import Prepared
from integrand.workers.methods import phases
from integrand.workers.methods.attribution import Attribution, attribute
from integrand.workers.methods.explaining import explain as explain_rows
from integrand.workers.methods.fixed import _Weighted
from integrand.workers.methods.grids import Grids
from integrand.workers.methods.nested import Nested
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.quadrature.rules import patterson
from tests.plugins.explaining import attribute_untried


class Spy:
    """Records what it is called with, and whether gradients were wanted."""

    def __init__(self, forward: Callable[..., Tensor], tried: int = 1) -> None:
        self.forward, self.tried = forward, tried
        self.seen: list[tuple[Tensor, bool]] = []

    def __call__(self, x: Tensor, *arguments: Tensor) -> Tensor:
        self.seen.append((x.detach().clone(), torch.is_grad_enabled()))
        return self.forward(x, *arguments)

    @property
    def plain(self) -> list[Tensor]:
        return [x for x, wanted in self.seen if not wanted]

    @property
    def stepped(self) -> list[Tensor]:
        """Step batches, without the first call, which tries two rows where nobody has tried the
        model before.
        """
        return [x for x, wanted in self.seen if wanted][self.tried :]


def wavy(x: Tensor) -> Tensor:
    return (3 * x).sin().sum(1)


def folded(x: Tensor) -> Tensor:
    """Twenty kinks along each path."""
    return ((x * 5) % 2 - 1).abs().sum(1)


X = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 16, 512])
@pytest.mark.parametrize("accuracy", [Adaptive(tolerance=1e-6), FixedSteps(steps=9)], ids=str)
@pytest.mark.parametrize("forward", [wavy, folded])
def test_evaluations_are_what_the_model_was_asked(
    batch_rows: int, accuracy: Any, forward: Any
) -> None:
    """Every batch has one shape, and holds evaluations of rows and padding, nothing else."""
    spy, x = Spy(forward, tried=0), X[: 5 if batch_rows == 1 else None]
    found = attribute_untried(spy, x, accuracy=accuracy, batch_rows=batch_rows)
    assert {x.shape for x in spy.plain + spy.stepped} == {(batch_rows, 4)}
    assert len(spy.stepped) * batch_rows == found.evaluations.sum() + found.padded
    assert found.padded < batch_rows * 25
    assert len(spy.plain) == -(-len(x) // batch_rows) + 1
    assert found.batch_rows == batch_rows


def test_padding_is_a_small_share_of_many_rows() -> None:
    """Rows come in while others are at it: only the last batches are not full."""
    x = X.repeat(40, 1) * torch.linspace(0.1, 1, 920, dtype=X.dtype)[:, None]
    found = attribute(wavy, x, accuracy=Adaptive(tolerance=1e-6), batch_rows=64)
    assert len(set(found.evaluations.tolist())) > 2
    assert found.padded < 0.05 * found.evaluations.sum()


@pytest.mark.parametrize("batch_rows", [8, 64])
def test_the_points_of_a_row_are_the_nodes_of_its_path(batch_rows: int) -> None:
    """Every row is told by the direction of its difference; α is how far a point lies along it."""
    baseline, spy = torch.full((1, 4), 0.5, dtype=torch.float64), Spy(wavy)
    found = attribute(
        spy, X, baselines=baseline, accuracy=Adaptive(tolerance=1e-6), batch_rows=batch_rows
    )
    moved = torch.cat(spy.stepped) - baseline
    unit = nn.functional.normalize(X - baseline)
    owner = (nn.functional.normalize(moved) @ unit.T).argmax(1)
    for row in range(len(X)):
        alphas = torch.unique(
            (moved[owner == row] @ unit[row] / (X[row] - baseline[0]).norm()).round(decimals=9)
        )
        expected = np.sort(patterson().nodes[: int(found.evaluations[row])])
        np.testing.assert_allclose(alphas.numpy(), expected, atol=1e-8)
    assert len(set(found.evaluations.tolist())) > 1


def test_without_batch_rows_a_few_rows_take_one_batch() -> None:
    spy = Spy(wavy)
    found = attribute(spy, X[:2], accuracy=FixedSteps(steps=5))
    assert len(spy.stepped[-1]) == 16  # the power of two that holds 2 rows × 5 steps
    assert found.padded == 6


def test_progress_is_told_after_every_batch() -> None:
    ticks, spy = [], Spy(wavy)
    attribute_untried(spy, X, batch_rows=8, tick=lambda: ticks.append(len(spy.seen)))
    assert len(ticks) == len(spy.seen)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (64, [64]),
        (100, [64, 32, 8]),
        (48, [64]),  # full enough
        (47, [32, 16]),
        (20, [16, 8]),
        (9, [8, 8]),
        (6, [8]),
        (1, [8]),
        (200, [64, 64, 64, 8]),
    ],
)
def test_what_does_not_fill_a_batch_goes_into_smaller_ones(count: int, sizes: list[int]) -> None:
    spy = Spy(wavy, tried=0)
    x = torch.linspace(1, 2, count, dtype=torch.float64)[:, None].expand(count, 4).clone()
    rows = RowTensors((x,), (torch.zeros_like(x[:1]),))
    method = method_of(FixedSteps(rule="right", steps=1))
    found = explain_rows(Prepared(spy), rows, method, batch_rows=64, smaller=(32, 16, 8))
    assert [len(seen) for seen in spy.stepped] == sizes
    assert found.padded == sum(sizes) - count
    seen = torch.cat(spy.stepped)
    assert torch.equal(seen[:count], x)
    assert (seen[count:] == x[-1]).all()
    assert [len(seen) for seen in spy.plain] == [*sizes, 8]  # f(x), and f(x') of all


# --- baselines ---------------------------------------------------------------------------------


def plain_rows(spy: Spy) -> int:
    """Rows that were evaluated without gradients, in batches of 1: nothing is padded."""
    return len(spy.plain)


def test_a_shared_baseline_is_evaluated_once() -> None:
    spy = Spy(wavy)
    attribute(spy, X, baselines=1.5, batch_rows=8)
    assert sum(bool((x == 1.5).all()) for x in spy.plain) == 1


@pytest.mark.parametrize("distinct", [1, 3, 23])
def test_every_distinct_baseline_is_evaluated_once(distinct: int) -> None:
    """One baseline per row, most of them copies: the same numbers for as many evaluations as there
    are distinct ones.
    """
    baselines = X.flip(0)[torch.arange(23) % distinct]
    spy = Spy(wavy)
    found = attribute(spy, X, baselines=baselines, accuracy=FixedSteps(steps=3), batch_rows=1)
    assert plain_rows(spy) == len(X) + distinct
    torch.testing.assert_close(found.f_baseline, wavy(baselines))


def test_forward_args_make_f_of_a_shared_baseline_differ_by_row() -> None:
    scale, spy = torch.arange(23.0).double() // 5, Spy(lambda x, s: (x + 1).square().sum(1) * s)
    found = attribute(spy, X, forward_args=scale, accuracy=FixedSteps(steps=3), batch_rows=1)
    torch.testing.assert_close(found.f_baseline, 4 * scale)
    assert plain_rows(spy) == len(X) + 5


def test_baselines_are_told_apart_together_with_masks() -> None:
    """Two baselines and two boolean masks: up to four forwards, and each row has its own."""
    baselines = torch.stack([torch.zeros(4), torch.ones(4)]).double()[torch.arange(23) % 2]
    masks = torch.stack([torch.ones(4), torch.tensor([1.0, 0, 1, 1])]).bool()[
        torch.arange(23) // 2 % 2
    ]
    spy = Spy(lambda x, m: ((x + 1) * m).square().sum(1))
    found = attribute(
        spy, X, baselines=baselines, forward_args=masks, accuracy=FixedSteps(steps=3), batch_rows=1
    )
    torch.testing.assert_close(found.f_baseline, ((baselines + 1) * masks).square().sum(1))
    assert plain_rows(spy) == len(X) + 4


# --- memory ------------------------------------------------------------------------------------


def short_of_memory(
    limit: int,
    error: BaseException,
    forward: Callable[[Tensor], Tensor] = wavy,
    *,
    gradients: bool = False,
) -> Callable[[Tensor], Tensor]:
    """`forward` that raises above `limit` rows, or only where gradients are wanted."""

    def limited(x: Tensor) -> Tensor:
        if len(x) > limit and (not gradients or torch.is_grad_enabled()):
            raise error
        return forward(x)

    return limited


EXHAUSTED = {
    "MemoryError": MemoryError(),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
}


@pytest.mark.parametrize("name", EXHAUSTED)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("accuracy", [Adaptive(tolerance=1e-6), FixedSteps(steps=9)], ids=str)
def test_batches_are_halved_where_memory_runs_out(
    name: str, gradients: bool, accuracy: Any
) -> None:
    forward = short_of_memory(11, EXHAUSTED[name], gradients=gradients)
    found = attribute(forward, X, accuracy=accuracy, batch_rows=64)
    expected = attribute(wavy, X, accuracy=accuracy, batch_rows=64)
    assert (found.batch_rows, expected.batch_rows) == (8, 64)
    torch.testing.assert_close(found.attributions, expected.attributions, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.f_baseline, expected.f_baseline)
    assert found.status == expected.status
    assert torch.equal(found.evaluations, expected.evaluations)


def test_halved_batches_keep_what_was_done_before() -> None:
    """Memory runs out half-way: no evaluation before it is done again, and every row is
    complete.
    """
    spy = Spy(folded)

    def failing(x: Tensor) -> Tensor:
        if len(spy.stepped) >= 10 and len(x) > 4:
            raise MemoryError
        return spy(x)

    found = attribute(failing, X, accuracy=FixedSteps(steps=20), batch_rows=16)
    assert found.batch_rows == 4
    assert set(found.status) == {"unchecked"}
    sizes = [len(x) for x in spy.stepped]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {16, 4}
    assert sum(sizes) == found.evaluations.sum() + found.padded
    expected = attribute(folded, X, accuracy=FixedSteps(steps=20), batch_rows=16)
    torch.testing.assert_close(found.attributions, expected.attributions, rtol=1e-12, atol=1e-12)


STAGES = {
    "outputs": (Evaluator, "_outputs_at"),
    "points": (steps, "_points"),
    "a group's gradients": (TrackGroup, "__init__"),
    "a group's samples": (TrackGroup, "samples"),
    "levels kept": (Nested, "absorb"),
    "levels judged": (Nested, "_judge"),
    "sums": (Grids, "absorb"),
    "grids judged": (Grids, "_judge"),
    "rows that go on": (phases.Standing, "take"),
    "plain groups": (TrackGroup, "__init__"),
    "plain sums": (_Weighted, "sums"),
    "plain verdicts": (_Weighted, "verdicts"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("forward", [wavy, folded])
def test_memory_may_run_out_at_any_stage(
    stage: str, forward: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the model alone: where a stage is reached for the second time, memory runs out once.
    What is found is the same, and less was taken at once from there on.
    """
    plain = stage.startswith("plain")
    accuracy: Any = FixedSteps(steps=70) if plain else Adaptive(tolerance=1e-4, max_evaluations=300)
    expected = attribute(forward, X, accuracy=accuracy, batch_rows=64)
    owner, name = STAGES[stage]
    real, calls = getattr(owner, name), []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, failing)
    found = attribute(forward, X, accuracy=accuracy, batch_rows=64)
    if len(calls) < 2:
        assert forward is wavy or plain  # smooth rows reach no grid
        return
    assert found.batch_rows == 32
    assert found.status == expected.status
    assert torch.equal(found.evaluations, expected.evaluations)
    torch.testing.assert_close(found.attributions, expected.attributions, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gap, expected.gap, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EXHAUSTED)
def test_a_single_row_that_does_not_fit_raises(name: str) -> None:
    with pytest.raises(type(EXHAUSTED[name])):
        attribute_untried(short_of_memory(0, EXHAUSTED[name]), X, batch_rows=8)


def test_other_errors_of_the_model_are_not_swallowed() -> None:
    """Nor tried again with less."""
    calls = []

    def broken(x: Tensor) -> Tensor:
        calls.append(len(x))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x2)")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        attribute_untried(broken, X, batch_rows=8)
    assert calls == [8]


def test_only_words_for_memory_count_as_out_of_memory() -> None:
    assert all(is_out_of_memory(error) for error in EXHAUSTED.values())
    for error in (
        RuntimeError("expected scalar type Float"),
        ValueError("can't"),
        RuntimeError("CUDA error: unknown"),
    ):
        assert not is_out_of_memory(error)


# --- bits --------------------------------------------------------------------------------------


def dense(activation: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 40), activation(), nn.Linear(40, 17), activation(), nn.Linear(17, 3)
    ).eval()


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for i in range(3) for layer in (nn.Linear(6 if i == 0 else 20, 20), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(20, 3)).eval()


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 1)),
        nn.Conv2d(1, 5, (3, 1)),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
        nn.LogSoftmax(1),
    ).eval()


def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)),
        nn.TransformerEncoderLayer(2, 1, 8, batch_first=True),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


MODELS = {
    "gelu": dense(nn.GELU),
    "relu": dense(nn.ReLU),
    "deep relu": deep(),
    "convolution": convolution(),
    "attention": attention(),
}
ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * 2
EACH = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
TARGETS = torch.arange(40) % 3


def explain(model: nn.Module, chosen: list[int], accuracy: Any) -> Attribution:
    return attribute(
        model,
        ROWS[chosen],
        baselines=EACH[chosen],
        target=TARGETS[chosen],
        accuracy=accuracy,
        batch_rows=32,
    )


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "accuracy",
    [Adaptive(tolerance=1e-3, max_evaluations=100), FixedSteps(rule="right", steps=11)],
    ids=str,
)
@settings(max_examples=4, deadline=None)
@given(chosen=st.lists(st.integers(0, 39), min_size=1, max_size=40, unique=True))
def test_a_rows_bits_depend_on_the_row_alone(name: str, accuracy: Any, chosen: list[int]) -> None:
    """Any subset in any order, at one batch size: the same attributions, gap, estimate and
    evaluations.
    """
    everything, some = (explain(MODELS[name], rows, accuracy) for rows in (list(range(40)), chosen))
    assert torch.equal(some.attributions, everything.attributions[chosen])
    assert torch.equal(some.gap, everything.gap[chosen])
    assert torch.equal(
        some.error_estimate.nan_to_num(), everything.error_estimate[chosen].nan_to_num()
    )
    assert torch.equal(some.evaluations, everything.evaluations[chosen])
    assert some.status == tuple(everything.status[i] for i in chosen)


@pytest.mark.parametrize("features", [1, 3, 1000])
def test_gap_and_estimate_do_not_depend_on_the_rows_beside(features: int) -> None:
    """They are sums over features: numpy must add them up alike for one row and for many."""
    x = torch.randn(30, features, generator=torch.Generator().manual_seed(3))
    together = attribute(wavy, x, batch_rows=16)
    for row in (0, 17, 29):
        alone = attribute(wavy, x[row : row + 1], batch_rows=16)
        assert (alone.gap[0], alone.error_estimate[0]) == (
            together.gap[row],
            together.error_estimate[row],
        )


def test_sums_are_carried_in_float64() -> None:
    """1,000 float32 gradients of 0.1: a float32 running sum would be off by 1e-5."""
    found = attribute(
        lambda v: (0.1 * v).sum(1), torch.ones(1, 1), accuracy=FixedSteps(rule="left", steps=1000)
    )
    assert found.attributions.item() == np.float32(0.1)
