"""What is affine in a model's inputs: each node of its trace is constant, affine, or neither.

The tables below say it of calls by name and of modules by type; whatever they do not know is
neither. To add a call is to add its name to the line of what may be affine among its arguments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import fx, nn

from integrand.workers.models.hooks import has_hooks
from integrand.workers.rewriting.trace import Seen, TensorType, Trace


class Label(Enum):
    constant = "the same for every α"
    read = "a shape, dtype or device of an affine tensor: no tensor itself"
    affine = "affine in the inputs, rows first"
    other = "neither"


@dataclass(frozen=True, eq=False)
class Call:
    """A node that reads affine tensors.

    affine  those among its arguments, as often as they occur
    seen    what nodes gave for two rows
    """

    node: fx.Node
    affine: Sequence[fx.Node]
    seen: Seen

    @property
    def first(self) -> object:
        return self.node.args[0] if self.node.args else self.node.kwargs.get("input")


Condition = Callable[[Call], bool]


def always(call: Call) -> bool:
    return True


def aligned(call: Call) -> bool:
    """Whether broadcasting leaves rows in front: no operand gets dimensions before its own."""
    types = [call.seen[n] for n in (call.node, *call.affine)]
    ranks = {len(t.shape) for t in types if isinstance(t, TensorType)}
    return all(isinstance(t, TensorType) for t in types) and len(ranks) == 1


def unrounded(call: Call) -> bool:
    return call.node.kwargs.get("rounding_mode") is None and aligned(call)


def same_type(call: Call) -> bool:
    return call.seen[call.node] == call.seen[call.affine[0]]


@dataclass(frozen=True)
class Idle:
    """Where a function does not train: the place and the default of that argument."""

    place: int
    default: bool

    def __call__(self, call: Call) -> bool:
        given = call.node.kwargs.get("training", self.default)
        args = call.node.args
        return not (args[self.place] if len(args) > self.place else given)


class Operands(Enum):
    any = "any of its arguments"
    one = "one of its arguments"
    first = "its first argument alone"


@dataclass(frozen=True)
class Affine:
    """A call is affine where `operands` and nothing else are, under a condition."""

    operands: Operands
    condition: Condition = always

    def holds(self, call: Call) -> bool:
        return self._fits(call) and self.condition(call)

    def _fits(self, call: Call) -> bool:
        if self.operands is Operands.any:
            return True
        if len(call.affine) != 1:
            return False
        return self.operands is Operands.one or call.first is call.affine[0]


def _each(affine: Affine, *names: str) -> dict[str, Affine]:
    """One entry for every word."""
    return dict.fromkeys(" ".join(names).split(), affine)


CALLS: dict[str, Affine] = {
    **_each(Affine(Operands.any), "cat concat concatenate stack"),
    **_each(Affine(Operands.any, aligned), "add sub subtract"),
    **_each(Affine(Operands.one, aligned), "mul multiply matmul mm bmm"),
    **_each(Affine(Operands.first, unrounded), "truediv div divide true_divide"),
    **_each(
        Affine(Operands.first, aligned), "expand expand_as broadcast_to repeat tile masked_fill"
    ),
    **_each(Affine(Operands.first, same_type), "to float double type type_as"),
    **_each(Affine(Operands.first, Idle(5, default=False)), "batch_norm"),
    **_each(
        Affine(Operands.first, Idle(2, default=True)),
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
    ),
    **_each(
        Affine(Operands.first),
        "neg negative linear",
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        "avg_pool1d avg_pool2d avg_pool3d",
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        "interpolate upsample pad pixel_shuffle pixel_unshuffle channel_shuffle fold unfold",
        "sum mean cumsum diff",
        "flatten unflatten reshape view view_as reshape_as ravel",
        "permute transpose swapaxes swapdims movedim moveaxis t",
        "squeeze unsqueeze repeat_interleave contiguous clone flip roll",
        "getitem narrow select index_select gather chunk split tensor_split unbind",
    ),
}
"""By the name of a torch function, of a tensor's method, or of Python's operator."""


def _with_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _plain(module: nn.Module) -> bool:
    return True


def _layers(*names: str) -> list[type[nn.Module]]:
    return [getattr(nn, name) for name in " ".join(names).split()]


MODULES: dict[type[nn.Module], Callable[[nn.Module], bool]] = {
    **dict.fromkeys(_layers("BatchNorm1d BatchNorm2d BatchNorm3d"), _with_statistics),
    **dict.fromkeys(
        _layers(
            "Linear Identity Flatten Unflatten",
            "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
            "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
            "AvgPool1d AvgPool2d AvgPool3d",
            "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d",
            "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
            "PixelShuffle PixelUnshuffle ChannelShuffle Fold Unfold",
            "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d",
            "ReflectionPad1d ReflectionPad2d ReflectionPad3d",
            "ReplicationPad1d ReplicationPad2d ReplicationPad3d",
            "CircularPad1d CircularPad2d CircularPad3d",
        ),
        _plain,
    ),
}
"""Modules in eval mode, and which of them."""


def labels(trace: Trace) -> dict[fx.Node, Label] | None:
    """A label for each node; None where the graph changes tensors in place or ends in something
    else than one tensor.
    """
    if not isinstance(trace.output, fx.Node) or trace.writes():
        return None
    found: dict[fx.Node, Label] = {}
    for node in trace.graph.nodes:
        found[node] = Label.affine if node in trace.inputs else _label(trace, node, found)
    return found


def _label(trace: Trace, node: fx.Node, before: dict[fx.Node, Label]) -> Label:
    read = {before[n] for n in node.all_input_nodes}
    if Label.other in read:
        return Label.other
    if Label.affine not in read:
        return Label.constant
    if not trace.gives_tensors(node):
        return Label.read
    affine = [n for n in _arguments(node) if before[n] is Label.affine]
    holds = _is_affine(trace, Call(node, affine, trace.two)) and trace.rows_first(node)
    return Label.affine if holds else Label.other


def _is_affine(trace: Trace, call: Call) -> bool:
    if call.node.op == "output":
        return True
    if call.node.op == "call_module":
        return _is_affine_module(trace.module.get_submodule(str(call.node.target)))
    known = CALLS.get(_name(call.node))
    return known is not None and known.holds(call)


def _is_affine_module(module: nn.Module) -> bool:
    known = MODULES.get(type(module))
    return known is not None and known(module) and not module.training and not has_hooks(module)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments, as often as they occur."""
    found: list[fx.Node] = []

    def keep(argument: fx.Node) -> fx.Node:
        found.append(argument)
        return argument

    fx.node.map_arg((node.args, node.kwargs), keep)
    return found


def _name(node: fx.Node) -> str:
    """The table's name of a call; empty for a function that is not torch's or Python's own."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if node.target is getattr:
        return "t" if node.args[1] in ("T", "mT") else ""
    name = getattr(node.target, "__name__", "")
    known = any(getattr(place, name, None) is node.target for place in (torch, F, operator))
    return name if known else ""
