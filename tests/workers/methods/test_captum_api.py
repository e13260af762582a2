"""Code written for Captum's IntegratedGradients runs here: the same calls, shapes and numbers.

Numbers in names are rows of the cases in tests/peers/test_conformance.py; the tolerances are those
of float64 where Captum's own are 0.05.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers import IntegratedGradients, attribute
from tests.peers.models import (
    b1,
    b2,
    b3,
    b4,
    multidim,
    multilayer,
    normal,
    sigmoid_model,
    softmax_model,
    tensor,
    two_branches,
)
from tests.toys import F64, mlp, rows

RULES = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right")
"""Those whose weights sum to 1 in Captum, too."""
NET = mlp(features=4)
X = rows(6, 4)
FLOAT = 1e-6
"""Captum's weights are float32, whatever the inputs are."""


def both(forward: Callable[..., Tensor], *arguments: Any, multiply: bool = True, **named: Any):
    """What Captum and the drop-in say to the same call."""
    theirs = captum.attr.IntegratedGradients(forward, multiply).attribute(*arguments, **named)
    ours = IntegratedGradients(forward, multiply).attribute(*arguments, **named)
    return ours, theirs


def assert_agree(found: Any, expected: Any) -> None:
    """In structure, shape, dtype and, to the rounding of Captum's weights, in value."""
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    assert structure(found) == structure(expected)
    largest = max(1.0, *(theirs.abs().max().item() for _, theirs in pairs))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=FLOAT, atol=FLOAT * largest)


def leaves(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [leaf for part in found for leaf in leaves(part)]


def structure(found: Any) -> Any:
    return tuple(map(structure, found)) if isinstance(found, tuple) else type(found)


def test_the_signatures_are_captums() -> None:
    """Names, order and defaults; what is ours stands behind them, by name alone."""
    for name in ("__init__", "attribute", "compute_convergence_delta"):
        theirs = inspect.signature(getattr(captum.attr.IntegratedGradients, name)).parameters
        ours = inspect.signature(getattr(IntegratedGradients, name)).parameters
        assert list(ours)[: len(theirs)] == list(theirs)
        assert {n: ours[n].default for n in theirs} == {n: p.default for n, p in theirs.items()}
        further = [ours[n] for n in list(ours)[len(theirs) :]]
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in further)


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_the_same_rule_gives_the_same_numbers(method: str, steps: int, multiply: bool) -> None:
    named = {"target": 1, "method": method, "n_steps": steps, "return_convergence_delta": True}
    assert_agree(*both(NET, X, 0.1, multiply=multiply, **named))


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(RULES),
    steps=st.integers(2, 30),
    size=st.one_of(st.none(), st.integers(6, 40)),
    target=st.lists(st.integers(0, 1), min_size=6, max_size=6),
)
def test_whatever_is_asked_for(
    method: str, steps: int, size: int | None, target: list[int]
) -> None:
    named = {"method": method, "n_steps": steps, "internal_batch_size": size}
    assert_agree(*both(NET, X, target=target, **named, return_convergence_delta=True))


def test_the_trapezoid_is_right_here_and_short_in_captum() -> None:
    """33: Captum's weights sum to 1 − 1/n, so a linear model at 10 steps gets 0.9 of the truth."""

    def linear(v: Tensor) -> Tensor:
        return 2 * v[:, 0] + v[:, 1]

    named = {"method": "riemann_trapezoid", "n_steps": 10}
    x, baseline = tensor([10.0, 5]), tensor([-1.0, -3])
    ours, theirs = both(linear, x, baseline, **named)
    torch.testing.assert_close(ours, tensor([22.0, 8]), rtol=1e-12, atol=0)
    torch.testing.assert_close(theirs, tensor([19.8, 7.2]), rtol=FLOAT, atol=0)
    curved, short = both(NET, X, target=0, **named)
    torch.testing.assert_close(0.9 * curved, short, rtol=FLOAT, atol=FLOAT)


# --- Captum's own cases --------------------------------------------------------------------------

ONE_FEATURE = {
    "1": (tensor([1.0]), 0, 1.0),
    "2": (tensor([-1.0]), 1e-5, -1.00001),
    "3": (tensor([0.0]), 0, 0.0),
}


