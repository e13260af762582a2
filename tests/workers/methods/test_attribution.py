"""`attribute`: the peers' cases, targets and baselines of every form, and what becomes of a row.

Peer cases are numbered as in Captum's, Alibi's and PAIR saliency's own suites; expected values are
closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from integrand.workers.quadrature.rules import PLAIN
from tests.toys import assert_close, mlp, opaque, rows

F64 = torch.float64
RULES = [*PLAIN]
Model = Callable[..., Tensor]


# --- peers' cases ------------------------------------------------------------------------------


def b1(v: Tensor) -> Tensor:
    return (1 - (1 - v).relu()).squeeze(1)


def b2(v: Tensor) -> Tensor:
    return (v[:, 0].relu() - 1 - v[:, 1].relu()).relu()


def b3(v: Tensor) -> Tensor:
    return ((v[:, 0] - 1).relu() - v[:, 1].relu()).relu()


def test_sensitivity_where_the_gradient_has_vanished() -> None:
    """F = 1 − ReLU(1 − x) at x = 2 against 0: gradient 0, attribution 1. Sundararajan et al. 2017,
    §2.1.
    """
    found = attribute(b1, torch.tensor([[2.0]], dtype=F64), accuracy=Adaptive(max_evaluations=511))
    assert_close(found.attributions, [[1.0]], atol=1e-2)
    assert found.status == ("ok",)


def multilayer(v: Tensor) -> Tensor:
    total = v.sum(1, keepdim=True)
    hidden = torch.cat([total - 10, total + 1, total + 1, total + 1], 1).relu().sum(1)
    return torch.stack([hidden - 1, hidden + 1], 1)


def grid(v: Tensor) -> Tensor:
    """out[c, j, k] = multilayer[c] · (1, 2)[j] · (1, 4)[k]."""
    return torch.einsum("rc,j,k->rcjk", multilayer(v), v.new_tensor([1, 2]), v.new_tensor([1, 4]))


@pytest.mark.parametrize(
    ("x", "baseline", "expected"),
    [(1, 0, 1), (-1, 1e-5, -1.00001), (0, 0, 0)],
    ids=["case 1", "case 2", "case 3"],
)
def test_one_feature(x: float, baseline: float, expected: float) -> None:
    found = attribute(b1, torch.tensor([[x]], dtype=F64), baselines=baseline)
    assert_close(found.attributions, [[expected]])
    assert (found.status, found.error_estimate.item()) == (("ok",), pytest.approx(0, abs=1e-10))


@pytest.mark.parametrize("rule", [*RULES, None])
def test_kinks_in_two_implementations(rule: Any) -> None:
    """Cases 4 and 6: (1.5, −0.5) for both, and equal sums."""
    accuracy = FixedSteps(rule=rule, steps=500) if rule else Adaptive(tolerance=1e-2)
    x = torch.tensor([[3.0, 1.0]], dtype=F64)
    found = [attribute(f, x, accuracy=accuracy).attributions for f in (b2, b3)]
    for attributions in found:
        assert_close(attributions, [[1.5, -0.5]], atol=0.02)
    assert_close(found[0].sum(), found[1].sum(), atol=1e-12)


@pytest.mark.parametrize("batch_rows", [None, 1, 10, 20])
def test_multilayer(batch_rows: int | None) -> None:
    """Case 11: x_i (3 + max(S − 10, 0) / S) from 0 with S = Σx."""
    x = torch.tensor([[1.5, 2, 1.3], [0.5, 0.1, 2.3], [1.5, 2, 1.3]], dtype=F64)
    found = attribute(
        multilayer, x, target=0, accuracy=FixedSteps(steps=100), batch_rows=batch_rows
    )
    assert_close(found.attributions, [[4.5, 6, 3.9], [1.5, 0.3, 6.9], [4.5, 6, 3.9]])


def test_multilayer_beyond_its_kink() -> None:
    """Case 14: the kink lies at a tenth of the path."""
    x = torch.tensor([[0.0, 100, 0]], dtype=F64)
    assert_close(
        attribute(multilayer, x, target=0, accuracy=FixedSteps(steps=200)).attributions,
        [[0, 390, 0]],
        atol=0.1,
    )
    found = attribute(multilayer, x, target=0, accuracy=Adaptive(tolerance=1e-2))
    assert found.status == ("ok",)
    assert_close(found.attributions, [[0, 390, 0]], atol=3.9)


def test_softmax_classifier() -> None:
    """Case 25: completeness on inputs up to 119, three targets, one shared baseline."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10), nn.Softmax(1)
    )
    x = torch.arange(120.0).reshape(3, 40)
    found = attribute(
        net.eval(),
        x,
        baselines=torch.zeros(1, 40),
        target=torch.tensor([5, 5, 2]),
        accuracy=FixedSteps(steps=200),
    )
    assert found.gap.abs().max() < 0.005


