"""One batch size, one set of bits per row: whatever rows come along, in whatever order, in however
many calls.

Step batches are multiples of 16, as planned ones are: kernels treat the last rows of others
differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.specs.methods import (
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    MethodPart,
    Saliency,
    SmoothGrad,
)
from integrand.workers.methods.attribution import Attribution, attribute

pytestmark = pytest.mark.needs_strict_kernels
COUNT = 20
BAD = {3: float("nan"), 11: float("inf")}
"""Rows that are no input, among the good ones."""
ACCURACIES = {
    "adaptive": Adaptive(tolerance=1e-3, max_evaluations=63),
    "fixed": FixedSteps(rule="trapezoid", steps=10),
}
drawn = settings(max_examples=5, deadline=None, derandomize=True)


class Logarithm(nn.Module):
    """NaN for rows whose first feature is below −1.5, which the path reaches half-way or never."""

    def forward(self, v: Tensor) -> Tensor:
        return v + (v[:, :1] + 1.5).log()


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.GRU(4, 9, batch_first=True), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x)[0][:, -1])


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A model of three outputs, and the shape of its rows. Widths are odd on purpose."""
    torch.manual_seed(0)
    if name == "wide":
        return nn.Sequential(nn.Linear(700, 3), nn.Tanh()), (700,)
    if name == "convolutions":
        return nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(5, 7, 2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(28, 3),
        ), (1, 8, 8)
    if name == "transformer":
        layer = nn.TransformerEncoderLayer(12, 3, 20, activation="gelu", batch_first=True)
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(60, 3), nn.Softmax(1)), (5, 12)
    if name == "recurrent":
        return Last(), (5, 4)
    if name == "relu":  # deep enough to have no closed form
        return nn.Sequential(
            nn.Linear(13, 37),
            nn.ReLU(),
            nn.Linear(37, 17),
            nn.ReLU(),
            nn.Linear(17, 11),
            nn.ReLU(),
            nn.Linear(11, 3),
        ), (13,)
    kind = nn.GELU
    front = [Logarithm()] if name == "logarithm" else []
    return nn.Sequential(
        *front, nn.Linear(13, 37), kind(), nn.Linear(37, 17), kind(), nn.Linear(17, 3)
    ), (13,)


MODELS = ("gelu", "relu", "logarithm", "wide", "convolutions", "transformer", "recurrent")


METHODS: dict[str, MethodPart] = {
    "integrated": IntegratedGradients(),
    "iid": ExpectedGradients(sampling="iid"),
    "stratified": ExpectedGradients(sampling="stratified"),
    "smoothgrad": SmoothGrad(sigma=0.3, times_input=True),
    "saliency": Saliency(),
    "input x gradient": InputXGradient(),
}


@dataclass(frozen=True)
class Setting:
    """All that bits may depend on, besides the row. Where it is of another method, or has draws,
    each row has three baselines.
    """

    model: str
    dtype: torch.dtype
    accuracy: str
    batch_rows: int
    method: str = "integrated"
    draws: int = 1

    def attribute(self, rows: list[int]) -> Attribution:
        model, x, baseline, targets = _material(self.model, self.dtype)
        scales = torch.arange(1, self.draws + 1, dtype=self.dtype)
        several = torch.stack([baseline * scale for scale in scales], 1)
        method = METHODS[self.method]
        return attribute(
            model,
            x[rows],
            baselines=several[rows].flatten(0, 1),
            target=targets[rows],
            batch_rows=self.batch_rows,
            accuracy=ACCURACIES[self.accuracy] if method.takes else None,
            method=method,
            draws=self.draws,
        )


@cache
def _material(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The model, and rows, of which number 7 repeats number 2 and number 5 is its own baseline."""
    model, shape = build(name)
    generator = torch.Generator().manual_seed(1)
    x, baseline = (torch.randn(COUNT, *shape, generator=generator, dtype=dtype) for _ in range(2))
    x[7], baseline[7], x[5] = x[2], baseline[2], baseline[5]
    targets = torch.arange(COUNT) % 3
    targets[7] = targets[2]
    for row, value in BAD.items():
        x[row].view(-1)[1] = value
    return model.to(dtype).eval(), x, baseline, targets


@cache
def _everything(setting: Setting) -> Attribution:
    return setting.attribute(list(range(COUNT)))


def assert_same(found: Attribution, rows: list[int], setting: Setting) -> None:
    """`found` holds, bit for bit, what all rows together gave for `rows`."""
    whole = _everything(setting)
    for name in ("attributions", "f_input", "f_baseline", "gap", "error_estimate", "evaluations"):
        one, other = getattr(found, name), getattr(whole, name)[rows]
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), name
        assert torch.equal(one.isnan(), other.isnan()), name
    assert found.status == tuple(whole.status[i] for i in rows)
    assert found.reason == tuple(whole.reason[i] for i in rows)


settings_of_all = pytest.mark.parametrize(
    "setting",
    [
        Setting(m, d, a, 16)
        for m in MODELS
        for d in (torch.float32, torch.float64)
        for a in ACCURACIES
    ]
    + [
        Setting(m, torch.float32, "fixed", rows)
        for m in ("relu", "transformer")
        for rows in (1, 64)
    ]
    + [
        Setting(model, torch.float32, "adaptive", 16, method, 3)
        for model in ("gelu", "convolutions", "logarithm")
        for method in METHODS
    ],
    ids=lambda s: f"{s.model}-{str(s.dtype)[6:]}-{s.accuracy}-{s.batch_rows}-{s.method}-{s.draws}",
)


@settings_of_all
@drawn
@given(chosen=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=2 * COUNT))
def test_any_rows_in_any_order_any_number_of_times(setting: Setting, chosen: list[int]) -> None:
    assert_same(setting.attribute(chosen), chosen, setting)


@settings_of_all
@drawn
@given(order=st.permutations(range(COUNT)), cuts=st.sets(st.integers(1, COUNT - 1), max_size=6))
def test_any_split_into_calls(setting: Setting, order: list[int], cuts: set[int]) -> None:
    for start, stop in pairwise([0, *sorted(cuts), COUNT]):
        assert_same(setting.attribute(order[start:stop]), order[start:stop], setting)


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_are_what_this_is_about(name: str) -> None:
    """Bad rows, good rows, a row without a path and a repeated row are all there; rows leave at
    different times.
    """
    whole = _everything(Setting(name, torch.float32, "adaptive", 16))
    assert {i for i, s in enumerate(whole.status) if s == "bad_input"} == set(BAD)
    assert ("nonfinite" in whole.status) == (name == "logarithm")
    assert whole.evaluations[5] == 0
    assert torch.equal(whole.attributions[2].nan_to_num(), whole.attributions[7].nan_to_num())
    assert len(set(whole.evaluations.tolist())) >= (
        3 if name in ("gelu", "transformer", "recurrent") else 2
    )
