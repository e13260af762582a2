"""SmoothGrad, saliency and input × gradient against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from integrand.schemas.specs.accuracy import Adaptive, FixedSamples
from integrand.schemas.specs.methods import InputXGradient, MethodPart, Saliency, SmoothGrad
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import keys_of_rows
from integrand.workers.philox import normals

F64 = torch.float64
X = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.0]], dtype=F64)
SIGMA = 0.5


def square(x: Tensor) -> Tensor:
    return x.square().sum(1)


def smoothed(samples: int, *, times_input: bool, seed: int = 0) -> Tensor:
    method = SmoothGrad(sigma=SIGMA, times_input=times_input, seed=seed)
    found = attribute(square, X, method=method, accuracy=FixedSamples(samples=samples))
    assert set(found.status) == {RowStatus.unchecked}
    values = found.attributions
    assert isinstance(values, Tensor)
    off = values - (2 * (X.square() + SIGMA**2) if times_input else 2 * X)
    assert (off.abs().sum(1) <= 2 * found.error_estimate * values.abs().sum(1)).all()
    return values


def test_the_classic_form_is_the_mean_gradient() -> None:
    torch.testing.assert_close(smoothed(4000, times_input=False), 2 * X, rtol=0, atol=0.1)


def test_times_the_noisy_input_it_has_the_variance_in_it() -> None:
    """E (x + ε) · 2(x + ε) = 2(x² + σ²)."""
    exact = 2 * (X.square() + SIGMA**2)
    torch.testing.assert_close(smoothed(4000, times_input=True), exact, rtol=0.05, atol=0.05)


def test_it_is_a_plain_loop_over_the_noise_that_is_drawn() -> None:
    def wave(x: Tensor) -> Tensor:
        return torch.sin(2 * x).prod(1)

    samples = 33
    method = SmoothGrad(sigma=SIGMA, times_input=True, seed=3)
    found = attribute(wave, X, method=method, accuracy=FixedSamples(samples=samples))
    keys = keys_of_rows((X,))
    noise = normals(keys, seed=3, stream=0, draws=range(samples), count=2)
    total = torch.zeros_like(X)
    for sample in range(samples):
        point = (X + SIGMA * noise[:, sample]).requires_grad_()
        (gradient,) = torch.autograd.grad(wave(point).sum(), point)
        total += point.detach() * gradient
    torch.testing.assert_close(found.attributions, total / samples, rtol=1e-10, atol=1e-12)


def test_expected_gradients_of_noise_are_minus_its_variance() -> None:
    """With baselines x + ε the term is −ε · ∂F(x + (1 − α)ε): of F = x² its mean is −σ² whatever x
    is (the article prints +ε).
    """
    noise = SIGMA * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    both = torch.cat([noise, -noise])  # its mean is 0 exactly
    variance = both.square().mean(0)
    baselines = (X[:, None] + both).flatten(0, 1)
    found = attribute(square, X, baselines=baselines, draws=len(both))
    torch.testing.assert_close(found.attributions, -variance.expand(3, 2), rtol=1e-9, atol=1e-9)


def test_noise_depends_on_the_seed_and_the_row_alone() -> None:
    method = SmoothGrad(sigma=SIGMA)
    asked = Adaptive(tolerance=0.2, max_evaluations=4096)

    def found(x: Tensor) -> Any:
        return attribute(square, x, method=method, accuracy=asked, batch_rows=16)

    whole, alone = found(X), found(X[1:2])
    assert torch.equal(whole.attributions[1], alone.attributions[0])
    assert whole.error_estimate[1] == alone.error_estimate[0]
    one = smoothed(64, times_input=False)
    assert not torch.equal(one, smoothed(64, times_input=False, seed=1))


@pytest.mark.parametrize(
    ("method", "exact"),
    [
        (Saliency(), (2 * X).abs()),
        (Saliency(absolute=False), 2 * X),
        (InputXGradient(), 2 * X.square()),
    ],
)
def test_one_gradient_at_the_row(method: MethodPart, exact: Tensor) -> None:
    found = attribute(square, X, baselines=1.0, method=method, batch_rows=4)
    assert torch.equal(found.attributions, exact)
    assert set(found.evaluations.tolist()) == {1}
    gap = exact.sum(1) - (square(X) - 2)
    torch.testing.assert_close(found.gap, gap)
    assert found.error_estimate.isnan().all()


def test_a_row_that_equals_its_baseline_has_a_gradient_all_the_same() -> None:
    x = torch.ones(1, 2, dtype=F64)
    found = attribute(square, x, baselines=x, method=Saliency())
    assert found.attributions.tolist() == [[2, 2]]
    assert found.status == (RowStatus.unchecked,)


def test_several_baselines_count_in_f_alone() -> None:
    baselines = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    found = attribute(square, X, baselines=baselines, draws=2, method=InputXGradient())
    assert found.f_baseline.tolist() == [1, 1, 1]
    assert torch.equal(found.attributions, 2 * X.square())


def test_methods_say_what_they_promise() -> None:
    of = {part.kind: method_of(Adaptive(), part) for part in (Saliency(), InputXGradient())}
    assert not any(method.complete for method in of.values())
    assert not of["saliency"].signed
    assert not method_of(Adaptive(), Saliency(absolute=False)).signed
    assert not method_of(Adaptive(), SmoothGrad(sigma=0.1)).signed
    assert method_of(Adaptive(), SmoothGrad(sigma=0.1, times_input=True)).signed
    assert of["input_x_gradient"].signed
    assert method_of(Adaptive(), SmoothGrad(sigma=1)).random
