"""The references, judged by closed forms and by each other: nothing that is measured against them
is believed otherwise.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))
from references import (
    Reference,
    break_points,
    composite_gauss,
    doublings,
    exact_line,
    finer,
    integrate,
    is_chain,
    midpoints,
    reference,
    refined,
    relative_error,
    relative_gap,
)
from zoo import TARGETS, Case, Family, Spike, buckets, double


class Cubic(nn.Module):
    """x₀³ + x₀x₁²: Integrated Gradients from 0 are x₀³ + x₀x₁²/3 and 2x₀x₁²/3."""

    def forward(self, x):
        return x[:, :1] ** 3 + x[:, :1] * x[:, 1:] ** 2


def cubic() -> Case:
    x = torch.tensor([[1.0, 2.0], [-0.5, 3.0], [2.0, 0.0]])
    return Case("cubic", Cubic().eval(), x, torch.zeros(1, 2))


def test_a_polynomial_comes_out_to_rounding():
    x = cubic().inputs.double()
    known = torch.stack(
        [x[:, 0] ** 3 + x[:, 0] * x[:, 1] ** 2 / 3, 2 * x[:, 0] * x[:, 1] ** 2 / 3], 1
    )
    found = reference(cubic(), 1e-3)
    assert relative_error(found.attributions, known).max() < 1e-14
    assert found.good(1e-3, torch.zeros(3)).all()


def test_kinks_are_found_where_they_are():
    """relu(x₀ − 1) + relu(x₁ − 1) on the path to (4, 2): kinks at 1/4 and 1/2."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    for layer, weight, bias in (
        (model[0], torch.eye(2), [-1.0, -1.0]),
        (model[2], torch.ones(1, 2), [0.0]),
    ):
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(torch.tensor(bias))
    case = Case(
        "kinks",
        model,
        torch.tensor([[4.0, 2.0]]).double(),
        torch.zeros(1, 2).double(),
        smooth=False,
    )
    assert break_points(case).tolist() == [0, 0.25, 0.5, 1]
    assert exact_line(case).attributions.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("activation", ["ReLU", "GELU"])
def test_both_ways_agree_with_many_midpoints(activation, target):
    case = Family(activation, target, 4, (16, 16, 16), 2.0).case(6, seed=3)
    found = reference(case, 1e-5)
    plain = integrate(double(case), *midpoints(20000))
    assert is_chain(case.model) == (activation == "ReLU")
    assert relative_error(plain, found.attributions).max() < 3e-4
    assert found.error.max() < 1e-5


def test_a_batch_normed_cnn_is_a_chain():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(108, 4),
        nn.LogSoftmax(1),
    )
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    model[1].running_var.fill_(0.3)
    case = Case(
        "cnn",
        model,
        torch.randn(2, 1, 8, 8) * 4,
        torch.full((1, 1, 8, 8), -1.0),
        torch.tensor([0, 3]),
        smooth=False,
    )
    found = reference(case, 1e-5)
    assert found.error.max() < 1e-7
    assert (
        relative_error(integrate(double(case), *midpoints(8000)), found.attributions).max() < 3e-4
    )


def test_the_bound_tells_the_error_of_midpoints():
    case = Family("ReLU", "logit", 96, (64, 32), 2.0).case(40, seed=1)
    found = refined(case, midpoints, [27, 81, 243], 1e-9)
    error = relative_error(found.attributions, exact_line(double(case)).attributions)
    assert (found.error / error).min() > 0.5
    assert 1 < (found.error / error).median() < 2


def test_a_coarse_reference_says_so():
    case = Family("tanh", "logit", 8, (24, 24, 24, 24), 4.0).case(20, seed=0)
    few = refined(double(case), composite_gauss, doublings(8, 16), 1e-3)
    assert not few.good(1e-3, torch.zeros(20)).all()
    assert reference(case, 1e-3).good(1e-3, torch.zeros(20)).all()


def test_attributions_below_float32_judge_nobody():
    model = nn.Sequential(nn.Linear(2, 1), nn.Identity()).eval()
    model[0].weight.data.fill_(1e-30)
    case = Case("tiny", model, torch.full((1, 2), 1e-20), torch.zeros(1, 2))
    assert reference(case, 1e-3).error.tolist() == [math.inf]


def test_logits_move_by_at_most_two_between_breaks():
    breaks = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    slope = torch.tensor([3.0, -40.0], dtype=torch.float64)
    found = finer(breaks, breaks[:, None] * slope)
    assert found[[0, -1]].tolist() == [0, 1]
    assert set(breaks.tolist()) <= set(found.tolist())
    assert (found.diff() * 40).max() <= 2 + 1e-9


def test_rules_have_weights_that_sum_to_one():
    for nodes, weights in (midpoints(27), composite_gauss(64)):
        assert len(nodes) == len(weights) in (27, 64)
        assert weights.sum() == pytest.approx(1, abs=1e-14)
        assert np.all((nodes > 0) & (nodes < 1))


def test_buckets_lose_nothing_and_pad_nothing():
    case = Case(
        "tokens",
        nn.Identity(),
        torch.arange(60.0).reshape(3, 20, 1),
        torch.zeros(1, 20, 1),
        forward_args=(torch.ones(3, 20),),
        lengths=torch.tensor([5, 16, 7]),
    )
    parts = buckets(case)
    assert [(places.tolist(), part.inputs.shape[1]) for places, part in parts] == [
        ([0, 2], 8),
        ([1], 16),
    ]
    assert torch.equal(parts[0][1].inputs[1], case.inputs[2, :8])
    assert parts[1][1].forward_args[0].shape == parts[1][1].inputs.shape[:2]


def test_every_output_is_a_row_of_its_own():
    model = nn.Sequential(nn.Linear(3, 4)).eval().requires_grad_(False)
    case = Case("outputs", model, torch.randn(2, 3), torch.zeros(1, 3), outputs=(1, 3))
    found = reference(case, 1e-3)
    expected = model[0].weight[[1, 3]] * case.inputs[:, None]
    assert relative_error(found.attributions, expected.flatten(0, 1)).max() < 1e-6
    assert relative_gap(case, found.attributions, found.attributions).max() < 1e-14


def test_the_spike_is_what_it_says():
    """Gradient (1, 1) everywhere but within a few widths of its centre, where the answer is
    made.
    """
    case = Case("spike", Spike().eval(), torch.ones(1, 2), torch.zeros(1, 2))
    centre = Spike().centre
    edges = np.concatenate([[0], centre + 1e-6 * np.linspace(-40, 40, 401), [1]])
    nodes, weights = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    found = integrate(double(case), nodes, weights)
    assert found[0].tolist() == pytest.approx([2, 0], abs=1e-3)
    assert integrate(case, *composite_gauss(512))[0].tolist() == pytest.approx([1, 1], abs=1e-3)


def test_good_is_ten_times_better_than_what_it_judges():
    exact = Reference(torch.ones(3, 1), torch.tensor([5e-5, 2e-3, 2e-3]))
    assert exact.good(1e-3, torch.tensor([0.0, 1e-3, 5e-2])).tolist() == [True, False, True]


def test_a_case_keeps_its_rows_together():
    case = replace(cubic(), target=torch.tensor([0, 0, 0]), lengths=torch.tensor([1, 2, 2]))
    part = case.take(torch.tensor([2, 0]))
    assert part.inputs.tolist() == [[2.0, 0.0], [1.0, 2.0]]
    assert part.lengths is not None
    assert part.lengths.tolist() == [2, 1]