def test_two_inputs() -> None:
    """Case 30: relu(3a₁ + a₂) + relu(2b₁ + 3b₂)."""
    a, b = torch.tensor([[-10.0, 1, -5]], dtype=F64), torch.tensor([[3.0, 3, 1]], dtype=F64)
    found = attribute(
        lambda a, b: (3 * a[:, 0] + a[:, 1]).relu() + (2 * b[:, 0] + 3 * b[:, 1]).relu(), (a, b)
    )
    assert isinstance(found.attributions, tuple)
    assert_close(found.attributions[0], [[0, 0, 0]])
    assert_close(found.attributions[1], [[6, 9, 0]])


def test_a_smooth_function_with_its_closed_form() -> None:
    """Case 32: 5x + y² + sin z."""
    found = attribute(
        lambda v: 5 * v[:, 0] + v[:, 1] ** 2 + v[:, 2].sin(),
        torch.tensor([[1.0, 2, 3]], dtype=F64),
        baselines=torch.tensor([[0.5, 1, 1]], dtype=F64),
        accuracy=Adaptive(tolerance=1e-10),
    )
    assert_close(found.attributions, [[2.5, 3, math.sin(3) - math.sin(1)]], atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_do_not_lose_a_tenth(rule: Any) -> None:
    """Case 33: 2x + y. Captum's trapezoid-10 gives (19.8, 7.2)."""
    found = attribute(
        lambda v: 2 * v[:, 0] + v[:, 1],
        torch.tensor([[10.0, 5]], dtype=F64),
        baselines=torch.tensor([[-1.0, -3]], dtype=F64),
        accuracy=FixedSteps(rule=rule, steps=10),
    )
    assert_close(found.attributions, [[22, 8]])


# --- targets, inputs and baselines -------------------------------------------------------------


@pytest.mark.needs_strict_kernels
def test_each_row_has_its_own_target() -> None:
    """Case 27: one call with a target per row equals a call per row."""
    net, x, targets = mlp(outputs=4), rows(6), torch.tensor([3, 0, 1, 1, 2, 3])
    found = attribute(net, x, target=targets, batch_rows=16)
    for i, target in enumerate(targets.tolist()):
        alone = attribute(net, x[i : i + 1], target=target, batch_rows=16)
        assert torch.equal(found.attributions[i], alone.attributions[0])
        assert found.f_input[i] == alone.f_input[0]


@pytest.mark.parametrize(
    "target", [(1, 0, 1), torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]])], ids=["tuple", "tensor"]
)
def test_outputs_of_four_dimensions(target: Any) -> None:
    x = rows(3).abs()
    found = attribute(grid, x, target=target, accuracy=FixedSteps(steps=5))
    scale = [4.0] * 3 if isinstance(target, tuple) else [4.0, 8, 8]
    assert_close(found.attributions, 3 * x * torch.tensor(scale, dtype=F64)[:, None])


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_scalar_outputs_take_no_target(shape: tuple[int, ...]) -> None:
    x = rows(4)
    found = attribute(lambda v: v.square().sum(1).reshape(shape), x)
    assert_close(found.attributions, x**2)
    assert found.f_input.shape == (4,)


