"""What a target makes of a model's output before one number is taken: a softmax over any axis,
the sum or the mean of a region.

Shapes are judged in functions that torch.fx takes as they are: a judgement in the module would end
a trace, and with it every saving.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.targets import Place, RegionTarget, TensorTarget
from integrand.workers.models.outputs import transform_module


class OverAxis(nn.Module):
    """A transform over one axis of the output, counted from 0 after its rows."""

    def __init__(self, target: TensorTarget) -> None:
        super().__init__()
        self.axis = target.axis
        last = -1 if target.axis is None else target.axis + 1
        self.transform = transform_module(target.transform, last)

    def forward(self, out: Tensor) -> Tensor:
        transformed: Tensor = self.transform(with_axis(out, self.axis))
        return transformed


class Region(nn.Module):
    """The sum or the mean `[rows]` of a region of the output, after the target's transform."""

    def __init__(self, target: RegionTarget) -> None:
        super().__init__()
        self.target = target
        self.transform = OverAxis(target)

    def forward(self, out: Tensor, *weights: Tensor) -> Tensor:
        target = self.target
        chosen = chosen_of(self.transform(out), target.leading, target.ranges)
        if not weights:
            flat = chosen.flatten(1)
            return flat.sum(1) if target.reduce == "sum" else flat.mean(1)
        own = fitting(weights[0], chosen, target.mask)
        total = (chosen * own).flatten(1).sum(1)
        return total if target.reduce == "sum" else total / own.flatten(1).sum(1)


def over_axis(target: TensorTarget) -> nn.Module | None:
    """The target's transform over the axis that it names; None where it names none."""
    return None if target.axis is None else OverAxis(target).eval()


@fx.wrap
def with_axis(out: Tensor, axis: int | None) -> Tensor:
    """The output, once it is known to have this axis. Raises SpecError otherwise."""
    if axis is None or axis < out.ndim - 1:
        return out
    raise SpecError(
        "target.axis",
        expected=f"an axis of model outputs {list(out.shape)} after their rows, from 0",
        seen=str(axis),
    )


@fx.wrap
def chosen_of(out: Tensor, leading: Place, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """What the index, and the ranges if there are any, leave of an output `[rows, ...]`. Raises
    SpecError where they lie outside.
    """
    sizes = tuple(out.shape[1:])
    _check_index(leading, sizes)
    if ranges:
        _check_ranges(ranges, sizes[len(leading) :])
    places: list[int | slice] = [slice(None), *leading]
    places += [slice(first, last) for first, last in ranges]
    return out[tuple(places)]


@fx.wrap
def fitting(weights: Tensor, chosen: Tensor, mask: str | None) -> Tensor:
    """The weights, once they are known to have the shape of what is chosen. Raises SpecError
    otherwise.
    """
    if weights.shape[1:] == chosen.shape[1:]:
        return weights
    raise SpecError(
        f"target.mask {mask}",
        expected=f"the shape of the outputs behind target.index, {list(chosen.shape[1:])}",
        seen=f"{list(weights.shape[1:])}",
        next_step="give masks as large as the output, or another index",
    )


def _check_index(leading: Place, sizes: tuple[int, ...]) -> None:
    inside = all(i < size for i, size in zip(leading, sizes, strict=False))
    if inside and len(leading) < len(sizes):
        return
    raise SpecError(
        "target.index",
        expected=f"an index within the first axes of {list(sizes)}, the output after its rows",
        seen=f"{list(leading)}",
        next_step="leave at least one axis to the region; for one output use `index`",
    )


def _check_ranges(ranges: tuple[tuple[int, int], ...], sizes: tuple[int, ...]) -> None:
    inside = all(last <= size for (_, last), size in zip(ranges, sizes, strict=False))
    if inside and len(ranges) == len(sizes):
        return
    raise SpecError(
        "target.ranges",
        expected=f"[first, last) within each axis of {list(sizes)}, the output behind the index",
        seen=str([list(one) for one in ranges]),
        next_step="give one range for each axis, [0, size] for all of it",
    )
