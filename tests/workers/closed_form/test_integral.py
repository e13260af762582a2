"""Exact integrals: by hand, against one gradient for each linear piece, against fine quadrature,
and bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.workers.closed_form.integral import BLOCK, ExactIntegral, integrate_exactly
from integrand.workers.closed_form.recognition import ShallowNetwork, recognise

F64 = torch.float64
RELU, LEAKY = nn.ReLU, lambda: nn.LeakyReLU(0.2)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def linear(weight: object, bias: object) -> nn.Linear:
    w, b = tensor(weight), tensor(bias)
    layer = nn.Linear(w.shape[1], w.shape[0], dtype=F64)
    layer.load_state_dict({"weight": w, "bias": b})
    return layer


def network(module: nn.Module) -> ShallowNetwork:
    found = recognise(module)
    assert isinstance(found, ShallowNetwork), found
    return found


def mlp(
    widths: list[int],
    *,
    seed: int = 0,
    gain: float = 1.0,
    activation: Callable[[], nn.Module] = RELU,
    norm: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """widths: features, hidden units, outputs. Batch norms get statistics of their own."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(widths)):
        layer = nn.Linear(n, m, bias=bias)
        nn.init.normal_(layer.weight, std=gain * (2 / n) ** 0.5)
        layers.append(layer)
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(m), activation()] if norm else [activation()]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d):
            for statistic in (layer.running_mean, layer.bias.data):
                statistic.normal_()
            for statistic in (layer.running_var, layer.weight.data):
                statistic.uniform_(0.3, 2)
    return nn.Sequential(*layers).double().eval()


def piecewise(module: nn.Module, x: Tensor, baseline: Tensor, target: int) -> np.ndarray:
    """Attributions of one row from one autograd gradient in the middle of every linear piece
    (ExactLine).
    """
    net, d = network(module), x - baseline
    ends = (
        [net.preactivations(at[None])[0][0] for at in (baseline, x)]
        if net.hidden
        else [torch.zeros(0)] * 2
    )
    cuts = crossings(tensor([0.0, 1.0]), torch.stack(ends))
    if len(net.hidden) == 2:
        cuts = crossings(cuts, net.preactivations(baseline + cuts[:, None] * d)[1])
    middles = (cuts[1:] + cuts[:-1]) / 2
    points = (baseline + middles[:, None] * d).requires_grad_()
    (gradients,) = torch.autograd.grad(module(points)[:, target].sum(), points)
    return (d * (cuts.diff()[:, None] * gradients).sum(0)).numpy()


def crossings(cuts: Tensor, z: Tensor) -> Tensor:
    """`cuts` and between them the zeros of functions that are linear there, given their values
    [cuts, units].
    """
    before, after = z[:-1], z[1:]
    inside = before * after < 0
    zeros = cuts[:-1, None] + cuts.diff()[:, None] * before / (before - after)
    return torch.cat([cuts, zeros[inside]]).sort().values


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float((np.abs(found - truth).sum(1) / np.abs(truth).sum(1)).max())


def gap(found: ExactIntegral) -> np.ndarray:
    """Completeness gap relative to ‖a‖₁."""
    return (found.attributions.sum(1) - (found.f_input - found.f_baseline)) / np.abs(
        found.attributions
    ).sum(1)


# --- closed forms ------------------------------------------------------------------------------

# 1 − relu(1 − x): the gradient is 1 up to α = 1/2.
B1 = nn.Sequential(linear([[-1]], [1]), nn.ReLU(), linear([[-1]], [1]))
# relu(relu(a) − 1 − relu(b)) at (3, 1): 2α − 1 is positive from α = 1/2.
B2 = nn.Sequential(
    linear([[1, 0], [0, 1]], [0, 0]),
    nn.ReLU(),
    linear([[1, -1]], [-1]),
    nn.ReLU(),
    linear([[1]], [0]),
)
# relu(relu(a − 1) − relu(b)) at (2, 1/2): 3α/2 − 1 is positive from α = 2/3.
B3 = nn.Sequential(
    linear([[1, 0], [0, 1]], [-1, 0]),
    nn.ReLU(),
    linear([[1, -1]], [0]),
    nn.ReLU(),
    linear([[1]], [0]),
)
# leaky(x − 1) with slope 1/10, at 3: slope 1/10 up to α = 1/3.
LEAK = nn.Sequential(linear([[1]], [-1]), nn.LeakyReLU(0.1), linear([[1]], [0]))
# leaky(2·leaky(x − 1) − 2) with slope 1/10, at 3: inner kink at α = 1/3, outer at 2/3; slopes
# 2/100, 2/10 and 2.
LEAKS = nn.Sequential(
    linear([[1]], [-1]),
    nn.LeakyReLU(0.1),
    linear([[2]], [-2]),
    nn.LeakyReLU(0.1),
    linear([[1]], [0]),
)
# Unit 0 dies at α = 1/2 while unit 1 is born there: |2x − 1| at 1.
ABS = nn.Sequential(linear([[-2], [2]], [1, -1]), nn.ReLU(), linear([[1, 1]], [0]))


