"""Rows with several baselines: the mean over them, what is certain of it, and that no bit depends
on how the work is cut.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.specs.reasons import Reasons
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.results import Explained
from integrand.workers.methods import averaging
from integrand.workers.methods.attribution import attribute, prepare
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.reason_codes.candidates import candidates

F64 = torch.float64
DRAWS = 5
_GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(9, 6, generator=_GENERATOR, dtype=F64)
SHARED = torch.randn(DRAWS, 6, generator=_GENERATOR, dtype=F64)
OWN = torch.randn(9 * DRAWS, 6, generator=_GENERATOR, dtype=F64)
TARGETS = torch.tensor([[[0], [2]]])
ACCURACIES = [Adaptive(tolerance=1e-6), FixedSteps(steps=7)]


def smooth() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return nn.Sequential(*layers).double().eval()


def folded() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(4, 3)).double().eval()


def tensors(baselines: Tensor, x: Tensor = X) -> RowTensors:
    return RowTensors((x,), (baselines,), (), TARGETS, draws=DRAWS)


def explained(rows: RowTensors, accuracy: Accuracy, batch_rows: int = 32) -> Explained:
    return explain(Prepared(smooth()), rows, method_of(accuracy), batch_rows=batch_rows)


@pytest.mark.parametrize("baselines", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("accuracy", ACCURACIES, ids=str)
@pytest.mark.parametrize("hoisted", [False, True])
def test_it_is_the_mean_of_what_each_baseline_gives(
    baselines: Tensor, accuracy: Accuracy, hoisted: bool
) -> None:
    model = smooth()
    prepared = prepare(model, X, target=0) if hoisted else Prepared(model)
    method = method_of(accuracy)
    found = explain(prepared, tensors(baselines), method, batch_rows=32)
    by_draw = []
    for draw in range(DRAWS):
        own = baselines[draw : draw + 1] if baselines is SHARED else baselines[draw::DRAWS]
        rows = RowTensors((X,), (own,), (), TARGETS)
        by_draw.append(explain(prepared, rows, method, batch_rows=32))
    each = torch.stack([one.attributions[0] for one in by_draw])
    torch.testing.assert_close(found.attributions[0], each.mean(0), rtol=1e-12, atol=1e-14)
    spent = sum(one.numbers["evaluations"] for one in by_draw)
    assert (found.numbers["evaluations"] == spent).all()
    apart = (each - each.mean(0)).abs().sum(-1).square().mean(0).sqrt()
    spread = apart / each.mean(0).abs().sum(-1)
    torch.testing.assert_close(torch.from_numpy(found.optional["baseline_spread"]), spread)
    assert (found.optional["draws"] == DRAWS).all()


@pytest.mark.parametrize("toward", ["lower", "higher"])
def test_reasons_agree_where_each_baseline_alone_gives_the_same_first_reason(toward: str) -> None:
    among = candidates("abcdef", Reasons(toward=toward, exclude=("b",)), None)
    method = method_of(Adaptive(tolerance=1e-6))

    def first(rows: RowTensors) -> Tensor:
        found = explain(Prepared(smooth()), rows, method, batch_rows=32).attributions[0]
        pushes = found.clone() if toward == "higher" else -found
        pushes[..., 1] = -1
        largest, which = pushes.max(-1)
        return torch.where(largest > 0, which, -1)

    alone = [first(RowTensors((X,), (one[None],), (), TARGETS)) for one in SHARED]
    same = torch.stack([one == first(tensors(SHARED)) for one in alone])
    rows = tensors(SHARED)
    found = explain(Prepared(smooth()), rows, method, batch_rows=32, candidates=among)
    agree = torch.from_numpy(found.optional["reasons_agree"])
    torch.testing.assert_close(agree, same.double().mean(0))
    assert len(agree.unique()) > 2


def test_completeness_is_against_the_mean_of_f_at_the_baselines() -> None:
    model = smooth()
    found = attribute(model, X, baselines=SHARED, draws=DRAWS, target=1)
    with torch.no_grad():
        change = model(X)[:, 1] - model(SHARED)[:, 1].mean()
    torch.testing.assert_close(found.f_input - found.f_baseline, change)
    torch.testing.assert_close(found.attributions.sum(1), change, rtol=1e-4, atol=1e-4)
    assert found.baseline_spread is not None


@pytest.mark.parametrize("accuracy", ACCURACIES, ids=str)
def test_no_bit_depends_on_neighbours_order_or_parts(
    accuracy: Accuracy, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explained(tensors(OWN), accuracy)
    order = torch.tensor([4, 1, 7])
    some = explained(tensors(OWN).take(order), accuracy)
    monkeypatch.setattr(averaging, "AT_ONCE", averaging.ByDevice(cpu=1, gpu=1))
    apart = explained(tensors(OWN), accuracy)
    for rows, found in ((order, some), (torch.arange(9), apart)):
        assert torch.equal(found.attributions[0], whole.attributions[0][rows])
        for name, column in found.numbers.items():
            expected = whole.numbers[name][rows.numpy()]
            assert column.tobytes() == expected.tobytes()
        spread = whole.optional["baseline_spread"][rows.numpy()]
        assert found.optional["baseline_spread"].tobytes() == spread.tobytes()


def test_the_error_of_a_mean_bounds_what_it_is_off_by() -> None:
    model = folded()
    asked = Adaptive(tolerance=1e-2, max_evaluations=4096)
    found = attribute(model, X, baselines=SHARED, draws=DRAWS, target=0, accuracy=asked)
    finer = Adaptive(tolerance=1e-5, max_evaluations=8192)
    exact = attribute(model, X, baselines=SHARED, draws=DRAWS, target=0, accuracy=finer)
    off = (found.attributions - exact.attributions).abs().sum(1)
    relative = off / exact.attributions.abs().sum(1)
    assert (relative <= 2 * found.error_estimate).all()
    assert set(found.status) == {RowStatus.ok}


def test_draws_that_cancel_are_taken_more_exactly() -> None:
    """Baselines on both sides of x: what they give nearly cancels, and the mean's error is relative
    to what is left.
    """

    def wave(x: Tensor) -> Tensor:
        return (x + 0.31).abs().sum(1) - (x - 0.31).abs().sum(1)  # odd, with kinks

    x = torch.zeros(1, 2, dtype=F64)
    step = torch.tensor([[1.0, 0.7]], dtype=F64)
    both = torch.cat([-step, 0.3 * step])
    asked = Adaptive(tolerance=2e-2, max_evaluations=4096)
    alone = attribute(wave, x, baselines=both[:1], accuracy=asked, batch_rows=8)
    mean = attribute(wave, x, baselines=both, draws=2, accuracy=asked, batch_rows=8)
    assert mean.status == (RowStatus.ok,)
    assert mean.error_estimate <= 2e-2
    assert mean.evaluations > 2 * alone.evaluations


def test_one_lost_draw_loses_the_row_and_says_which() -> None:
    baselines = OWN.clone()
    baselines[2 * DRAWS + 3, 0] = torch.nan
    found = attribute(smooth(), X, baselines=baselines, draws=DRAWS, target=0)
    assert found.status[2] == RowStatus.bad_input
    assert found.reason[2] == "draw 3: baseline 0 holds NaN or inf"
    assert found.attributions[2].isnan().all()
    assert found.status[:2] == (RowStatus.ok,) * 2


def test_rows_without_a_certificate_say_so_with_several_baselines() -> None:
    asked = Adaptive(tolerance=1e-7, max_evaluations=63)
    found = attribute(folded(), X, baselines=SHARED, draws=DRAWS, target=0, accuracy=asked)
    assert RowStatus.not_converged in found.status
    row = found.status.index(RowStatus.not_converged)
    assert "error estimate" in str(found.reason[row])


def test_f_at_a_row_and_at_shared_baselines_is_evaluated_once() -> None:
    seen: list[int] = []
    model = smooth()

    def counting(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            seen.append(len(x.unique(dim=0)))
        return model(x)

    rows = replace(tensors(SHARED), target=TARGETS[:, :1])
    explain(Prepared(counting), rows, method_of(FixedSteps(steps=3)), batch_rows=64)
    assert seen == [len(X), DRAWS]


def test_the_closed_form_takes_several_baselines() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    exact = attribute(model, X, baselines=SHARED, draws=DRAWS, target=0, accuracy=Exact())
    finer = FixedSteps(rule="midpoint", steps=4000)
    steps = attribute(model, X, baselines=SHARED, draws=DRAWS, target=0, accuracy=finer)
    torch.testing.assert_close(exact.attributions, steps.attributions, rtol=1e-3, atol=1e-4)
    assert set(exact.status) == {RowStatus.ok}


def test_baselines_that_are_no_draws_are_refused() -> None:
    with pytest.raises(SpecError, match="several for each row are `draws`"):
        attribute(smooth(), X, baselines=SHARED, target=0)
    with pytest.raises(SpecError, match="at least 1"):
        attribute(smooth(), X, draws=0, target=0)
