"""The adaptive mode row by row: what each kind of path ends as, what it costs, and that neither
depends on anything but the row and its target.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import Attribution, attribute
from tests.plugins.explaining import attribute_untried
from tests.toys import rows
from tests.workers.methods.models import WEIGHTS, network, rooted, spiky

F64 = torch.float64
Model = Callable[[Tensor], Tensor]
ONE = torch.tensor([[1.0, 0.5, -0.4]], dtype=F64)
DIAGNOSTICS = ("attributions", "f_input", "f_baseline", "gap", "error_estimate", "evaluations")


def composite(forward: Model, x: Tensor, edges: Any) -> Tensor:
    """Gauss-Legendre with 16 nodes on every panel, against 0: `[rows, features]`."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    total = torch.zeros_like(x)
    for start, stop in pairwise(edges):
        alphas = torch.from_numpy(start + (stop - start) * (nodes + 1) / 2)
        points = (alphas[:, None, None] * x).reshape(-1, x.shape[1]).requires_grad_()
        (found,) = torch.autograd.grad(forward(points).sum(), points)
        total += torch.einsum(
            "k,krf->rf", torch.from_numpy(weights * (stop - start) / 2), found.reshape(16, *x.shape)
        )
    return total * x


def error(found: Attribution, exact: Tensor) -> Tensor:
    assert isinstance(found.attributions, Tensor)
    return (found.attributions - exact).abs().sum(-1) / exact.abs().sum(-1)


# --- levels, grids and what they cost ----------------------------------------------------------


def test_a_smooth_row_ends_at_the_first_level_that_certifies_it() -> None:
    """sin(kα) takes more nodes the more it turns: 7, 15, 31 and 63, and every row is as accurate as
    asked for.
    """
    x = torch.linspace(0.5, 40, 30, dtype=F64)[:, None]
    found = attribute(lambda v: v.sin().sum(1), x, accuracy=Adaptive(tolerance=1e-3))
    assert set(found.status) == {RowStatus.ok}
    assert set(found.evaluations.tolist()) >= {7, 15, 31, 63}
    assert (found.evaluations.diff() >= 0).float().mean() > 0.8
    assert (error(found, x.sin()) <= 1e-3).all()
    assert (found.error_estimate >= error(found, x.sin())).all()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-10])
def test_tighter_tolerances_are_kept(tolerance: float) -> None:
    x, forward = rows(20), network(nn.Tanh)
    found = attribute(forward, x, accuracy=Adaptive(tolerance=tolerance))
    assert set(found.status) == {RowStatus.ok}
    assert (error(found, composite(forward, x, np.linspace(0, 1, 65))) <= tolerance).all()


def test_a_kinked_row_goes_on_with_the_grid() -> None:
    """Its nodes, besides those of the nested rule: multiples of 1/128 at first, as many as the
    estimate asks for.
    """
    seen: list[Tensor] = []

    def spied(v: Tensor) -> Tensor:
        seen.append(v.detach()[:, 0])
        return forward(v)

    x, forward = rows(1, 8), network(nn.ReLU, 8)
    found = attribute_untried(spied, x, accuracy=Adaptive(tolerance=1e-2), batch_rows=1)
    assert found.status == ("ok",)
    assert found.evaluations.item() > 63 + 15
    alphas = torch.cat(seen[2:]) / x[0, 0]
    assert len(alphas) == found.evaluations.item()
    on_grid = (alphas * 512 - (alphas * 512).round()).abs() < 1e-9
    assert on_grid.sum() >= 63
    # one half is in both
    assert len(torch.unique((alphas[on_grid] * 512).round())) >= on_grid.sum() - 1
    assert error(found, composite(forward, x, np.linspace(0, 1, 2001))) <= 1e-2


@pytest.mark.parametrize("features", [2, 8])
def test_kinked_rows_are_as_accurate_as_certified(features: int) -> None:
    x, forward = rows(40, features), network(nn.ReLU, features)
    exact = composite(forward, x, np.linspace(0, 1, 2001))
    found = attribute(forward, x, accuracy=Adaptive(tolerance=1e-2))
    certified = torch.tensor([s == RowStatus.ok for s in found.status])
    assert certified.float().mean() > 0.5
    assert (error(found, exact)[certified] <= 1e-2).all()
    assert (found.error_estimate >= error(found, exact) / 2).all()


# --- what is spent -----------------------------------------------------------------------------