@pytest.mark.parametrize(
    ("module", "x", "expected"),
    [
        (B1, [2], [1]),
        (B2, [3, 1], [1.5, -0.5]),
        (B3, [2, 0.5], [2 / 3, -1 / 6]),
        (LEAK, [3], [2.1]),
        (LEAKS, [3], [0.02 + 0.2 + 2]),
        (ABS, [1], [0]),
        (linear([[2, -3]], [5]), [1, 2], [2, -6]),
    ],
    ids=["dies", "late", "two kinks", "leaky", "leaky twice", "abs", "linear"],
)
def test_closed_forms(module: nn.Module, x: list[float], expected: list[float]):
    found = integrate_exactly(network(module), tensor([x]), torch.zeros(1, len(x)))
    np.testing.assert_allclose(found.attributions, [expected], rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(
        found.f_input - found.f_baseline, [sum(expected)], rtol=1e-14, atol=1e-15
    )


def test_a_path_that_runs_the_other_way_has_opposite_attributions():
    net = network(mlp([5, 40, 30, 1]))
    x = torch.randn(20, 5, dtype=F64)
    b = torch.randn(20, 5, dtype=F64)
    there, back = integrate_exactly(net, x, b), integrate_exactly(net, b, x)
    assert relative(-back.attributions, there.attributions) < 1e-13


def test_a_unit_at_zero_along_a_whole_segment_is_inactive():
    """relu(relu(a) − relu(b − 1) − 1) stays at 0 from α = 1/3 on, on the way to (3, 3): relu'(0) =
    0.
    """
    plateau = nn.Sequential(
        linear([[1, 0], [0, 1]], [0, -1]),
        nn.ReLU(),
        linear([[1, -1]], [-1]),
        nn.ReLU(),
        linear([[1]], [0]),
    )
    found = integrate_exactly(network(plateau), tensor([[3.0, 3.0]]), torch.zeros(1, 2))
    assert found.attributions.tolist() == [[0, 0]]


# --- against references ------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [[], [1], [40], [1, 1], [24, 33], [64, 32]], ids=str)
@pytest.mark.parametrize("gain", [0.5, 1, 4])
@pytest.mark.parametrize(
    ("activation", "norm"), [(RELU, False), (LEAKY, False), (RELU, True), (nn.PReLU, True)]
)
def test_every_row_equals_one_gradient_for_each_piece(
    hidden: list[int], gain: float, activation: Callable[[], nn.Module], norm: bool
):
    module = mlp([6, *hidden, 3], gain=gain, activation=activation, norm=norm)
    x = torch.randn(9, 6, dtype=F64)
    baseline = torch.randn(9, 6, dtype=F64)
    target = torch.arange(9) % 3
    found = integrate_exactly(network(module), x, baseline, target)
    truth = np.stack(
        [piecewise(module, *row) for row in zip(x, baseline, target.tolist(), strict=True)]
    )
    np.testing.assert_allclose(
        found.attributions, truth, rtol=0, atol=1e-12 * np.abs(truth).sum(1).max()
    )
    np.testing.assert_allclose(
        found.f_input, module(x).gather(1, target[:, None])[:, 0].detach(), rtol=1e-12, atol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 70), min_size=1, max_size=2),
    st.floats(0.5, 4),
    st.sampled_from([0.0, 0.01, 0.5, -0.3, 1.5]),
    st.booleans(),
    st.booleans(),
)
def test_attributions_are_complete(
    seed: int, hidden: list[int], gain: float, leak: float, norm: bool, shared: bool
):
    module = mlp(
        [4, *hidden, 2], seed=seed, gain=gain, activation=lambda: nn.LeakyReLU(leak), norm=norm
    )
    x, baseline = torch.randn(5, 4, dtype=F64), torch.randn(1 if shared else 5, 4, dtype=F64)
    net, target = network(module), torch.arange(5) % 2
    found = integrate_exactly(net, x, baseline, target)
    error = found.attributions.sum(1) - (found.f_input - found.f_baseline)
    assert (
        np.abs(error) <= 1e-13 * (net.magnitude(x) + net.magnitude(baseline)).max(1).values.numpy()
    ).all()


def test_fine_quadrature_agrees():
    """8 Gauss nodes on each of 512 panels: what they miss shrinks with the panels, here 2e-4."""
    module, x = mlp([8, 64, 64, 1]), torch.randn(4, 8, dtype=F64)
    nodes, weights = (tensor(a) for a in np.polynomial.legendre.leggauss(8))
    alphas = ((nodes + 1) / 2 + torch.arange(512)[:, None]).flatten() / 512
    points = (alphas[:, None, None] * x).requires_grad_()
    (gradients,) = torch.autograd.grad(module(points).sum(), points)
    reference = (x * (gradients * (weights.repeat(512) / 1024)[:, None, None]).sum(0)).numpy()
    found = integrate_exactly(network(module), x, torch.zeros(1, 8))
    assert relative(found.attributions, reference) < 1e-3
    assert np.abs(gap(found)).max() < 1e-14


