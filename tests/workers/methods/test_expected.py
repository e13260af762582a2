"""Expected gradients: three ways to one number, each with an error that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSamples
from integrand.schemas.specs.methods import ExpectedGradients
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.results import Attribution
from integrand.workers.methods.attribution import attribute
from integrand.workers.methods.expected import ALPHA, BASELINE
from integrand.workers.methods.sampling import CAUTION
from integrand.workers.models.row_tensors import keys_of_rows
from integrand.workers.philox import integers, uniforms

F64 = torch.float64
DRAWS = 8
_GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(40, 6, generator=_GENERATOR, dtype=F64)
BACKGROUND = torch.randn(DRAWS, 6, generator=_GENERATOR, dtype=F64)
SAMPLED: list[Any] = ["stratified", "iid"]


def network(layer: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 24), layer(), nn.Linear(24, 12), layer(), nn.Linear(12, 3))
    return nn.Sequential(*layers).double().eval()


def naive(model: nn.Module, x: Tensor, nodes: int) -> Tensor:
    """Σ over baselines and midpoints, one gradient after the other."""
    total = torch.zeros_like(x)
    for start in BACKGROUND:
        for node in range(nodes):
            point = start + (node + 0.5) / nodes * (x - start)
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(model(point[None])[0, 0], point)
            total += (x - start) * gradient
    return total / (nodes * len(BACKGROUND))


def expected(model: nn.Module, sampling: Any, accuracy: Any, x: Tensor = X) -> Attribution:
    return attribute(
        model,
        x,
        baselines=BACKGROUND,
        draws=DRAWS,
        target=0,
        accuracy=accuracy,
        method=ExpectedGradients(sampling=sampling, seed=1),
        batch_rows=128,
    )


def relative(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).abs().sum(1) / exact.abs().sum(1)


def test_the_product_rule_is_a_naive_double_sum() -> None:
    model = network(nn.GELU)
    found = expected(model, "product", Adaptive(tolerance=1e-6), X[:3])
    for row in range(3):
        exact = naive(model, X[row], 400)
        torch.testing.assert_close(found.attributions[row], exact, rtol=1e-5, atol=1e-6)
    assert set(found.status) == {RowStatus.ok}


@pytest.mark.parametrize("layer", [nn.GELU, nn.ReLU])
@pytest.mark.parametrize("sampling", SAMPLED)
def test_errors_of_samples_hold_and_stop_at_the_tolerance(
    layer: type[nn.Module], sampling: Any
) -> None:
    model = network(layer)
    exact = expected(model, "product", Adaptive(tolerance=1e-5, max_evaluations=8192))
    asked = Adaptive(tolerance=0.1, max_evaluations=8192)
    found = expected(model, sampling, asked)
    off = relative(found.attributions, exact.attributions)
    assert (off <= 2 * found.error_estimate).all()
    ok = torch.tensor([status == RowStatus.ok for status in found.status])
    assert ok.float().mean() > 0.9
    assert (found.error_estimate[ok] <= 0.1).all()
    assert found.evaluations.unique().numel() > 1 or sampling == "stratified"


def test_the_standard_error_of_independent_samples_is_correctly_divided() -> None:
    """Over seeds, the mean is as far off as a standard error says: four times the samples, half
    of it.
    """
    model = network(nn.ReLU)
    exact = expected(model, "product", Adaptive(tolerance=1e-4, max_evaluations=8192))
    off, said = {}, {}
    for steps in (256, 1024):
        found = expected(model, "iid", FixedSamples(samples=steps))
        assert set(found.status) == {RowStatus.unchecked}
        assert set(found.evaluations.tolist()) == {steps}
        off[steps] = relative(found.attributions, exact.attributions).mean()
        said[steps] = found.error_estimate.mean()
    assert 1.6 < off[256] / off[1024] < 2.5
    assert 1.8 < said[256] / said[1024] < 2.2
    assert 1.2 < said[1024] / off[1024] < 3.5


def test_independent_samples_are_a_plain_loop_over_what_is_drawn() -> None:
    """Baseline and α of every sample are numbers of Philox by the row's key, added up in order."""
    model, samples = network(nn.GELU), 40
    found = expected(model, "iid", FixedSamples(samples=samples), X[:2])
    keys = keys_of_rows((X[:2],))
    every = range(samples)
    chosen = integers(keys, seed=1, stream=BASELINE, draws=every, count=1, below=DRAWS)
    alphas = uniforms(keys, seed=1, stream=ALPHA, draws=every, count=1)
    for row in range(2):
        terms = []
        for sample in every:
            start = BACKGROUND[chosen[row, sample, 0]]
            point = start + alphas[row, sample, 0] * (X[row] - start)
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(model(point[None])[0, 0], point)
            terms.append((X[row] - start) * gradient)
        mean = torch.stack(terms).mean(0)
        torch.testing.assert_close(found.attributions[row], mean, rtol=1e-10, atol=1e-12)
        standard = torch.stack(terms).std(0) / samples**0.5
        said = CAUTION * standard.sum() / mean.abs().sum()
        gap = found.gap[row].abs() / mean.abs().sum()
        torch.testing.assert_close(found.error_estimate[row], torch.maximum(said, gap))


