"""Half precision within step batches: what it is used for, and that no certificate hides what it
costs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.evaluator import Evaluator, lifted
from integrand.workers.engine.prepared import Prepared, stepping
from integrand.workers.engine.problem import Problem
from integrand.workers.engine.reduced import REDUCED
from integrand.workers.engine.rounding import LEAST, PROBING, measure_rounding
from integrand.workers.methods.attribution import Attribution
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.hoisting import Hoisted, hoist
from tests.plugins.explaining import attribute_untried

HALVES = ("bfloat16", "float16")
HONEST = {RowStatus.ok, RowStatus.at_precision_floor, RowStatus.not_converged}


def net(
    activation: type[nn.Module], last: type[nn.Module] | None = None, *, gain: float = 1.0
) -> nn.Module:
    """8-32-32-3 with weights `gain` times the usual size."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3)]
    for layer in layers[::2]:
        layer.weight.data *= gain * 3**0.5
    return nn.Sequential(*layers, *([last(1)] if last else [])).eval().requires_grad_(False)


X = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))


def half(model: nn.Module, name: str) -> Prepared:
    return stepping(Prepared(model), name, "cpu", compile=False)


def attributed(model: nn.Module | Prepared, x: Tensor = X, **options: Any) -> Attribution:
    forward = model if isinstance(model, Prepared) else Prepared(model)
    return attribute_untried(forward, x, target=1, batch_rows=64, **options)


def true_errors(model: nn.Module, found: Attribution, x: Tensor = X) -> np.ndarray:
    """‖a − a*‖₁ / ‖a‖₁ against float64."""
    exact = attributed(
        copy.deepcopy(model).double(),
        x.double(),
        accuracy=Adaptive(tolerance=1e-3, max_evaluations=4096, on_unreachable="spend"),
    ).attributions
    values = found.attributions.double()
    return ((values - exact).abs().sum(1) / values.abs().sum(1)).nan_to_num(torch.inf).numpy()