@pytest.mark.parametrize("case", ONE_FEATURE)
@pytest.mark.parametrize("method", [*RULES, "riemann_trapezoid"])
def test_one_feature_by_every_rule(method: str, case: str) -> None:
    x, baseline, expected = ONE_FEATURE[case]
    found, delta = IntegratedGradients(b1).attribute(
        x, baseline, n_steps=500, method=method, return_convergence_delta=True
    )
    assert found.item() == pytest.approx(expected, abs=2.1e-3)  # a kink at x: half a step at most
    assert delta.abs().item() < 0.07


@pytest.mark.parametrize(("multiply", "expected"), [(True, 1.5), (False, 0.5)])
def test_two_inputs_come_back_as_two(multiply: bool, expected: float) -> None:
    """4 and 5."""
    inputs = (tensor([3.0]), tensor([1.0]))
    found = IntegratedGradients(b2, multiply_by_inputs=multiply).attribute(
        inputs, n_steps=500, method="riemann_right"
    )
    assert isinstance(found, tuple)
    assert found[0].item() == pytest.approx(expected, abs=0.01)
    assert found[1].item() == pytest.approx(-0.5, abs=0.01)


def test_equal_functions_get_equal_sums() -> None:
    """6: B2 and B3 are one function."""
    inputs = (tensor([3.0]), tensor([1.0]))
    found = [IntegratedGradients(f).attribute(inputs, n_steps=500) for f in (b2, b3)]
    assert sum(found[0]).item() == sum(found[1]).item()


def test_arguments_beside_the_inputs() -> None:
    """8, and arguments that are no tensors of rows: a number, a text, None, a tensor of no rows."""
    a, b = tensor([1.5, 2, 34.3]), tensor([3, 3.5, 23.2])
    assert_agree(*both(b4, (a, b), target=0, additional_forward_args=tensor([1, 2, 3])))

    def odd(v: Tensor, scale: float, name: str, nothing: None, w: Tensor, half: Tensor) -> Tensor:
        assert (name, nothing) == ("name", None)
        return (v.pow(3) * w * scale * half).sum(1)

    others = (2.0, "name", None, normal(6, 4), torch.tensor(0.5))
    assert_agree(*both(odd, X, additional_forward_args=others, return_convergence_delta=True))
    assert_agree(*both(lambda v, k: k * v.sin().sum(1), X, additional_forward_args=3))


MULTI = tensor([1.5, 2, 1.3], [0.5, 0.1, 2.3], [1.5, 2, 1.3])


@pytest.mark.parametrize("size", [None, 1, 10, 20])
def test_a_batch_is_its_rows_whatever_the_internal_batch(size: int | None) -> None:
    """11; 1 is less than there are rows, which Captum raises to that number with a warning."""
    ig = IntegratedGradients(multilayer)
    whole, delta = ig.attribute(
        MULTI, target=0, n_steps=100, internal_batch_size=size, return_convergence_delta=True
    )
    torch.testing.assert_close(whole, 3 * MULTI, rtol=1e-12, atol=0)
    assert delta.shape == (3,)
    for i, x in enumerate(MULTI):
        alone = ig.attribute(x[None], target=0, n_steps=100)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=0)


def test_kinks_and_means_of_one_output() -> None:
    """14 and 15."""
    found = IntegratedGradients(multilayer).attribute(tensor([0.0, 100, 0]), target=0, n_steps=200)
    torch.testing.assert_close(found, tensor([0.0, 390, 0]), rtol=0, atol=1.5)
    means = IntegratedGradients(multilayer, False).attribute(
        tensor([100.0, 100, 100]), target=0, n_steps=500
    )
    torch.testing.assert_close(means, tensor([3.966667] * 3), rtol=0, atol=0.01)


def test_classifiers() -> None:
    """25 and 26: one baseline row for all, targets by row; a sigmoid."""
    x = torch.arange(120, dtype=F64).reshape(3, 40)
    baseline, target = torch.zeros(1, 40, dtype=F64), torch.tensor([5, 5, 2])
    named = {"n_steps": 200, "return_convergence_delta": True}
    found, expected = both(softmax_model(), x, baseline, target, **named)
    assert_agree(found, expected)
    x = torch.arange(20, dtype=F64)[None]
    named = {"n_steps": 200, "method": "riemann_right", "return_convergence_delta": True}
    assert_agree(*both(sigmoid_model(), x, target=0, **named))


