"""What a model holds, to every bit and to a few digits: rounding is not seen by the latter,
training is.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from integrand.workers.models.state import read_state


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 3)).eval()
    made.factors = [np.arange(3), {"scale": torch.tensor([0.5])}]
    return made


def changed(by: float) -> nn.Module:
    """One layer's weights, all changed by about that much of themselves."""
    other = copy.deepcopy(model())
    with torch.no_grad():
        other[0].weight *= 1 + by * torch.randn_like(other[0].weight, dtype=torch.float32)
    return other


def test_the_same_model_is_the_same_and_names_are_told() -> None:
    one, other = read_state(model()), read_state(model())
    assert (one.exactly, one.roughly) == (other.exactly, other.roughly)
    assert {"0.weight", "1.running_mean", ".factors.0", ".factors.1.scale"} <= set(one.bits)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_rounding_moves_bits_but_no_digits(seed: int) -> None:
    torch.manual_seed(seed)
    other = read_state(changed(1e-8))
    assert other.exactly != read_state(model()).exactly or torch.equal(
        changed(0).state_dict()["0.weight"], changed(1e-8).state_dict()["0.weight"]
    )
    assert other.roughly == read_state(model()).roughly


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_training_moves_digits(seed: int) -> None:
    torch.manual_seed(seed)
    assert read_state(changed(1e-2)).roughly != read_state(model()).roughly


@pytest.mark.parametrize("change", ["buffer", "attribute", "tied", "zeros", "dtype"])
def test_each_part_counts(change: str) -> None:
    other = model()
    if change == "buffer":
        other[1].running_mean += 1
    elif change == "attribute":
        other.factors[1]["scale"] *= 2
    elif change == "tied":
        other[2].weight = nn.Parameter(other[2].weight.detach().flip(0))
    elif change == "zeros":
        nn.init.zeros_(other[0].bias)
    else:
        other[2].double()
    one, two = read_state(model()), read_state(other)
    assert one.exactly != two.exactly
    assert one.roughly != two.roughly


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.tensor(float("nan")),
        torch.tensor([1 + 2j]),
        torch.eye(3).to_sparse(),
        torch.tensor(3),
        torch.tensor([True]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=lambda t: f"{t.dtype} {t.layout}",
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_kind_have_a_digest(tensor: torch.Tensor) -> None:
    made = nn.Identity()
    made.kept = tensor
    assert read_state(made).exactly == read_state(made).exactly


def test_attributes_that_are_no_plain_tensors_are_no_obstacle() -> None:
    made = nn.Identity()
    made.register_buffer("turned", torch.tensor([1 + 2j, 3j]).conj())
    made.wide, made.big = np.ones(2, np.longdouble), np.arange(3, dtype=">f4")
    made.cycle = [1]
    made.cycle.append(made.cycle)
    made._hidden = torch.ones(2)
    names = set(read_state(made).bits)
    assert {"turned", ".big", "._hidden"} <= names
    made._hidden = torch.zeros(2)
    assert read_state(made).exactly != read_state(nn.Identity()).exactly