def test_rows_may_be_single_numbers() -> None:
    found = attribute(lambda v: v**2, torch.tensor([1.0, 2, math.nan], dtype=F64))
    assert_close(found.attributions[:2], [1.0, 4])
    assert found.status == ("ok", "ok", "bad_input")


def test_structure_and_dtype_follow_the_inputs() -> None:
    x, image = rows(4, dtype=torch.float32), torch.randn(4, 2, 3, 3)

    def forward(v: Tensor, picture: Tensor) -> Tensor:
        return v.square().sum(1) + picture.square().flatten(1).sum(1)

    found = attribute(forward, (x, image))
    assert isinstance(found.attributions, tuple)
    assert [a.shape for a in found.attributions] == [x.shape, image.shape]
    assert {a.dtype for a in found.attributions} == {torch.float32}
    assert_close(found.attributions[1], image**2, rtol=1e-5, atol=1e-6)
    single = attribute(lambda v: v.square().sum(1), x)
    assert isinstance(single.attributions, Tensor)
    assert isinstance(attribute(lambda v: v.square().sum(1), (x,)).attributions, tuple)
    assert {
        found.gap.dtype,
        found.error_estimate.dtype,
        found.f_input.dtype,
        found.f_baseline.dtype,
    } == {F64}
    assert found.evaluations.dtype == torch.int32


def test_inputs_may_differ_in_dtype() -> None:
    """Each keeps its own; what is known of their sums is known to the narrower one's precision."""
    x, y = rows(4), rows(4, seed=1, dtype=torch.float32)
    found = attribute(lambda a, b: a.exp().sum(1) + b.double().square().sum(1), (x, y))
    assert [a.dtype for a in found.attributions] == [F64, torch.float32]
    assert_close(found.attributions[0], x.expm1(), rtol=1e-2, atol=1e-3)
    assert_close(found.attributions[1], y.double() ** 2, rtol=1e-6, atol=1e-6)
    assert set(found.status) == {RowStatus.ok}


def test_a_list_of_targets_gives_a_column_for_each() -> None:
    net, x = mlp(outputs=4), rows(6)
    found = attribute(net, x, target=[3, 0], batch_rows=16)
    assert found.attributions.shape == (6, 2, 3)
    assert found.gap.shape == found.evaluations.shape == found.f_input.shape == (6, 2)
    assert len(found.status) == len(found.reason) == 12
    for place, target in enumerate((3, 0)):
        alone = attribute(net, x, target=target, batch_rows=16)
        assert torch.equal(found.attributions[:, place], alone.attributions)
        assert torch.equal(found.error_estimate[:, place], alone.error_estimate)
    two = attribute(lambda a, b: net(a + b), (x, x), target=[1], batch_rows=16)
    assert [a.shape for a in two.attributions] == [(6, 1, 3)] * 2


def test_every_status_is_a_status() -> None:
    """And every reason None or a sentence, whatever became of the row."""
    x = rows(7)
    x[0], x[1, 0], x[2, 0] = 0, math.nan, -5
    found = attribute(
        lambda v: (v[:, 0] + 4).log() + (v[:, 1] * 9).sin(),
        x,
        accuracy=Adaptive(tolerance=1e-7, max_evaluations=15),
    )
    assert {type(s) for s in found.status} == {RowStatus}
    assert set(found.status[:3]) == {RowStatus.ok, RowStatus.bad_input, RowStatus.nonfinite}
    assert [r is None for r in found.reason] == [s is RowStatus.ok for s in found.status]
    assert all(r is None or isinstance(r, str) for r in found.reason)


def test_forward_args_are_passed_row_by_row() -> None:
    x = rows(5)
    mask = torch.tensor([[1, 0, 1]] * 4 + [[0, 0, 1]]).bool()
    scale = torch.arange(1.0, 6).double()
    found = attribute(
        lambda v, m, s: (v.square() * m).sum(1) * s, x, forward_args=(mask, scale), batch_rows=8
    )
    assert_close(found.attributions, x**2 * mask * scale[:, None])
    one = attribute(lambda v, m: (v.square() * m).sum(1), x, forward_args=mask)
    assert_close(one.attributions, x**2 * mask)


