"""The axioms that integrated gradients obey (Sundararajan et al. 2017, §2 and §4), on networks and
points drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from tests.toys import rows

F64 = torch.float64
Model = Callable[[Tensor], Tensor]
drawn = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS, FEATURES = st.integers(0, 2**16), st.integers(1, 6)
SMOOTH, KINKED = (nn.GELU, nn.Tanh, nn.SiLU, nn.Softplus), (nn.ReLU, nn.LeakyReLU, nn.ReLU6)
SMOOTH_KINDS, ALL_KINDS = st.sampled_from(SMOOTH), st.sampled_from(SMOOTH + KINKED)
STEPS = st.sampled_from(
    [
        FixedSteps(steps=24),
        FixedSteps(rule="midpoint", steps=17),
        FixedSteps(rule="trapezoid", steps=9),
    ]
)


def network(kind: type[nn.Module], features: int, seed: int, outputs: int = 1) -> nn.Sequential:
    net = (
        nn.Sequential(
            nn.Linear(features, 16), kind(), nn.Linear(16, 16), kind(), nn.Linear(16, outputs)
        )
        .double()
        .eval()
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 1.4 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net


def problem(
    kind: type[nn.Module], features: int, seed: int, count: int, baselines: int
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, so many rows, and a baseline for all of them or one for each."""
    x, baseline = rows(count, features, seed + 1), rows(baselines, features, seed + 2)
    return network(kind, features, seed), x, baseline


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- completeness ------------------------------------------------------------------------------


@drawn
@given(SMOOTH_KINDS, FEATURES, SEEDS)
def test_completeness(kind: type[nn.Module], features: int, seed: int) -> None:
    net, x, baseline = problem(kind, features, seed, 5, 5)
    found = attribute(net, x, baselines=baseline, accuracy=Adaptive(tolerance=1e-8))
    change = (net(x) - net(baseline)).detach().squeeze(1)
    assert set(found.status) <= {RowStatus.ok, RowStatus.at_precision_floor}
    assert (
        (found.attributions.sum(1) - change).abs() <= 1e-8 * found.attributions.abs().sum(1) + 1e-14
    ).all()


@drawn
@given(ALL_KINDS, FEATURES, SEEDS, STEPS)
def test_the_gap_is_reported_as_measured(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps
) -> None:
    net, x = network(kind, features, seed), rows(5, features, seed + 1)
    found = attribute(net, x, accuracy=steps)
    assert_near(
        found.gap, found.attributions.sum(1) - (net(x) - net(0 * x)).detach().squeeze(1), 1e-13
    )


@drawn
@given(st.sampled_from(KINKED), FEATURES, SEEDS)
def test_certified_rows_of_kinked_networks_add_up(
    kind: type[nn.Module], features: int, seed: int
) -> None:
    net, x = network(kind, features, seed), rows(5, features, seed + 1)
    found = attribute(net, x, accuracy=Adaptive(tolerance=1e-2))
    certified = torch.tensor([s == RowStatus.ok for s in found.status])
    assert (found.gap.abs() <= 1e-2 * found.attributions.abs().sum(1) + 1e-13)[certified].all()


# --- linearity, symmetry, dummy ----------------------------------------------------------------


@drawn
@given(ALL_KINDS, ALL_KINDS, FEATURES, SEEDS, STEPS, st.floats(-3, 3), st.floats(-3, 3))
def test_linearity(
    one: type[nn.Module],
    two: type[nn.Module],
    features: int,
    seed: int,
    steps: FixedSteps,
    a: float,
    b: float,
) -> None:
    f = network(one, features, seed)
    g = network(two, features, seed + 1)
    x = rows(4, features, seed + 2)
    both = attribute(lambda v: a * f(v) + b * g(v), x, accuracy=steps)
    parts = [attribute(net, x, accuracy=steps).attributions for net in (f, g)]
    assert_near(both.attributions, a * parts[0] + b * parts[1])


@drawn
@given(ALL_KINDS, SEEDS, STEPS)
def test_symmetric_features_with_equal_values_get_equal_credit(
    kind: type[nn.Module], seed: int, steps: FixedSteps
) -> None:
    net, x = network(kind, 2, seed), rows(4, 3, seed + 1)
    x[:, 1] = x[:, 0]
    found = attribute(
        lambda v: net(torch.stack([v[:, 0] + v[:, 1], v[:, 2]], 1)), x, accuracy=steps
    )
    assert_near(found.attributions[:, 0], found.attributions[:, 1])


