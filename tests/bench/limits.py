"""What the machine allows: the fastest way to take the gradients that a contender took, and nothing
else.

Everything that an engine may rightly do is done here outside the clock: rows and points resident,
batch norm folded, convolutions in channels-last, a first affine layer applied once per row, the
best batch size of a sweep. A contender's ρ is this time over its own, so that a clever engine
cannot pass 1 by comparison with a clumsy limit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from zoo import Case, buckets

SECONDS = 0.05
"""A batch size is timed for so long, or for one batch."""
LARGEST_POINTS, LARGEST_ELEMENTS = 1024, 1 << 21
"""Batches in the sweep: powers of two, up to so many points and input elements."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A way to the same gradients: `case.model` differentiated at `case.inputs`, after `once` in
    seconds per row.
    """

    case: Case
    once: float = 0.0


@dataclass(frozen=True, eq=False)
class Limit:
    """Prepared variants of every bucket of a case; measuring it is a contestant's turn in each
    round.
    """

    variants: tuple[tuple[Tensor, tuple[Variant, ...]], ...]
    repeats: int

    def costs(self) -> list[float]:
        """Seconds of the cheapest evaluation of all outputs, by bucket: one forward, a backward for
        each output.
        """
        return [min(best_cost(v) for v in variants) for _, variants in self.variants]

    def seconds(self, costs: list[float], evaluations: Tensor) -> float:
        """What evaluations `[rows × outputs]` cost at least."""
        per_row = evaluations.reshape(-1, self.repeats).double().mean(1)
        return sum(
            cost * float(per_row[places].sum())
            for cost, (places, _) in zip(costs, self.variants, strict=True)
        )


def prepare(case: Case) -> Limit:
    return Limit(
        tuple((places, tuple(variants(part))) for places, part in buckets(case)), case.repeats
    )


def variants(case: Case) -> Iterator[Variant]:
    """The model as it is; folded and channels-last; without its first affine layer."""
    yield Variant(case)
    if any(isinstance(module, nn.Conv2d) for module in case.model.modules()):
        folded = fold(case.model).to(memory_format=torch.channels_last)
        inputs = case.inputs.contiguous(memory_format=torch.channels_last)
        _require_equal(folded(inputs[:1]), case.model(case.inputs[:1]))
        yield Variant(replace(case, model=folded, inputs=inputs))
    if isinstance(case.model, nn.Sequential) and isinstance(case.model[0], nn.Linear):
        # The first layer's own cost, twice a row, is below the clock's noise and left out, in the
        # limit's favour.
        yield Variant(replace(case, model=case.model[1:], inputs=case.model[0](case.inputs)))


def best_cost(variant: Variant) -> float:
    """Seconds per point, forward and backward, at the best batch size of a sweep."""
    case, points = variant.case, 1
    largest = min(LARGEST_POINTS, max(1, LARGEST_ELEMENTS // case.inputs[0].numel()))
    costs = []
    while points <= largest:
        costs.append(_cost(case, points))
        points *= 2
        if len(costs) > 2 and costs[-1] > 1.5 * min(costs):
            break
    return min(costs)


def _cost(case: Case, points: int) -> float:
    rows = torch.arange(points) % case.rows
    part, outputs = case.take(rows), case.outputs or (None,)
    at = part.inputs.detach().requires_grad_()
    turns, started = 0, time.perf_counter()
    while turns == 0 or time.perf_counter() - started < SECONDS:
        out = part.model(at, *part.forward_args)
        for output in outputs:
            target = part.target if output is None else output
            value = out.reshape(points) if target is None else out[torch.arange(points), target]
            torch.autograd.grad(value.sum(), at, retain_graph=output is not None)
        turns += 1
    return (time.perf_counter() - started) / turns / points


class _Tracer(fx.Tracer):
    """Keeps subclasses of the layers whole: EfficientNet has convolutions of its own that pad."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.Linear) or super().is_leaf_module(module, name)


def fold(model: nn.Module) -> fx.GraphModule:
    """The model with every batch norm that follows a convolution or linear layer folded into it."""
    root = copy.deepcopy(model)
    traced = fx.GraphModule(root, _Tracer().trace(root))
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if (
            not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            or node.args[0].op != "call_module"
        ):
            continue
        before = modules[node.args[0].target]
        if isinstance(before, nn.Conv2d | nn.Linear) and len(node.args[0].users) == 1:
            fuse = fuse_conv_bn_eval if isinstance(before, nn.Conv2d) else fuse_linear_bn_eval
            traced.set_submodule(node.args[0].target, fuse(before, norm))
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced.eval().requires_grad_(False)


def _require_equal(found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise AssertionError("the folded model is another function")
