"""Sums of groups of features: what they are, and errors relative to them, against float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Accuracy, Adaptive, Exact, FixedSteps
from integrand.schemas.specs.methods import ExpectedGradients
from integrand.schemas.tables import Role, RowStatus
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.results import Explained
from integrand.workers.engine.verdicts import CODES
from integrand.workers.methods.arguments import row_tensors
from integrand.workers.methods.attribution import prepared_for
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.reporting import Reporting
from integrand.workers.models.row_tensors import RowTensors, keys_of_rows
from integrand.workers.rewriting.hoisting import hoist
from tests.toys import rows
from tests.workers.methods.models import network
from tests.workers.methods.test_adaptive import composite

F64 = torch.float64
TOGETHER = torch.tensor([[0, 1, 0]])
"""The first and the last of three features in one group."""


def found(
    forward: Any,
    x: Tensor,
    members: Tensor | None = TOGETHER,
    *,
    roles: tuple[Role, ...] = ("attr",),
    accuracy: Accuracy | None = None,
    baselines: Any = None,
    batch_rows: int = 32,
) -> Explained:
    with torch.inference_mode(False):
        tensors = row_tensors(x, baselines, (), None)
        sums = 0 if members is None else int(members.max()) + 1
        width = {"group": sums, "attr": sums if members is not None and "group" not in roles else 3}
        shapes = tuple((width.get(role, 3),) for role in roles)
        reporting = Reporting(roles=roles, shapes=shapes, members=members, sums=sums)
        tensors = replace(tensors, reporting=reporting)
        method = method_of(accuracy or Adaptive())
        known = isinstance(forward, Prepared)
        prepared = forward if known else prepared_for(forward, tensors, method)
        return explain(prepared, tensors, method, batch_rows=batch_rows)


def plain(forward: Any, x: Tensor, accuracy: Accuracy | None = None) -> Explained:
    with torch.inference_mode(False):
        tensors = row_tensors(x, None, (), None)
        method = method_of(accuracy or Adaptive())
        return explain(prepared_for(forward, tensors, method), tensors, method, batch_rows=32)


def layered() -> nn.Module:
    """A network whose layers can be read."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)).double()


def summed(values: Tensor, members: Tensor = TOGETHER) -> Tensor:
    """A naive loop."""
    sums = torch.zeros(len(values), int(members.max()) + 1, dtype=F64)
    for row in range(len(values)):
        own = members[row if len(members) > 1 else 0].tolist()
        for element, group in enumerate(own):
            sums[row, group] += float(values[row, element])
    return sums


@pytest.mark.parametrize(("activation", "tolerance"), [(nn.Tanh, 1e-3), (nn.ReLU, 5e-2)])
def test_sums_and_their_errors(activation: type[nn.Module], tolerance: float) -> None:
    x, forward = rows(20), network(activation)
    exact = composite(forward, x, np.linspace(0, 1, 513))
    got = found(forward, x, accuracy=Adaptive(tolerance=tolerance))
    error = (got.attributions[0][:, 0] - summed(exact)).abs().sum(1) / summed(exact).abs().sum(1)
    certified = torch.from_numpy(got.codes[:, 0] == CODES[RowStatus.ok])
    assert certified.float().mean() > 0.5
    assert (error[certified] <= tolerance).all()
    estimate = torch.from_numpy(got.numbers["error_estimate"][:, 0])
    assert (error <= 2 * estimate + 1e-12).all()


@pytest.mark.parametrize("accuracy", [FixedSteps(steps=9), Exact()], ids=["fixed", "exact"])
def test_rules_without_levels(accuracy: Accuracy) -> None:
    x, forward = rows(10), layered()
    features = plain(forward, x, accuracy)
    got = found(forward, x, accuracy=accuracy)
    torch.testing.assert_close(got.attributions[0][:, 0], summed(features.attributions[0][:, 0]))
    np.testing.assert_array_equal(got.numbers["gap"], features.numbers["gap"])
    size = features.attributions[0][:, 0].abs().sum(1)
    reported = got.attributions[0][:, 0].abs().sum(1)
    if isinstance(accuracy, Exact):
        expected = features.numbers["error_estimate"][:, 0] * (size / reported).numpy()
        np.testing.assert_allclose(got.numbers["error_estimate"][:, 0], expected, rtol=1e-9)
    else:
        assert np.isnan(got.numbers["error_estimate"]).all()


def cancelling(v: Tensor) -> Tensor:
    """Two features whose attributions all but cancel in their sum."""
    return (3 * v[:, 0]).sin() - (3 * v[:, 2]).sin() + 1e-3 * v[:, 1]