TARGETS = {
    "an index": 1,
    "a tuple": (1,),
    "a number in a tensor": torch.tensor(1),
    "one number in a list of a tensor": torch.tensor([1]),
    "an index for each row": torch.tensor([0, 1, 1, 0, 1, 0]),
    "a list of indices": [0, 1, 1, 0, 1, 0],
    "a list of tuples": [(0,), (1,), (1,), (0,), (1,), (0,)],
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_every_form(name: str) -> None:
    """27"""
    named = {"target": TARGETS[name], "return_convergence_delta": True}
    assert_agree(*both(NET, X, n_steps=9, **named))


@pytest.mark.parametrize("target", [(1, 0, 1), [(1, 0, 1), (0, 1, 0), (1, 1, 1)]], ids=str)
def test_targets_of_tensor_outputs(target: Any) -> None:
    """27 and 28"""
    assert_agree(*both(multidim, MULTI, target=target, n_steps=9, return_convergence_delta=True))


@pytest.mark.parametrize("target", [None, (1, 0), (1, 0, 1, 0), [0, 1], [0, (1,)], 2, -1], ids=str)
def test_targets_that_do_not_fit_are_refused(target: Any) -> None:
    """28 and 43, and −1, which Captum takes from the end."""
    with pytest.raises(SpecError, match="target"):
        IntegratedGradients(multidim).attribute(MULTI, target=target)


def test_two_branches_do_not_mix() -> None:
    """30"""
    inputs = (tensor([-10.0, 1, -5]), tensor([3.0, 3, 1]))
    found = IntegratedGradients(two_branches).attribute(inputs)
    torch.testing.assert_close(found, (tensor([0.0, 0, 0]), tensor([6.0, 9, 0])))


BASELINES = {
    "none": None,
    "a whole number": 1,
    "a number": 0.5,
    "one row": normal(1, 4, seed=3),
    "a row each": normal(6, 4, seed=3),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_every_form(name: str) -> None:
    named = {"target": 0, "n_steps": 9, "return_convergence_delta": True}
    assert_agree(*both(NET, X, BASELINES[name], **named))


def test_a_tuple_of_one_stays_a_tuple_and_baselines_of_a_tuple_differ() -> None:
    assert_agree(
        *both(NET, (X,), (normal(1, 4, seed=2),), 1, n_steps=9, return_convergence_delta=True)
    )
    pair = (normal(3, 2), normal(3, 5, seed=1))
    starts = (0.25, normal(1, 5, seed=2))

    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a.sin().sum(1) * b.tanh().sum(1)

    assert_agree(*both(forward, pair, starts, n_steps=9, return_convergence_delta=True))
    assert_agree(*both(forward, pair, (0, 1), multiply=False, n_steps=9))


def test_the_delta_of_any_attributions() -> None:
    """Captum's own question, of numbers that are not Integrated Gradients."""
    pair, starts = (normal(3, 2), normal(3, 5, seed=1)), (0.25, normal(1, 5, seed=2))

    def forward(a: Tensor, b: Tensor, scale: float) -> Tensor:
        return torch.stack([a.sin().sum(1), scale * b.sum(1)], 1)

    asked = (pair, starts, pair, [0, 1, 1], 2.0)
    ours, theirs = (
        made(forward).compute_convergence_delta(*asked)
        for made in (IntegratedGradients, captum.attr.IntegratedGradients)
    )
    torch.testing.assert_close(ours, theirs)
    assert IntegratedGradients(forward).has_convergence_delta()


def test_without_the_difference_a_feature_at_its_baseline_has_a_mean_gradient() -> None:
    x = X.clone()
    x[:, 2] = 0.3
    assert_agree(*both(NET, x, 0.3, 1, multiply=False, n_steps=9, return_convergence_delta=True))
    assert not IntegratedGradients(NET, multiply_by_inputs=False).multiplies_by_inputs


def test_inputs_are_left_as_they_are() -> None:
    """Captum leaves them requiring gradients, or its results with a graph."""
    x = X.clone().requires_grad_()
    found = IntegratedGradients(NET).attribute(x, target=0)
    assert (found.requires_grad, x.grad, x.requires_grad) == (False, None, True)
    plain = X.clone()
    IntegratedGradients(NET).attribute(plain, target=0)
    assert not plain.requires_grad


# --- errors --------------------------------------------------------------------------------------

REFUSED = {
    "a rule of another name": ({"method": "riemann_rigth"}, "riemann_right"),
    "no steps": ({"n_steps": 0}, "whole number from 1"),
    "one node of the trapezoid": (
        {"n_steps": 1, "method": "riemann_trapezoid"},
        "whole number from 2",
    ),
    "steps beyond the nodes' precision": ({"n_steps": 1001}, "at most 1000"),
    "an internal batch of none": ({"internal_batch_size": 0}, "at least 1"),
    "two baselines": ({"baselines": (X, X)}, "one per input"),
    "two numbers as baselines": ({"baselines": (0, 0)}, "one per input"),
    "a text for a baseline": ({"baselines": "zero"}, "a tensor or a tuple of tensors"),
    "a baseline of another shape": ({"baselines": normal(6, 3)}, "shape"),
    "arguments of other rows": ({"additional_forward_args": normal(5, 4)}, "6 rows"),
    "both ways to be exact": ({"accuracy": Adaptive(), "n_steps": 20}, "either accuracy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_in_words(name: str) -> None:
    change, words = REFUSED[name]
    with pytest.raises(SpecError, match=words):
        IntegratedGradients(NET).attribute(X, **({"target": 0} | change))


def test_a_model_that_trains_and_empty_batches_are_refused() -> None:
    training = nn.Sequential(nn.Linear(4, 1), nn.Dropout())
    for multiply, further in ((True, None), (False, None), (True, "a text")):
        with pytest.raises(SpecError, match=r"model\.eval"):
            IntegratedGradients(training, multiply).attribute(
                X.float(), additional_forward_args=further
            )
    with pytest.raises(DataError, match="at least one row"):
        IntegratedGradients(NET).attribute(X[:0], target=0)
    with pytest.raises(SpecError, match="multiply_by_inputs"):
        IntegratedGradients(NET, False).attribute(X, target=0, accuracy=Adaptive())


# --- what Captum has not -------------------------------------------------------------------------


def test_accuracy_takes_the_place_of_steps() -> None:
    accuracy = Adaptive(tolerance=1e-6)
    found, delta = IntegratedGradients(NET).attribute(
        X, target=1, accuracy=accuracy, return_convergence_delta=True
    )
    ours = attribute(NET, X, target=1, accuracy=accuracy)
    assert torch.equal(found, ours.attributions)
    assert torch.equal(delta, ours.gap)


def test_every_row_has_a_status() -> None:
    ig = IntegratedGradients(NET)
    certified = ig.attribute_with_status(X, target=1, accuracy=Adaptive())
    assert set(certified.status) == {"ok"}
    assert (certified.error_estimate < 1e-2).all()
    assert set(ig.attribute_with_status(X, target=1).status) == {"unchecked"}
    mean = IntegratedGradients(NET, False).attribute_with_status(X, target=1)
    torch.testing.assert_close(mean.f_input, NET(X)[:, 1].detach())


def test_rows_that_are_not_certified_are_told() -> None:
    """Where plain numbers are returned, somebody must say that some of them are not exact."""
    rough = mlp(nn.ReLU, features=4, gain=3.0)
    opaque = IntegratedGradients(lambda v: rough(v).sin())
    with pytest.warns(UserWarning, match=r"not_converged of 6 rows"):
        opaque.attribute(X, target=0, accuracy=Adaptive(tolerance=1e-6, max_evaluations=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = [
            opaque.attribute(X, target=0, accuracy=FixedSteps(steps=4)),
            IntegratedGradients(NET).attribute(X, target=0, accuracy=Adaptive()),
        ]
    assert all(found.isfinite().all() for found in silent)