def test_an_unused_input_gets_zeros_and_a_warning() -> None:
    x = rows(3)
    with pytest.warns(UserWarning, match=r"does not depend on inputs \[1\]"):
        found = attribute(lambda a, b: a.square().sum(1), (x, rows(3, seed=1)))
    assert_close(found.attributions[0], x**2)
    assert not found.attributions[1].any()


def test_baselines_of_every_form() -> None:
    x, each = rows(4), rows(4, seed=1)

    def square(v: Tensor) -> Tensor:
        return v.square().sum(1)

    assert_close(attribute(square, x, baselines=each).attributions, x**2 - x * 0 - each**2)
    assert_close(attribute(square, x, baselines=each[:1]).attributions, x**2 - each[:1] ** 2)
    assert_close(attribute(square, x, baselines=0.5).attributions, x**2 - 0.25)
    assert_close(attribute(square, x, baselines=2).attributions, x**2 - 4)
    assert_close(attribute(square, x).attributions, x**2)
    assert_close(attribute(square, x, baselines=torch.full((1, 3), 2)).attributions, x**2 - 4)
    both = attribute(
        lambda a, b: square(a) + square(b), (x, x), baselines=(each, torch.zeros(1, 3))
    )
    assert_close(both.attributions[0], x**2 - each**2)
    assert_close(both.attributions[1], x**2)


# --- what becomes of a row ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_fixed_rules_certify_nothing(rule: Any) -> None:
    found = attribute(mlp(), rows(3), target=0, accuracy=FixedSteps(rule=rule, steps=6))
    assert found.status == ("unchecked",) * 3
    assert found.error_estimate.isnan().all()
    assert found.gap.isfinite().all()
    assert found.evaluations.tolist() == [len(PLAIN[rule](6).nodes)] * 3


def test_a_row_equal_to_its_baseline_is_settled_without_work() -> None:
    x = rows(3)
    baseline = x.clone()
    baseline[1] = 0
    found = attribute(mlp(), x, baselines=baseline, target=0)
    assert found.status == ("ok",) * 3
    assert found.evaluations[[0, 2]].tolist() == [0, 0]
    for values in (found.attributions, found.gap[:, None], found.error_estimate[:, None]):
        assert not values[[0, 2]].any()
    assert found.attributions[1].all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_rows_keep_their_place_and_poison_nobody(value: float) -> None:
    net, x = mlp(dtype=torch.float32), rows(9, dtype=torch.float32)
    clean = attribute(net, x, target=0, batch_rows=16)
    spoilt = x.clone()
    spoilt[[0, 4], [1, 2]] = value
    found = attribute(net, spoilt, target=0, batch_rows=16)
    others = [i for i in range(9) if i not in (0, 4)]
    assert [s for s in found.status if s == "bad_input"] == ["bad_input"] * 2
    assert found.reason[0] == found.reason[4] == "input 0 holds NaN or inf"
    assert found.attributions[[0, 4]].isnan().all()
    assert found.evaluations[[0, 4]].tolist() == [0, 0]
    assert torch.equal(found.attributions[others], clean.attributions[others])
    assert torch.equal(found.gap[others], clean.gap[others])


def test_a_bad_baseline_spoils_its_own_row() -> None:
    baseline = torch.zeros(3, 3, dtype=F64)
    baseline[1, 0] = math.nan
    found = attribute(mlp(), rows(3), baselines=baseline, target=0)
    assert found.status == ("ok", "bad_input", "ok")
    assert found.reason == (None, "baseline 0 holds NaN or inf", None)
    assert attribute(mlp(), rows(2), baselines=math.nan, target=0).status == ("bad_input",) * 2