X = torch.tensor([[1.1, 0.4, 1.1 + 1e-3], [0.7, -0.3, 0.7 - 1e-3]], dtype=F64)


def test_features_that_cancel_take_more_evaluations() -> None:
    accuracy = Adaptive(tolerance=1e-3)
    features, got = plain(cancelling, X, accuracy), found(cancelling, X, accuracy=accuracy)
    assert (got.codes == CODES[RowStatus.ok]).all()
    more = got.numbers["evaluations"] - features.numbers["evaluations"]
    assert more.min() >= 0
    assert more.max() > 0
    exact = composite(cancelling, X, np.linspace(0, 1, 65))
    error = (got.attributions[0][:, 0] - summed(exact)).abs().sum(1) / summed(exact).abs().sum(1)
    assert (error <= 1e-3).all()
    assert (error.numpy() <= got.numbers["error_estimate"][:, 0]).all()


def test_what_cannot_be_afforded_is_not_certified() -> None:
    accuracy = Adaptive(tolerance=1e-4, max_evaluations=7)
    features, got = plain(cancelling, X, accuracy), found(cancelling, X, accuracy=accuracy)
    ratio = got.numbers["error_estimate"] / features.numbers["error_estimate"]
    assert (ratio > 50).all()
    assert (got.codes == CODES[RowStatus.not_converged]).all()
    assert all("above the tolerance" in said for said in got.reason.flat)


def test_float32_features_that_cancel_beyond_its_rounding_are_not_ok() -> None:
    x = torch.tensor([[1.0, 0.0, 1.0 + 3e-7]], dtype=torch.float32)
    got = found(cancelling, x, accuracy=Adaptive(tolerance=1e-3))
    assert got.codes[0, 0] in (CODES[RowStatus.at_precision_floor], CODES[RowStatus.not_converged])
    assert got.numbers["error_estimate"][0, 0] > 1e-3


def test_groups_of_one_feature_each_change_no_bit() -> None:
    x, forward = rows(20), network(nn.GELU)
    alone = found(forward, x, torch.tensor([[0, 1, 2]]))
    features = plain(forward, x)
    assert torch.equal(alone.attributions[0], features.attributions[0])
    np.testing.assert_array_equal(alone.codes, features.codes)
    for name, column in features.numbers.items():
        np.testing.assert_array_equal(alone.numbers[name], column)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_row_depends_on_no_neighbour(activation: type[nn.Module]) -> None:
    x, forward = rows(30), network(activation)
    members = torch.randint(0, 2, (30, 3), generator=torch.Generator().manual_seed(0))
    members[0] = torch.tensor([0, 1, 1])
    whole = found(forward, x, members)
    torch.testing.assert_close(
        whole.attributions[0][:, 0],
        summed(plain(forward, x).attributions[0][:, 0], members),
        rtol=5e-2,
        atol=5e-2,
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    mixed = found(forward, x[order], members[order], batch_rows=64)
    assert torch.equal(whole.attributions[0][order], mixed.attributions[0])
    np.testing.assert_array_equal(
        whole.numbers["error_estimate"][order], mixed.numbers["error_estimate"]
    )


def test_groups_beside_features() -> None:
    x, forward = rows(12), network(nn.Tanh)
    got = found(forward, x, roles=("attr", "group"))
    instead = found(forward, x)
    assert torch.equal(got.attributions[1], instead.attributions[0])
    np.testing.assert_array_equal(got.numbers["error_estimate"], instead.numbers["error_estimate"])
    torch.testing.assert_close(summed(got.attributions[0][:, 0]), got.attributions[1][:, 0])


# --- other ways to evaluate ----------------------------------------------------------------------


def model(activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 24), activation(), nn.Linear(24, 1)).double().eval()