NETS = {
    "smooth": net(nn.GELU),
    "kinked": net(nn.ReLU),
    "probability": net(nn.Tanh, nn.Softmax),
    "steep": net(nn.GELU, gain=2.0),
    "steep probability": net(nn.SiLU, nn.Softmax, gain=3.0),
    "kinked log-probability": net(nn.ReLU, nn.LogSoftmax, gain=2.0),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("kind", NETS)
def test_no_row_is_certified_beyond_what_half_precision_allows(kind: str, name: str) -> None:
    coarse = {"bfloat16": 0.1, "float16": 0.03}[name]
    for tolerance in (coarse, coarse / 3):
        found = attributed(
            half(NETS[kind], name), accuracy=Adaptive(tolerance=tolerance, max_evaluations=256)
        )
        errors = true_errors(NETS[kind], found)
        ok = np.array([s is RowStatus.ok for s in found.status])
        assert set(found.status) <= HONEST
        assert (errors[ok] <= tolerance).all()
        assert (found.error_estimate.numpy()[ok] <= tolerance).all()
        assert (found.error_estimate.numpy() >= errors / 2).mean() >= 0.97


@pytest.mark.parametrize(("name", "usual"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_the_precision_floor_is_not_an_early_end(name: str, usual: float) -> None:
    """Rows whose error is the quadrature's go on until rounding is what is left."""
    found = attributed(half(NETS["steep"], name), accuracy=Adaptive(tolerance=0.001))
    assert set(found.status) == {RowStatus.at_precision_floor}
    assert found.error_estimate.median() < usual
    assert len(set(found.evaluations.tolist())) > 1
    assert (found.evaluations > 7 + PROBING).double().mean() > 0.5
    assert (true_errors(NETS["steep"], found) <= found.error_estimate.numpy()).all()


def test_tolerances_within_reach_are_certified() -> None:
    """So that the test above has something to find."""
    for name, tolerance in (("bfloat16", 0.1), ("float16", 0.03)):
        found = attributed(half(NETS["smooth"], name), accuracy=Adaptive(tolerance=tolerance))
        assert np.mean([s is RowStatus.ok for s in found.status]) > 0.7


@pytest.mark.parametrize("name", HALVES)
def test_a_tolerance_below_rounding_ends_at_the_precision_floor(name: str) -> None:
    least = LEAST * REDUCED[name].epsilon
    found = attributed(half(NETS["smooth"], name), accuracy=Adaptive(tolerance=least))
    assert set(found.status) == {RowStatus.at_precision_floor}
    assert (found.error_estimate >= least).all()
    assert found.evaluations.max() < 200 + PROBING
    assert attributed(NETS["smooth"], accuracy=Adaptive(tolerance=least)).status == (
        RowStatus.ok,
    ) * len(X)


class Rounded(nn.Module):
    """f = w·x, whose gradient w underflows in float16 if it is small."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3, bias=False)
        self.last.weight.data = torch.linspace(1, 2, 24).reshape(3, 8) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


def test_gradients_that_underflow_are_noticed() -> None:
    """Exact in float32, and in float16 as long as the weights are no subnormal numbers."""
    fine, lost, gone = (
        attributed(half(Rounded(scale).eval(), "float16"), accuracy=Adaptive(tolerance=0.01))
        for scale in (1.0, 2e-7, 1e-9)
    )
    assert set(fine.status) == {RowStatus.ok}
    assert RowStatus.ok not in {*lost.status, *gone.status}
    assert (gone.error_estimate > 1).all()


@pytest.mark.parametrize("accuracy", [Adaptive(tolerance=0.05), FixedSteps(steps=9)], ids=str)
def test_all_but_gradients_is_float32(accuracy: Any) -> None:
    plain, found = (
        attributed(m, accuracy=accuracy) for m in (NETS["smooth"], half(NETS["smooth"], "bfloat16"))
    )
    assert torch.equal(found.f_input, plain.f_input)
    assert torch.equal(found.f_baseline, plain.f_baseline)
    assert found.attributions.dtype == torch.float32
    assert not torch.equal(found.attributions, plain.attributions)
    assert (found.attributions != found.attributions.bfloat16().float()).float().mean() > 0.9


class Watched(nn.Module):
    """Counts rows by (gradients wanted, autocast on)."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = net(nn.GELU), {}

    def forward(self, x: Tensor) -> Tensor:
        key = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        self.seen[key] = self.seen.get(key, 0) + len(x)
        return self.net(x)


def test_evaluations_count_what_measuring_costs() -> None:
    """Endpoints without autocast; half of the probes with it; and every step."""
    watched = Watched().eval()
    found = attributed(half(watched, "bfloat16"), accuracy=Adaptive(tolerance=0.05))
    stepped = watched.seen[True, True] + watched.seen[True, False]
    assert (False, True) not in watched.seen
    assert found.evaluations.sum() + found.padded == stepped
    assert watched.seen[True, False] == 3 * 64  # three probes of 24 rows, padded
    assert found.evaluations.min() >= 7 + PROBING
    fixed = attributed(half(watched, "bfloat16"), accuracy=FixedSteps(steps=9))
    assert set(fixed.evaluations.tolist()) == {9}


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_measured_is_the_rounding_of_attributions(behind: bool) -> None:
    """Six times the relative L1 error at the nodes of Gauss-Legendre 3, in features, behind a
    hoisted prefix too.
    """
    model = NETS["steep"]
    plain = Prepared(model, hoist(model, (X,)) if behind else None)
    prepared = stepping(plain, "bfloat16", "cpu", compile=False)
    tensors = RowTensors((X,), (torch.zeros(1, 8),), target=torch.ones(len(X), 1, 1).long())
    problem = Problem(model, tensors, 16, step=prepared.step, reduced=prepared.reduced)
    inner = lifted(Evaluator(problem), prepared.hoisted) if prepared.hoisted else problem
    measured = measure_rounding(Evaluator(inner), torch.arange(len(X))).share[:, 0].numpy()
    exact, rounded = (
        attributed(p, accuracy=FixedSteps(steps=3)).attributions.double() for p in (plain, prepared)
    )
    apart = ((rounded - exact).abs().sum(1) / rounded.abs().sum(1)).numpy()
    assert (measured >= apart).all()
    assert (measured >= LEAST * torch.finfo(torch.bfloat16).eps).all()
    assert np.median(measured) < 40 * np.median(apart)


def wide(offset: float = 0.0) -> nn.Module:
    """96-256-256-10 as it is initialised, nearly linear; f may be large against its change."""
    torch.manual_seed(0)
    layers = [nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)]
    layers[-1].bias.data += offset
    return nn.Sequential(*layers).eval().requires_grad_(False)


WIDE = 2 * torch.rand(64, 96, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize(("name", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_rounding_is_not_taken_for_kinks(name: str, tolerance: float) -> None:
    """Rows that float32 certifies at once took 65 evaluations under bfloat16, not 7 and six."""
    model, accuracy = wide(), Adaptive(tolerance=tolerance)
    plain, found = (attributed(m, WIDE, accuracy=accuracy) for m in (model, half(model, name)))
    assert set(plain.evaluations.tolist()) == {7}
    assert found.evaluations.double().mean() <= 7 + PROBING + 1
    certified = np.array([status is RowStatus.ok for status in found.status])
    assert certified.mean() > 0.9
    assert (true_errors(model, found, WIDE)[certified] <= tolerance).all()


def test_rows_whose_f_is_mostly_rounding_go_to_a_grid_at_once() -> None:
    """It reads f at both ends alone; more nodes of the nested rule would not help."""
    model = wide(offset=10.0)
    found = attributed(half(model, "bfloat16"), WIDE, accuracy=Adaptive(tolerance=0.05))
    assert found.evaluations.max() < 90
    certified = np.array([status is RowStatus.ok for status in found.status])
    assert (true_errors(model, found, WIDE)[certified] <= 0.05).all()


class Step(nn.Module):
    """Nearly all of f changes between two nodes, beside an offset that hides it from them."""

    def forward(self, x: Tensor) -> Tensor:
        steep = torch.tanh(200 * (x.sum(1) - 0.43))
        out = 100 + 0.01 * x.sum(1) + 0.3 * steep
        return out[:, None].to(torch.bfloat16).float().expand(-1, 3)


def test_a_jump_that_rounding_hides_between_nodes_shows_from_end_to_end() -> None:
    x = torch.full((4, 8), 1 / 8)
    found = attributed(Prepared(Step().eval()), x, accuracy=Adaptive(tolerance=0.05))
    assert RowStatus.ok not in found.status


def test_rows_at_their_baseline_cost_nothing() -> None:
    found = attributed(half(NETS["smooth"], "bfloat16"), torch.zeros(3, 8), accuracy=Adaptive())
    assert (found.status, found.evaluations.tolist()) == ((RowStatus.ok,) * 3, [0] * 3)


def test_bits_depend_on_the_row_alone() -> None:
    step = half(NETS["kinked"], "bfloat16")
    whole = attributed(step, accuracy=Adaptive(tolerance=0.05))
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(2))
    shuffled = attributed(step, X[order][:17], accuracy=Adaptive(tolerance=0.05))
    assert torch.equal(shuffled.attributions, whole.attributions[order][:17])
    assert torch.equal(shuffled.error_estimate, whole.error_estimate[order][:17])


def test_a_hoisted_prefix_stays_float32() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 3)
    )
    model = model.eval().requires_grad_(False)
    hoisted = hoist(model, (X,))
    assert hoisted is not None
    found = attributed(
        stepping(Prepared(model, hoisted), "bfloat16", "cpu", compile=False),
        accuracy=Adaptive(tolerance=0.1),
    )
    assert np.mean([s is RowStatus.ok for s in found.status]) > 0.7
    assert (true_errors(model, found)[[s is RowStatus.ok for s in found.status]] <= 0.1).all()


@pytest.mark.parametrize("count", [1, 5, 23])
def test_what_is_measured_behind_a_prefix_depends_on_the_row_alone(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of few rows may be rounded in another way than those of many: the prefix is always
    given as many.
    """
    model = NETS["steep"]
    prepared = stepping(Prepared(model, hoist(model, (X,))), "bfloat16", "cpu", compile=False)
    assert prepared.hoisted is not None
    shapes: set[int] = set()
    real = Hoisted.pull

    def watched(hoisted: Hoisted, cotangents: Sequence[Tensor], *arguments: Any) -> Any:
        shapes.add(len(cotangents[0]))
        return real(hoisted, cotangents, *arguments)

    monkeypatch.setattr(Hoisted, "pull", watched)
    tensors = RowTensors((X,), (torch.zeros(1, 8),), target=torch.ones(len(X), 1, 1).long())
    problem = Problem(model, tensors, 16, step=prepared.step, reduced=prepared.reduced)
    inner = lifted(Evaluator(problem), prepared.hoisted)
    everything = measure_rounding(Evaluator(inner), torch.arange(len(X)))
    some = measure_rounding(Evaluator(inner), torch.arange(count))
    assert shapes == {32}
    assert torch.equal(some.share[:count], everything.share[:count])
