"""What targets make of outputs, held against loops over numbers, and seen by torch.fx."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.targets import IndexTarget, RegionTarget
from integrand.workers.closed_form.recognition import recognise
from integrand.workers.models.outputs import plain_model
from integrand.workers.models.targets.table import with_view
from integrand.workers.rewriting.hoisting import hoist
from integrand.workers.rewriting.trace import Trace

SIZES = (3, 4, 2)


def outputs(rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, *SIZES, generator=generator, dtype=torch.float64)


@st.composite
def regions(draw: st.DrawFn) -> RegionTarget:
    depth = draw(st.integers(0, len(SIZES) - 1))
    index = tuple(draw(st.integers(0, size - 1)) for size in SIZES[:depth])
    ranges = []
    for size in SIZES[depth:]:
        first = draw(st.integers(0, size - 1))
        ranges.append((first, draw(st.integers(first + 1, size))))
    return RegionTarget(
        index=index, ranges=tuple(ranges), reduce=draw(st.sampled_from(["sum", "mean"]))
    )


@given(regions())
def test_slices_are_what_a_loop_adds_up(target: RegionTarget) -> None:
    out = outputs()
    spans = [range(i, i + 1) for i in target.leading] + [range(*one) for one in target.ranges]
    for row in range(2):
        values = [out[(row, *place)].item() for place in product(*spans)]
        expected = sum(values) / (len(values) if target.reduce == "mean" else 1)
        found = with_view(nn.Identity(), target)(out)[row].item()
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_masks_weigh_each_row_by_itself(reduce: Any) -> None:
    out = outputs()
    weights = torch.rand(2, 4, 2, dtype=torch.float64)
    target = RegionTarget(index=1, mask="m", reduce=reduce, transform="softmax", axis=0)
    found = with_view(nn.Identity(), target)(out, weights)
    for row in range(2):
        total = weight = 0.0
        for y, x in product(range(4), range(2)):
            odds = out[row, :, y, x].exp()
            total += weights[row, y, x].item() * (odds[1] / odds.sum()).item()
            weight += weights[row, y, x].item()
        expected = total / weight if reduce == "mean" else total
        assert found[row].item() == pytest.approx(expected, rel=1e-12)


def test_a_softmax_over_any_axis() -> None:
    out = outputs()
    for axis in range(3):
        target = IndexTarget(index=(0, 0, 0), transform="softmax", axis=axis)
        assert torch.equal(with_view(nn.Identity(), target)(out), out.softmax(axis + 1))
    with pytest.raises(SpecError, match="axis"):
        with_view(nn.Identity(), target.model_copy(update={"axis": 3}))(out)


def test_a_model_without_a_view_stays_itself() -> None:
    model = nn.Identity()
    assert with_view(model, IndexTarget(index=(0, 0))) is model
    assert with_view(model, IndexTarget(index=0, transform="softmax")) is model
    assert plain_model(with_view(model, RegionTarget(ranges=((0, 1),)))) is model


@pytest.mark.parametrize("mask", [None, "m"])
def test_a_trace_goes_through(mask: str | None) -> None:
    """Otherwise no saving would be found in a model whose region is explained."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    target = RegionTarget(mask=mask, ranges=() if mask else ((0, 2),))
    model = with_view(plain, target)
    assert isinstance(model, nn.Module)
    weights = [torch.rand(4, 3)] if mask else []
    trace = Trace(model, [torch.randn(4, 5)], weights)
    assert {"model.0", "model.2"} <= {str(node.target) for node in trace.graph.nodes}
    assert isinstance(recognise(model), str)


def test_an_affine_prefix_is_hoisted_in_front_of_a_region() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 5, bias=False), nn.Tanh(), nn.Conv2d(2, 3, 1)).eval()
    target = RegionTarget(index=1, ranges=((0, 3), (1, 4)), transform="softmax", axis=0)
    model = with_view(plain, target)
    assert isinstance(model, nn.Module)
    plain.double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    hoisted = hoist(model, [images])
    assert hoisted is not None
    hidden = hoisted.prefix(images)
    assert [h.shape[1:] for h in hidden] == [(2, 4, 4)]
    expected = plain(images).softmax(1)[:, 1, 0:3, 1:4].sum((1, 2))
    torch.testing.assert_close(hoisted.tail(*hidden), expected, rtol=1e-12, atol=0)