PATHS: dict[str, Model] = {
    "smooth": lambda v: network(nn.GELU, gain=3.0)(v).squeeze(1),
    "kinked": lambda v: network(nn.ReLU)(v).squeeze(1),
    "oscillating": lambda v: (60 * v).sin().sum(1),
    "spike": spiky,
    "kinks within a spike": lambda v: spiky(v) + ((v @ WEIGHTS - 0.4) * 100).clamp(-1, 1).abs(),
}


@pytest.mark.parametrize("name", PATHS)
@settings(max_examples=8, deadline=None)
@given(
    most=st.integers(7, 600),
    tolerance=st.sampled_from([1e-2, 1e-4]),
    unreachable=st.sampled_from(["stop", "spend"]),
)
def test_no_row_spends_more_than_it_may(
    name: str, most: int, tolerance: float, unreachable: Any
) -> None:
    """Counted call by call: batches of one row, so nothing is padded."""
    calls = []

    def counted(v: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            calls.append(1)
        return PATHS[name](v)

    accuracy = Adaptive(tolerance=tolerance, max_evaluations=most, on_unreachable=unreachable)
    found = attribute_untried(counted, ONE, accuracy=accuracy, batch_rows=1)
    assert 7 <= found.evaluations.item() == len(calls) <= most
    assert found.status[0] in (RowStatus.ok, RowStatus.not_converged)
    assert (found.error_estimate.item() <= tolerance) == (found.status[0] == RowStatus.ok)
    assert found.attributions.isfinite().all()


def test_a_row_costs_what_it_costs_alone() -> None:
    x = torch.cat([ONE * s for s in np.linspace(0.2, 3, 7)])
    for forward in PATHS.values():
        together = attribute(forward, x, accuracy=Adaptive(tolerance=1e-3), batch_rows=16)
        alone = [
            attribute(forward, row[None], accuracy=Adaptive(tolerance=1e-3), batch_rows=16)
            for row in x
        ]
        assert together.evaluations.tolist() == [a.evaluations.item() for a in alone]
        assert together.status == tuple(a.status[0] for a in alone)


def test_what_is_out_of_reach_stops_early_and_says_so() -> None:
    x, forward = rows(12, 8), network(nn.ReLU, 8)
    found = attribute(forward, x, accuracy=Adaptive(tolerance=1e-6))
    assert set(found.status) == {RowStatus.not_converged}
    assert (found.evaluations < 256).all()
    assert all("; the tolerance would take about" in str(reason) for reason in found.reason)
    foreseen = [float(str(reason).rsplit(" ", 1)[1]) for reason in found.reason]
    assert min(foreseen) > 2 * 512


def test_what_is_out_of_reach_may_be_spent_on_all_the_same() -> None:
    x, forward = rows(12, 8), network(nn.ReLU, 8)
    stop, spend = (
        attribute(
            forward,
            x,
            accuracy=Adaptive(tolerance=1e-6, max_evaluations=700, on_unreachable=choice),
        )
        for choice in ("stop", "spend")
    )
    assert set(spend.status) == {RowStatus.not_converged}
    assert (spend.evaluations > 0.75 * 700).all()
    assert (spend.evaluations <= 700).all()
    assert (stop.evaluations < spend.evaluations).all()
    assert (spend.error_estimate < stop.error_estimate).all()
    assert all(
        "after" in str(reason) and "would take" not in str(reason) for reason in spend.reason
    )


def test_more_evaluations_than_a_tolerance_needs_are_not_spent() -> None:
    x, forward = rows(12), network(nn.GELU)
    few, many = (
        attribute(forward, x, accuracy=Adaptive(max_evaluations=most)) for most in (63, 8192)
    )
    assert torch.equal(few.evaluations, many.evaluations)
    assert torch.equal(few.attributions, many.attributions)


# --- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.0007, 0.004, 0.03, 0.21, 0.5, 0.68, 0.93, 0.995, 0.9996])
@pytest.mark.parametrize("width", [1 / 1600, 1 / 20000])
@pytest.mark.parametrize("beside", [0.0, 0.1])
def test_a_narrow_step_is_certified_and_right(place: float, width: float, beside: float) -> None:
    """f = σ((w·v/w·x − place)/width) + beside·Σv²: all but a trace of the step lies within a
    two-hundredth of the path.
    """
    scale = float(ONE[0] @ WEIGHTS)
    step = np.diff(1 / (1 + np.exp(-np.clip((np.array([0.0, 1.0]) - place) / width, -700, 700))))[0]
    exact = ONE * WEIGHTS / scale * step + beside * ONE**2
    found = attribute(
        lambda v: torch.sigmoid((v @ WEIGHTS / scale - place) / width) + beside * v.square().sum(1),
        ONE,
        accuracy=Adaptive(tolerance=1e-3),
    )
    assert found.status == ("ok",)
    assert error(found, exact).item() <= found.error_estimate.item() <= 1e-3
    assert found.evaluations.item() < 400


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("features", [8, 64])
def test_the_spike_of_a_layer_norm_near_a_zero_baseline(features: int, epsilon: float) -> None:
    """LayerNorm(αv) switches on at α ≈ √ε / σ(v): here from 3% of the path down to a ten-thousandth
    of it.
    """
    tail, x = network(nn.GELU, features), rows(4, features, seed=1)

    def forward(v: Tensor) -> Tensor:
        return tail(nn.functional.layer_norm(v, (features,), eps=epsilon)).squeeze(1)

    exact = composite(forward, x, [0.0, *np.geomspace(1e-9, 1, 120)])
    found = attribute(forward, x, accuracy=Adaptive(tolerance=1e-3))
    assert set(found.status) == {RowStatus.ok}
    assert (error(found, exact) <= found.error_estimate).all()


def test_a_path_of_several_steps_is_not_certified_blindly() -> None:
    """Three narrow steps: cut, or left open, but never certified and wrong."""
    places, wide = torch.tensor([0.12, 0.47, 0.81], dtype=F64), 2000.0
    scale = float(ONE[0] @ WEIGHTS)

    def forward(v: Tensor) -> Tensor:
        return torch.sigmoid((v @ WEIGHTS / scale - places[:, None]) * wide).sum(0)

    exact = 3 * ONE * WEIGHTS / scale
    for most in (100, 512, 2000):
        found = attribute(forward, ONE, accuracy=Adaptive(tolerance=1e-3, max_evaluations=most))
        assert error(found, exact).item() <= 2 * found.error_estimate.item()
        assert found.status[0] != RowStatus.ok or error(found, exact).item() <= 1e-3


def test_the_pieces_of_rows_do_not_mix() -> None:
    """Many rows, each cut in its own place, in batches that hold items of several."""
    places = torch.linspace(0.05, 0.95, 19, dtype=F64)
    x = (WEIGHTS.sign() / WEIGHTS.abs()).expand(19, 3) / 3
    found = attribute(
        lambda v, p: torch.sigmoid((v @ WEIGHTS - p) * 3000),
        x,
        forward_args=places,
        batch_rows=16,
        accuracy=Adaptive(tolerance=1e-3),
    )
    assert set(found.status) == {RowStatus.ok}
    assert (error(found, torch.full((19, 3), 1 / 3, dtype=F64)) <= 1e-3).all()
    assert len(set(found.evaluations.tolist())) > 3


# --- precision and numbers that are none -------------------------------------------------------


@pytest.mark.parametrize("offset", [1e5, 1e7])
def test_the_precision_floor_of_float32(offset: float) -> None:
    """|f| ≫ |a|: f itself cannot be known to the tolerance. Not certified, not spent on, and said
    so.
    """
    x, forward = rows(20).float(), network(nn.GELU)
    found = attribute(lambda v: forward(v) + offset, x, accuracy=Adaptive(tolerance=1e-5))
    assert (
        {RowStatus.at_precision_floor}
        <= set(found.status)
        <= {RowStatus.at_precision_floor, RowStatus.ok}
    )
    floor = torch.tensor([s == RowStatus.at_precision_floor for s in found.status])
    assert (found.error_estimate[floor] > 1e-5).all()
    assert all(
        "what rounding allows" in str(found.reason[i]) for i in floor.nonzero().flatten().tolist()
    )
    assert (found.evaluations <= 63).all()
    exact = attribute(forward, rows(20), accuracy=Adaptive(tolerance=1e-9)).attributions
    assert (error(found, exact) < 1e-3 * offset / 1e5).all()


def test_float32_costs_no_more_than_float64() -> None:
    """Rows of 15 to 63 nodes: rounding neither keeps a level from certifying nor sends rows to the
    grid.
    """
    x = torch.linspace(5, 42, 40, dtype=F64)[:, None].expand(40, 8) * torch.rand(
        40, 8, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    wide, narrow = (
        attribute(lambda v: v.sin().sum(1), t, accuracy=Adaptive(tolerance=1e-3))
        for t in (x, x.float())
    )
    assert set(narrow.status) == set(wide.status) == {RowStatus.ok}
    assert torch.equal(narrow.evaluations, wide.evaluations)
    assert {15, 31, 63} <= set(narrow.evaluations.tolist())


def test_a_tolerance_below_rounding_ends_at_the_floor() -> None:
    found = attribute(network(nn.GELU), rows(20).float(), accuracy=Adaptive(tolerance=1e-9))
    assert set(found.status) == {RowStatus.at_precision_floor}
    assert (found.evaluations <= 190).all()


@pytest.mark.parametrize("batch_rows", [8, 64])
def test_gradients_that_are_no_numbers_disturb_nobody(batch_rows: int) -> None:
    x = rows(20)
    x[::3, 0] = 1.0
    x[1::3, 0] = 0.25
    found = attribute(rooted, x, batch_rows=batch_rows)
    assert {found.status[i] for i in range(0, 20, 3)} == {RowStatus.nonfinite}
    assert {found.reason[i] for i in range(0, 20, 3)} == {
        "the model's gradient on the path is NaN or inf"
    }
    assert found.attributions[::3].isnan().all()
    clean = [i for i in range(20) if i % 3]
    alone = attribute(rooted, x[clean], batch_rows=batch_rows)
    for name in DIAGNOSTICS:
        assert torch.equal(getattr(found, name)[clean], getattr(alone, name))
    assert {found.status[i] for i in range(1, 20, 3)} == {RowStatus.ok}


def test_a_gradient_that_breaks_within_a_piece_ends_the_row() -> None:
    """The step is cut out first; in its middle, where later nodes lie, the gradient of √0 · 0 is
    NaN.
    """

    def forward(v: Tensor) -> Tensor:
        moved = torch.sigmoid((v[:, 0] - 0.3) * 3000)
        middle = (moved > 0.2) & (moved < 0.8)
        return moved + torch.where(middle, v[:, 0] * 0, v[:, 0] * 0 + 1).sqrt() + middle

    found = attribute(forward, torch.ones(3, 2, dtype=F64))
    assert set(found.status) == {RowStatus.nonfinite}
    assert (found.evaluations > 31).all()


# --- a tested estimate, not a proof ------------------------------------------------------------


def compensating(v: Tensor) -> Tensor:
    """On the diagonal f = 0.1 (v₀ + v₁): two steps in two features undo each other, each narrower
    than the distance of any two of the first nodes, and between two of them.
    """
    return (
        torch.sigmoid((v[:, 0] - 0.4) * 2000)
        - torch.sigmoid((v[:, 1] - 0.4) * 2000)
        + 0.1 * v.sum(1)
    )


def test_two_steps_that_undo_each_other_between_the_nodes_fool_the_estimate() -> None:
    """No gradient at a node and no value of f on the path tells: certified at the first level, and
    wrong by all of it. The claim is a tested estimate, not a proof.
    """
    x, exact = torch.ones(1, 2, dtype=F64), torch.tensor([[1.1, -0.9]], dtype=F64)
    found = attribute(compensating, x, accuracy=Adaptive(tolerance=1e-3))
    assert found.status == ("ok",)
    assert found.evaluations.item() == 7
    torch.testing.assert_close(found.attributions, torch.tensor([[0.1, 0.1]], dtype=F64))
    assert error(found, exact).item() > 0.9
    assert abs(found.gap.item()) < 1e-12


def test_the_same_steps_are_seen_where_they_do_not_quite_undo_each_other() -> None:
    """One is a tenth smaller: f moves by that, and the row is not certified below its error."""
    x = torch.ones(1, 2, dtype=F64)

    def nearly(v: Tensor) -> Tensor:
        return (
            torch.sigmoid((v[:, 0] - 0.4) * 2000)
            - 0.9 * torch.sigmoid((v[:, 1] - 0.4) * 2000)
            + 0.1 * v.sum(1)
        )

    found = attribute(nearly, x, accuracy=Adaptive(tolerance=1e-3))
    exact = torch.tensor([[1.1, -0.8]], dtype=F64)
    assert found.evaluations.item() > 31
    assert found.status[0] != RowStatus.ok or error(found, exact).item() <= 1e-3