def test_strata_take_fewer_samples_than_independence() -> None:
    model = network(nn.GELU)
    asked = Adaptive(tolerance=0.05, max_evaluations=8192)
    independent = expected(model, "iid", asked).evaluations.double().mean()
    stratified = expected(model, "stratified", asked).evaluations.double().mean()
    assert independent > 5 * stratified


@pytest.mark.parametrize("sampling", SAMPLED)
def test_draws_depend_on_the_seed_and_the_row_alone(sampling: Any) -> None:
    model = network(nn.GELU)
    asked = Adaptive(tolerance=0.2, max_evaluations=2048)
    whole = expected(model, sampling, asked)
    order = torch.tensor([30, 2, 17])
    some = expected(model, sampling, asked, X[order])
    assert torch.equal(some.attributions, whole.attributions[order])
    assert torch.equal(some.error_estimate, whole.error_estimate[order])
    assert torch.equal(some.evaluations, whole.evaluations[order])
    other = attribute(
        model,
        X,
        baselines=BACKGROUND,
        draws=DRAWS,
        target=0,
        accuracy=asked,
        method=ExpectedGradients(sampling=sampling, seed=2),
        batch_rows=128,
    )
    assert not torch.equal(other.attributions, whole.attributions)


@pytest.mark.parametrize("sampling", SAMPLED)
def test_several_targets_are_those_of_one_after_the_other(sampling: Any) -> None:
    model = network(nn.GELU)
    asked = Adaptive(tolerance=0.1, max_evaluations=2048)
    method = ExpectedGradients(sampling=sampling)

    def found(target: Any) -> Attribution:
        return attribute(
            model,
            X,
            baselines=BACKGROUND,
            draws=DRAWS,
            target=target,
            accuracy=asked,
            method=method,
            batch_rows=64,
        )

    both = found([0, 2])
    for place, target in enumerate((0, 2)):
        alone = found(target)
        assert torch.equal(both.attributions[:, place], alone.attributions)
        assert torch.equal(both.evaluations[:, place], alone.evaluations)


def test_a_row_out_of_reach_stops_early_and_says_what_it_would_take() -> None:
    asked = Adaptive(tolerance=1e-4, max_evaluations=512)
    found = expected(network(nn.ReLU), "iid", asked)
    assert set(found.status) == {RowStatus.not_converged}
    assert (found.evaluations < 512).all()
    assert "it would take about" in str(found.reason[0])


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        (FixedSamples(samples=30), "a multiple of the 8 baselines"),
        (Adaptive(max_evaluations=15), "at least 2 for each of the 8 baselines"),
    ],
)
def test_numbers_of_samples_that_do_not_go_round_are_refused(accuracy: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expected(network(nn.GELU), "stratified", accuracy)


def test_rows_that_are_not_finite_are_told_so() -> None:
    x = X.clone()
    x[1, 0] = torch.nan
    found = expected(network(nn.GELU), "iid", FixedSamples(samples=32), x)
    assert found.status[1] == RowStatus.bad_input
    assert found.status[0] == RowStatus.unchecked