@pytest.mark.parametrize("accuracy", [Adaptive(), FixedSteps(rule="midpoint", steps=1)], ids=str)
def test_nonfinite_models_spoil_only_their_rows(accuracy: Any) -> None:
    """log is NaN at the first row; |x − ½| has no gradient half-way to the second, at α = ½
    exactly.
    """

    def forward(v: Tensor) -> Tensor:
        return (v[:, 0] + 4).log() + (v[:, 1] - 0.5).square().sqrt()

    x = torch.tensor([[-5.0, 0.2], [0.0, 1.0], [1.0, 0.25]])
    found = attribute(forward, x, accuracy=accuracy)
    assert found.status[:2] == ("nonfinite", "nonfinite")
    assert found.status[2] in ("ok", "unchecked")
    assert found.reason[:2] == (
        "the model's output at x is NaN or inf",
        "the model's gradient on the path is NaN or inf",
    )
    assert found.attributions[:2].isnan().all()
    assert found.gap[:2].isnan().all()
    assert torch.equal(
        found.attributions[2], attribute(forward, x[2:], accuracy=accuracy).attributions[0]
    )


def test_what_cannot_be_certified_is_not_converged() -> None:
    found = attribute(
        opaque(mlp(nn.ReLU)),
        rows(20),
        target=0,
        accuracy=Adaptive(tolerance=1e-4, max_evaluations=7),
    )
    assert set(found.status) == {"not_converged"}
    assert found.evaluations.tolist() == [7] * 20
    assert (found.error_estimate > 1e-4).all()
    assert found.attributions.isfinite().all()
    assert all(
        "above the tolerance 0.0001 after 7 evaluations" in str(reason) for reason in found.reason
    )


def test_gradients_of_zero_beside_a_changed_output_are_not_certified() -> None:
    """A step: every gradient is 0 and the gap is all of f(x) − f(x')."""
    found = attribute(lambda v: v.round().sum(1), torch.tensor([[2.0, 3.0]], dtype=F64))
    assert found.status == ("not_converged",)
    assert found.gap.item() == -5
    assert found.error_estimate.item() == math.inf


def test_the_precision_floor_is_told_apart() -> None:
    """f ≈ 10⁶ in float32 cannot carry a gap of 10⁻⁵: more evaluations would not help."""
    net = mlp(dtype=torch.float32)
    found = attribute(
        lambda v: net(v) + 1e6,
        rows(20, dtype=torch.float32),
        target=0,
        accuracy=Adaptive(tolerance=1e-5),
    )
    assert RowStatus.at_precision_floor in found.status
    assert RowStatus.not_converged not in found.status
    at_floor = [i for i, s in enumerate(found.status) if s == "at_precision_floor"]
    assert (found.error_estimate[at_floor] > 1e-5).all()
    assert all("rounding" in str(found.reason[i]) for i in at_floor)


# --- the caller's world is left as it was ------------------------------------------------------


def test_works_under_inference_mode_and_no_grad() -> None:
    net, x, mask = mlp(), rows(4), rows(4, seed=1).abs()

    def masked(v: Tensor, m: Tensor) -> Tensor:
        return net(v * m)

    plain = attribute(masked, x, target=0, forward_args=mask)
    with torch.no_grad():
        assert torch.equal(
            attribute(masked, x, target=0, forward_args=mask).attributions, plain.attributions
        )
    with torch.inference_mode():
        inside = attribute(
            masked, x.clone(), target=0, forward_args=mask.clone(), baselines=torch.zeros_like(x)
        )
    assert torch.equal(inside.attributions, plain.attributions)
    assert not inside.attributions.is_inference()


def test_inputs_that_require_gradients_get_none() -> None:
    x = rows(4).requires_grad_()
    found = attribute(mlp(), x, target=0)
    assert not found.attributions.requires_grad
    assert x.grad is None


def test_the_model_is_not_touched() -> None:
    net = mlp()
    before = [p.clone() for p in net.parameters()]
    attribute(net, rows(4), target=0)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not net.training