@drawn
@given(ALL_KINDS, st.integers(2, 6), SEEDS, STEPS)
def test_renamed_features_keep_their_credit(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps
) -> None:
    net, x, baseline = problem(kind, features, seed, 4, 1)
    order = torch.randperm(features, generator=torch.Generator().manual_seed(seed))
    plain = attribute(net, x, baselines=baseline, accuracy=steps)
    moved = attribute(
        lambda v: net(v[:, order.argsort()]),
        x[:, order],
        baselines=baseline[:, order],
        accuracy=steps,
    )
    assert_near(moved.attributions, plain.attributions[:, order])


@drawn
@given(
    ALL_KINDS,
    st.integers(2, 6),
    SEEDS,
    st.sampled_from([FixedSteps(steps=7), Adaptive(max_evaluations=31)]),
)
def test_a_dummy_gets_exactly_nothing(
    kind: type[nn.Module], features: int, seed: int, accuracy: FixedSteps | Adaptive
) -> None:
    dummy = seed % features
    net = network(kind, features - 1, seed)
    x = rows(4, features, seed + 1)
    others = [i for i in range(features) if i != dummy]
    found = attribute(lambda v: net(v[:, others]), x, accuracy=accuracy)
    assert torch.equal(found.attributions[:, dummy], torch.zeros(4, dtype=F64))
    assert_near(
        found.attributions[:, others],
        attribute(lambda v: net(v), x[:, others], accuracy=accuracy).attributions,
    )


@drawn
@given(SEEDS, st.integers(1, 4))
def test_separate_functions_share_nothing(seed: int, features: int) -> None:
    """f(v) = Σ g_i(v_i): each feature gets g_i(x_i) − g_i(x'_i)."""
    nets = [network(nn.Tanh, 1, seed + i) for i in range(features)]
    x, baseline = rows(4, features, seed), rows(4, features, seed + 1)
    found = attribute(
        lambda v: sum(g(v[:, i : i + 1]) for i, g in enumerate(nets)),
        x,
        baselines=baseline,
        accuracy=FixedSteps(steps=320),  # a steep one misses 7e-6 with 80 nodes, 3e-12 with 160
    )
    own = [(g(x[:, i : i + 1]) - g(baseline[:, i : i + 1])).detach() for i, g in enumerate(nets)]
    assert_near(found.attributions, torch.cat(own, 1), 1e-8)


# --- implementation invariance -----------------------------------------------------------------


def rebuilt(net: nn.Sequential, kind: type[nn.Module], seed: int) -> Model:
    """The same function: hidden units in another order, the first layer's each twice with half the
    say, weights doubled where inputs are halved, and outputs taken apart and put together again.
    """
    first, middle, last = net[0], net[2], net[4]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    act = kind()

    def forward(v: Tensor) -> Tensor:
        once = (v / 2) @ (2 * first.weight.T) + first.bias
        twice = act(torch.cat([once, once], 1))
        then = act(
            twice @ torch.cat([middle.weight, middle.weight], 1)[order].T / 2 + middle.bias[order]
        )
        return (
            then[:, :8] @ last.weight[:, order[:8]].T + then[:, 8:] @ last.weight[:, order[8:]].T
        ) + last.bias

    return forward


@drawn
@given(ALL_KINDS, FEATURES, SEEDS, STEPS)
def test_implementation_invariance(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps
) -> None:
    net, x, baseline = problem(kind, features, seed, 4, 1)
    twin = rebuilt(net, kind, seed)
    torch.testing.assert_close(twin(x), net(x))
    one, other = (
        attribute(f, x, baselines=baseline, accuracy=steps).attributions for f in (net, twin)
    )
    assert_near(one, other)


@drawn
@given(SMOOTH_KINDS, FEATURES, SEEDS)
def test_implementation_invariance_of_what_is_certified(
    kind: type[nn.Module], features: int, seed: int
) -> None:
    """Another arithmetic may stop at another level; both are within the tolerance of the same
    numbers.
    """
    net, x = network(kind, features, seed), rows(4, features, seed + 1)
    one, other = (
        attribute(f, x, accuracy=Adaptive(tolerance=1e-6)).attributions
        for f in (net, rebuilt(net, kind, seed))
    )
    assert ((one - other).abs().sum(1) <= 2e-6 * one.abs().sum(1) + 1e-14).all()


# --- baselines, units --------------------------------------------------------------------------


