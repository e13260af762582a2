"""Everyone in the benchmark of expected gradients estimates one number."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from bench_expected import Figure, GradientShap, Integrand, expected
from references import relative_error
from zoo import Family

from integrand.schemas.specs.accuracy import Adaptive, FixedSamples
from integrand.schemas.specs.methods import ExpectedGradients

BACKGROUND = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
PRODUCT = ExpectedGradients(sampling="product")
IID = ExpectedGradients(sampling="iid")


@pytest.mark.parametrize("activation", ["GELU", "ReLU"])
@pytest.mark.parametrize(
    ("contender", "most"),
    [
        (Integrand(BACKGROUND, PRODUCT, Adaptive(), "product"), 1e-2),
        (Integrand(BACKGROUND, ExpectedGradients(), Adaptive(), "stratified"), 3e-2),
        (Integrand(BACKGROUND, IID, FixedSamples(samples=1000), "iid"), 0.3),
        (GradientShap(BACKGROUND, 1000), 0.3),
    ],
    ids=["product", "stratified", "iid", "Captum"],
)
def test_everyone_finds_the_reference(activation, contender, most):
    case = Family(activation, "probability", 5, (16,), 1.0).case(3, seed=0)
    torch.manual_seed(0)
    outcome = contender(case)
    assert outcome.attributions.shape == case.inputs.shape
    assert relative_error(outcome.attributions, expected(case, BACKGROUND)).max() < most


def test_half_the_error_takes_four_times_the_samples():
    peer = Figure("peer", 100, median=0.2, p99=0.4, seconds=(1.0,))
    other = Figure("other", 100, median=0.1, p99=0.1, seconds=(1.0,))
    assert peer.at_error_of(other) == pytest.approx((4, 16))