def test_rounding_does_not_pile_up_in_wide_layers():
    net, x = network(mlp([30, 600, 500, 1])), torch.randn(20, 30, dtype=F64)
    assert np.abs(gap(integrate_exactly(net, x, torch.randn(20, 30, dtype=F64)))).max() < 1e-14


# --- special rows and networks -----------------------------------------------------------------


def test_a_row_at_its_baseline_gets_zeros_amid_others():
    x = torch.randn(3, 5, dtype=F64)
    baseline = torch.stack([x[0] + 1, x[1], x[2] - 1])
    found = integrate_exactly(network(mlp([5, 20, 20, 1])), x, baseline)
    assert (found.attributions != 0).any(1).tolist() == [True, False, True]
    assert found.f_input[1] == found.f_baseline[1]


@pytest.mark.parametrize("hidden", [[30], [30, 20]], ids=str)
def test_without_biases_and_from_zero_it_is_input_times_gradient(hidden: list[int]):
    """All kinks lie at α = 0, and the gradient is the same along the path: Hesse et al. 2021."""
    module, x = mlp([5, *hidden, 1], bias=False), torch.randn(10, 5, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    found = integrate_exactly(network(module), x, torch.zeros(1, 5))
    assert relative(found.attributions, (x * gradient).detach().numpy()) < 1e-14


def test_units_that_kink_together():
    """Every first-layer unit four times, with a quarter of its outgoing weights: the same
    function.
    """
    module = mlp([5, 12, 20, 1])
    first, _, second, _, last = module
    copies = nn.Sequential(
        linear(first.weight.repeat(4, 1).tolist(), first.bias.repeat(4).tolist()),
        nn.ReLU(),
        linear((second.weight / 4).repeat(1, 4).tolist(), second.bias.tolist()),
        nn.ReLU(),
        last,
    )
    x = torch.randn(10, 5, dtype=F64)
    once, fourfold = (integrate_exactly(network(m), x, -x) for m in (module, copies))
    assert relative(fourfold.attributions, once.attributions) < 1e-13


def test_dead_units_change_nothing():
    module = mlp([5, 12, 20, 1])
    for layer in (module[0], module[2]):
        with torch.no_grad():
            layer.weight[3:9], layer.bias[3:9] = 0, -1
    x = torch.randn(10, 5, dtype=F64)
    truth = np.stack([piecewise(module, row, 0 * row, 0) for row in x])
    found = integrate_exactly(network(module), x, torch.zeros(1, 5))
    np.testing.assert_allclose(found.attributions, truth, atol=1e-13)


def test_a_feature_that_nothing_reads_gets_nothing():
    module = mlp([5, 12, 20, 1])
    with torch.no_grad():
        module[0].weight[:, 2] = 0
    found = integrate_exactly(network(module), torch.randn(10, 5, dtype=F64), torch.zeros(1, 5))
    assert ((found.attributions == 0).all(0) == [False, False, True, False, False]).all()


def test_inputs_of_any_rank_and_float32_give_float64_attributions():
    module = mlp([6, 20, 20, 1])
    x = torch.randn(4, 2, 3)
    found = integrate_exactly(network(module), x, torch.zeros(1, 2, 3))
    flat = integrate_exactly(
        network(module), x.reshape(4, 6).double(), torch.zeros(4, 6, dtype=F64)
    )
    assert found.attributions.shape == (4, 6)
    assert found.attributions.dtype == found.f_input.dtype == found.f_baseline.dtype == np.float64
    assert np.array_equal(found.attributions, flat.attributions)


# --- bits --------------------------------------------------------------------------------------


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("hidden", [[50], [50, 45]], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_bits_depend_on_nothing_but_the_row(hidden: list[int], shared: bool):
    net = network(mlp([7, *hidden, 3]))
    rows = 2 * BLOCK + 19
    x, target = torch.randn(rows, 7), torch.randint(3, (rows,))
    baseline = torch.randn(1 if shared else rows, 7)

    def integrate(taken: Tensor) -> list[bytes]:
        found = integrate_exactly(
            net, x[taken], baseline if shared else baseline[taken], target[taken]
        )
        return [b"".join(row.tobytes() for row in rows) for rows in zip(*found, strict=True)]

    whole, shuffled = integrate(torch.arange(rows)), torch.randperm(rows)
    assert integrate(shuffled) == [whole[row] for row in shuffled.tolist()]
    for row in (0, 1, BLOCK - 1, BLOCK, rows - 1):
        assert integrate(torch.tensor([row])) == [whole[row]]


def test_progress_ticks_once_a_block():
    ticks: list[None] = []
    integrate_exactly(
        network(mlp([3, 4, 1])),
        torch.randn(BLOCK + 1, 3),
        torch.zeros(1, 3),
        tick=lambda: ticks.append(None),
    )
    assert len(ticks) == 2


@pytest.mark.parametrize("module", ["integrand.workers", "integrand.workers.closed_form.integral"])
def test_numba_is_imported_only_on_use(module: str):
    code = f"import sys, {module}; print('numba' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "False"), ran.stderr