def test_behind_a_hoisted_prefix_sums_are_of_features() -> None:
    x = rows(12)
    with torch.inference_mode(False):
        prepared = Prepared(model(), hoist(model(), (x,)))
    assert prepared.hoisted is not None
    roles: tuple[Role, ...] = ("attr", "group", "mean_gradient")
    plainly, behind = found(model(), x, roles=roles), found(prepared, x, roles=roles)
    for one, other in zip(plainly.attributions, behind.attributions, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


DRAWS = 4
STARTS = torch.randn(DRAWS, 3, generator=torch.Generator().manual_seed(7), dtype=F64)


def over_draws(
    x: Tensor, accuracy: Any, part: Any = None, roles: tuple[Role, ...] = ("attr",)
) -> Explained:
    reporting = Reporting(roles=roles, shapes=tuple((2,) for _ in roles), members=TOGETHER, sums=2)
    keys = keys_of_rows([x])
    tensors = RowTensors((x,), (STARTS,), (), None, draws=DRAWS, keys=keys, reporting=reporting)
    method = method_of(accuracy, part) if part else method_of(accuracy)
    with torch.inference_mode(False):
        return explain(Prepared(model()), tensors, method, batch_rows=32)


def naive(x: Tensor) -> Tensor:
    """Of each baseline, added up by group: `[draws, rows, sums]`."""
    found = []
    for start in STARTS:
        forward = partial(_from, model(), start)
        found.append(summed(composite(forward, x - start, np.linspace(0, 1, 17))))
    return torch.stack(found)


def _from(forward: nn.Module, start: Tensor, moved: Tensor) -> Tensor:
    out: Tensor = forward(start + moved)
    return out


def test_means_over_draws() -> None:
    x = rows(8)
    got = over_draws(x, Adaptive(tolerance=1e-5), roles=("attr", "spread"))
    by_draw = naive(x)
    expected = by_draw.mean(0)
    error = (got.attributions[0][:, 0] - expected).abs().sum(1) / expected.abs().sum(1)
    assert (got.codes == CODES[RowStatus.ok]).all()
    assert (error.numpy() <= got.numbers["error_estimate"][:, 0]).all()
    spread = by_draw.std(0, correction=0)
    torch.testing.assert_close(got.attributions[1][:, 0], spread, rtol=1e-4, atol=1e-6)
    apart = (by_draw - by_draw.mean(0)).abs().sum(2).square().mean(0).sqrt()
    baseline_spread = torch.from_numpy(got.optional["baseline_spread"][:, 0])
    torch.testing.assert_close(baseline_spread, apart / expected.abs().sum(1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("sampling", ["product", "stratified", "iid"])
def test_expected_gradients(sampling: Any) -> None:
    x = rows(8)
    accuracy = Adaptive(tolerance=0.05, max_evaluations=8192)
    got = over_draws(x, accuracy, ExpectedGradients(sampling=sampling))
    expected = naive(x).mean(0)
    error = (got.attributions[0][:, 0] - expected).abs().sum(1) / expected.abs().sum(1)
    estimate = got.numbers["error_estimate"][:, 0]
    ok = got.codes[:, 0] == CODES[RowStatus.ok]
    assert ok.sum() >= 6
    assert (estimate[ok] <= 0.05).all()
    assert (error.numpy() <= 2 * estimate).all()


# --- mean gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accuracy", [Adaptive(tolerance=1e-6), FixedSteps(steps=64), Exact()], ids=lambda a: a.kind
)
def test_mean_gradients_are_there_where_features_do_not_differ(accuracy: Accuracy) -> None:
    x = rows(10)
    x[:, 1] = 0  # as the baseline is
    forward = layered() if isinstance(accuracy, Exact) else network(nn.Tanh)
    got = found(forward, x, None, roles=("attr", "mean_gradient"), accuracy=accuracy)
    values, means = (block[:, 0] for block in got.attributions)
    torch.testing.assert_close(values, means * x)
    assert (means[:, 1] != 0).all()
    alphas = (torch.arange(20000, dtype=F64) + 0.5) / 20000
    for row in range(3):
        points = (alphas[:, None] * x[row]).requires_grad_()
        (gradients,) = torch.autograd.grad(forward(points).sum(), points)
        torch.testing.assert_close(means[row], gradients.mean(0), rtol=1e-3, atol=1e-4)


def test_pieces_add_up_to_the_mean_gradient() -> None:
    def steep(v: Tensor) -> Tensor:
        return torch.sigmoid(400 * (v.sum(1) - 0.61))

    x = torch.tensor([[0.5, 0.3, 0.4]], dtype=F64)
    got = found(steep, x, None, roles=("attr", "mean_gradient"), accuracy=Adaptive(tolerance=1e-6))
    assert got.codes[0, 0] == CODES[RowStatus.ok]
    assert got.numbers["evaluations"][0, 0] > 63
    torch.testing.assert_close(got.attributions[0], got.attributions[1] * x)


def test_a_row_that_is_its_baseline_has_no_mean_gradient() -> None:
    got = found(
        network(nn.Tanh), torch.zeros(2, 3, dtype=F64), None, roles=("attr", "mean_gradient")
    )
    assert (got.attributions[0] == 0).all()
    assert torch.isnan(got.attributions[1]).all()
