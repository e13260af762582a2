"""What people pass by accident or at the limits, most of it a defect of some library once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import DataError, IntegrandError, SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from tests.peers.models import F64, mlp, normal, tensor

CONVERGED = {RowStatus.ok, RowStatus.at_precision_floor}


def squares(v: Tensor) -> Tensor:
    return v.square().flatten(1).sum(1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "part of a larger tensor": lambda x: nn.functional.pad(x, (1, 1, 1, 1))[1:-1, 1:-1],
    "made in inference mode": lambda x: inferred(x),
    "requiring gradients": lambda x: x.clone().requires_grad_(),
    "the result of an operation": lambda x: x.clone().requires_grad_() * 1,
    "a parameter": lambda x: nn.Parameter(x.clone()),
}


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_tensor_lies_in_memory_does_not_matter(layout: str) -> None:
    model, x = mlp(), normal(4, 5)
    plain, found = (attribute(model, v, target=1, batch_rows=16) for v in (x, LAYOUTS[layout](x)))
    assert torch.equal(found.attributions, plain.attributions)
    assert not found.attributions.requires_grad
    assert not found.attributions.is_inference()


def test_one_row_expanded_over_the_batch() -> None:
    found = attribute(squares, tensor([1.0, 2]).expand(5, 2), batch_rows=16)
    assert torch.equal(found.attributions, found.attributions[:1].expand(5, 2))


def test_a_shared_baseline_row_is_that_row_everywhere() -> None:
    model, x, baseline = mlp(), normal(4, 5), normal(1, 5, seed=1)
    one, each = (
        attribute(model, x, baselines=b, target=0, batch_rows=16)
        for b in (baseline, baseline.expand(4, 5))
    )
    assert torch.equal(one.attributions, each.attributions)
    assert torch.equal(one.gap, each.gap)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inputs": normal(0, 3)}, DataError),
        ({"inputs": normal(4, 3).half()}, SpecError),
        ({"inputs": normal(4, 3).bfloat16()}, SpecError),
        ({"inputs": normal(4, 3).long()}, SpecError),
        ({"inputs": normal(4, 3).bool()}, SpecError),
        ({"inputs": normal(4, 3).to(torch.complex64)}, SpecError),
        ({"baselines": normal(3)}, SpecError),
        ({"baselines": normal(2, 3)}, SpecError),
        ({"baselines": normal(4, 2)}, SpecError),
        ({"baselines": (normal(4, 3), normal(4, 3))}, SpecError),
        ({"forward_args": torch.ones(3)}, SpecError),
        ({"batch_rows": 0}, SpecError),
        ({"batch_rows": -8}, SpecError),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    change: dict[str, object], error: type[IntegrandError]
) -> None:
    arguments = {"inputs": normal(4, 3)} | change
    with pytest.raises(error) as refused:
        attribute(lambda v, *more: squares(v), **arguments)
    assert refused.value.expected
    assert refused.value.next_step


@pytest.mark.parametrize(
    "rule", ["left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre"]
)
def test_one_step_is_enough_for_a_linear_model(rule: str) -> None:
    found = attribute(
        lambda v: v @ v.new_tensor([2.0, -1]),
        tensor([3.0, 4]),
        accuracy=FixedSteps(rule=rule, steps=1),
    )
    torch.testing.assert_close(found.attributions, tensor([6.0, -4]))


def test_bad_rows_stay_alone() -> None:
    """NaN in the input, NaN from the model, inf from the model, an infinite gradient; good rows
    keep their bits.
    """

    def forward(v: Tensor) -> Tensor:
        return v[:, 0].log() + 1 / v[:, 1] + v[:, 2].square()

    good = tensor([1.0, 2, 3], [4, 5, 6], [2, 2, 2])
    bad = tensor([math.nan, 1, 1], [-1, 1, 1], [0, 1, 1], [1, 0, 1], [math.inf, 1, 1])
    mixed = torch.cat([bad[:2], good[:1], bad[2:4], good[1:], bad[4:]])
    baseline = tensor([1.0, 1, 1])
    alone = attribute(forward, good, baselines=baseline, batch_rows=16)
    found = attribute(forward, mixed, baselines=baseline, batch_rows=16)
    places = [2, 5, 6]
    assert torch.equal(found.attributions[places], alone.attributions)
    assert torch.equal(found.error_estimate[places], alone.error_estimate)
    assert [found.status[i] for i in (0, 1, 3, 4, 7)] == [
        "bad_input",
        *["nonfinite"] * 3,
        "bad_input",
    ]
    assert found.attributions[[0, 1, 3, 4, 7]].isnan().all()
    assert all(found.reason[i] for i in (0, 1, 3, 4, 7))


def test_two_inputs_of_which_one_is_not_used() -> None:
    with pytest.warns(UserWarning, match=r"inputs \[0\]"):
        found = attribute(lambda a, b: squares(b), (normal(3, 2), normal(3, 4, seed=1)))
    assert not found.attributions[0].any()
    torch.testing.assert_close(found.attributions[1], normal(3, 4, seed=1).square())


def test_an_input_used_by_some_rows_only() -> None:
    """A gate that is shut for a row is no unused input: no warning, and zeros for that row."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attribute(
            lambda a, b, gate: squares(a) + squares(b) * gate,
            (normal(2, 2), normal(2, 2)),
            forward_args=torch.tensor([0, 1]),
        )
    assert not found.attributions[1][0].any()
    assert found.attributions[1][1].all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