@drawn
@given(
    ALL_KINDS,
    st.integers(2, 6),
    SEEDS,
    st.sampled_from([torch.float32, F64]),
    st.sampled_from(
        [FixedSteps(steps=7), FixedSteps(rule="right", steps=5), Adaptive(max_evaluations=31)]
    ),
)
def test_features_equal_to_their_baseline_get_exactly_nothing(
    kind: type[nn.Module],
    features: int,
    seed: int,
    dtype: torch.dtype,
    accuracy: FixedSteps | Adaptive,
) -> None:
    net = network(kind, features, seed).to(dtype)
    x, baseline = (rows(6, features, seed + i).to(dtype) for i in (1, 2))
    same = torch.rand(6, features, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = attribute(net, torch.where(same, baseline, x), baselines=baseline, accuracy=accuracy)
    assert not found.attributions[same].any()
    assert found.attributions[~same].abs().sum() > 0 or same.all()


@drawn
@given(
    ALL_KINDS,
    FEATURES,
    SEEDS,
    st.sampled_from([FixedSteps(steps=7), Adaptive(tolerance=1e-3, max_evaluations=63)]),
    st.lists(st.integers(-20, 20), min_size=6, max_size=6),
    st.integers(-20, 20),
)
def test_units_by_powers_of_two_leave_every_bit(
    kind: type[nn.Module],
    features: int,
    seed: int,
    accuracy: FixedSteps | Adaptive,
    exponents: list[int],
    of_output: int,
) -> None:
    """Each feature in units of its own, and f in others: the same attributions in f's units, to the
    last bit. Both models are functions: of a module the closed form would be taken.
    """
    net, x, baseline = problem(kind, features, seed, 4, 1)
    units, factor = torch.tensor([2.0**e for e in exponents[:features]], dtype=F64), 2.0**of_output
    plain = attribute(lambda v: net(v), x, baselines=baseline, accuracy=accuracy)
    scaled = attribute(
        lambda v: net(v / units) * factor, x * units, baselines=baseline * units, accuracy=accuracy
    )
    assert torch.equal(scaled.attributions, plain.attributions * factor)
    assert torch.equal(scaled.gap, plain.gap * factor)
    assert scaled.status == plain.status


@drawn
@given(ALL_KINDS, FEATURES, SEEDS, STEPS)
def test_affine_changes_of_variables_do_not_matter(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps
) -> None:
    """v = (u − c) / s per feature: the same credit for the same feature, whatever its zero and its
    unit.
    """
    net, x, baseline = problem(kind, features, seed, 4, 1)
    scale, shift = rows(2, features, seed + 3).exp().sub(3.1)
    plain = attribute(net, x, baselines=baseline, accuracy=steps)
    moved = attribute(
        lambda u: net((u - shift) / scale),
        x * scale + shift,
        baselines=baseline * scale + shift,
        accuracy=steps,
    )
    assert_near(moved.attributions, plain.attributions, 1e-8)


@drawn
@given(ALL_KINDS, FEATURES, SEEDS, STEPS, st.floats(-100, 100))
def test_a_constant_added_to_the_output_changes_nothing(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps, constant: float
) -> None:
    net, x = network(kind, features, seed), rows(4, features, seed + 1)
    one, other = (
        attribute(f, x, accuracy=steps).attributions for f in (net, lambda v: net(v) + constant)
    )
    assert torch.equal(one, other)


@drawn
@given(ALL_KINDS, FEATURES, SEEDS, STEPS)
def test_input_and_baseline_exchanged_change_the_sign(
    kind: type[nn.Module], features: int, seed: int, steps: FixedSteps
) -> None:
    """Every rule here is symmetric about the middle of the path."""
    net, x, baseline = problem(kind, features, seed, 4, 4)
    there, back = (
        attribute(net, a, baselines=b, accuracy=steps) for a, b in ((x, baseline), (baseline, x))
    )
    assert_near(there.attributions, -back.attributions)


@pytest.mark.parametrize("batch_rows", [1, 3, 16, 100])
@drawn
@given(ALL_KINDS, FEATURES, SEEDS)
def test_step_batches_change_no_more_than_rounding(
    batch_rows: int, kind: type[nn.Module], features: int, seed: int
) -> None:
    net, x = network(kind, features, seed), rows(5, features, seed + 1)
    one, other = (
        attribute(net, x, accuracy=FixedSteps(steps=6), batch_rows=rows)
        for rows in (64, batch_rows)
    )
    assert_near(one.attributions, other.attributions, 1e-12)