def test_arguments_of_any_dtype(dtype: torch.dtype) -> None:
    kept = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    x = normal(2, 3)
    found = attribute(lambda v, m: (v.square() * m).sum(1), x, forward_args=kept)
    torch.testing.assert_close(found.attributions, x.square() * kept)


def test_an_index_argument_picks_its_rows_feature() -> None:
    x, index = normal(4, 3), torch.tensor([2, 0, 1, 2])
    found = attribute(lambda v, i: v.gather(1, i[:, None]).squeeze(1) ** 2, x, forward_args=index)
    torch.testing.assert_close(found.attributions, x.square() * nn.functional.one_hot(index, 3))


@pytest.mark.parametrize("waves", [1, 2, 8])
def test_an_attribution_of_exactly_nothing_converges(waves: int) -> None:
    """Whole waves between x' and x: each feature's integral is 0, and what is left is rounding, not
    error.
    """
    found = attribute(lambda v: (2 * math.pi * waves * v).sin().sum(1), tensor([1.0, 1.0]))
    assert found.attributions.abs().max() < 1e-12
    assert set(found.status) <= CONVERGED


def test_a_feature_that_nets_nothing_beside_one_that_counts() -> None:
    found = attribute(
        lambda v: (v[:, 0] - 0.5) ** 2 + v[:, 1],
        tensor([1.0, 1.0]),
        accuracy=Adaptive(tolerance=1e-9),
    )
    torch.testing.assert_close(found.attributions, tensor([0.0, 1.0]), rtol=0, atol=1e-14)
    assert found.status == ("ok",)


@pytest.mark.parametrize(("x", "factor"), [(3e38, 1e-38), (1e-38, 1e38), (1.0, 1e-38), (1.0, 1e37)])
def test_the_ends_of_float32(x: float, factor: float) -> None:
    found = attribute(lambda v: (v * factor).sum(1), torch.tensor([[x, 0.0]]))
    assert found.attributions[0, 0].item() == pytest.approx(x * factor, rel=1e-5)
    assert found.status[0] in CONVERGED


def test_a_difference_that_float32_can_hardly_hold() -> None:
    """x' a few units in the last place from x: the floor is named, nothing is called not
    converged.
    """
    x = torch.tensor([[1 + 1e-6, 1 + 2e-6]])
    found = attribute(lambda v: v.sin().sum(1), x, baselines=1.0)
    assert set(found.status) <= CONVERGED
    torch.testing.assert_close(found.attributions, (x - 1) * math.cos(1), rtol=0.1, atol=0)


def test_a_scalar_model_may_keep_its_last_dimension() -> None:
    x = normal(5, 3)
    flat, column = (attribute(f, x) for f in (squares, lambda v: squares(v)[:, None]))
    assert torch.equal(flat.attributions, column.attributions)
    assert flat.f_input.shape == column.f_input.shape == (5,)


def test_fast_paths_without_gradients_agree_with_the_path() -> None:
    """Encoder layers take fused kernels under no_grad: f(x) comes from those, the path from the
    others.
    """
    torch.manual_seed(0)
    layer = (
        nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True).double().eval()
    )
    x = normal(3, 5, 8)
    found = attribute(
        lambda v: layer(v)[:, 0, 0],
        x,
        baselines=normal(1, 5, 8, seed=1),
        accuracy=Adaptive(tolerance=1e-6),
    )
    assert set(found.status) == {RowStatus.ok}
    assert (found.gap.abs() < 1e-7).all()


def test_dtypes_of_inputs_come_back() -> None:
    for dtype in (torch.float32, F64):
        x = normal(2, 3).to(dtype)
        found = attribute(squares, x)
        assert found.attributions.dtype == dtype
        assert found.gap.dtype == F64
