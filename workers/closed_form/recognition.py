"""Networks of at most two hidden ReLU-like layers, read out of a torch module: what `integral.py`
can integrate.

Batch norm in eval mode, and Linear layers without an activation between them, fold into one affine
map.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from integrand.workers.models.hooks import has_hooks
from integrand.workers.models.outputs import Forward, on_copies

MOST_HIDDEN = 2
SLACK = 64
"""Rounding errors that a module's own forward may carry, in units of epsilon times the sum of its
terms' magnitudes.
"""


@dataclass(frozen=True, eq=False)
class Layer:
    """z = W h + b, then σ(z) = z where z > 0 and leak·z elsewhere. Float64 on the CPU.

    weight [units, inputs], bias [units], leak [units]: 0 for ReLU, 1 for the output layer, which
    has no activation
    """

    weight: Tensor
    bias: Tensor
    leak: Tensor

    def preactivation(self, h: Tensor) -> Tensor:
        return torch.addmm(self.bias, h, self.weight.T)

    def activation(self, z: Tensor) -> Tensor:
        return F.prelu(z, self.leak)

    @cached_property
    def columns(self) -> NDArray[np.float64]:
        """The weight with each column contiguous: [inputs, units]."""
        return self.weight.T.contiguous().numpy()


@dataclass(frozen=True, eq=False)
class ShallowNetwork:
    """A piecewise linear network: hidden layers (none, one or two) and a Linear output layer,
    frozen in float64.
    """

    hidden: tuple[Layer, ...]
    output: Layer

    @property
    def features(self) -> int:
        return (*self.hidden, self.output)[0].weight.shape[1]

    @property
    def outputs(self) -> int:
        return len(self.output.bias)

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """z of every layer at x [rows, features], the outputs last: [rows, units] float64 each."""
        found, h = [], x
        for layer in (*self.hidden, self.output):
            found.append(layer.preactivation(h))
            h = layer.activation(found[-1])
        return found

    def magnitude(self, x: Tensor) -> Tensor:
        """Sum of the magnitudes of all terms that make each output, [rows, outputs]: what rounding
        is relative to.
        """
        sizes = x.abs()
        for layer in (*self.hidden, self.output):
            sizes = torch.addmm(
                layer.bias.abs(), sizes, layer.weight.abs().T
            ) * layer.leak.abs().clamp(min=1)
        return sizes


def recognise(forward: Forward) -> ShallowNetwork | str:
    """The network that a module computes, or what keeps it from being one, in a few words.

    A straight chain of Linear, ReLU, LeakyReLU, PReLU, BatchNorm1d and Dropout in eval mode,
    Flatten, Identity and their functional forms, read by torch.fx from any module (parameters as
    they are now). Structure alone is read, so confirm with `agrees`.
    """
    try:
        return _network(_steps(_traced(forward)))
    except _Unfit as reason:
        return str(reason)


@torch.no_grad()
def agrees(network: ShallowNetwork, forward: Forward, x: Tensor) -> bool:
    """Whether the network's outputs at x [rows, ...] are those of `forward` up to rounding in the
    dtype of `forward`.

    Guards against what structure does not show, such as an input of another rank or an overridden
    forward.
    """
    rows, out = x.reshape(len(x), -1).double().cpu(), on_copies(forward, x)
    if rows.shape[1] != network.features or tuple(out.shape) not in _shapes(network, len(x)):
        return False
    error = (out.double().cpu().reshape(len(x), -1) - network.preactivations(rows)[-1]).abs()
    return bool((error <= SLACK * torch.finfo(out.dtype).eps * network.magnitude(rows)).all())


def _shapes(network: ShallowNetwork, rows: int) -> set[tuple[int, ...]]:
    return {(rows, network.outputs)} | ({(rows,)} if network.outputs == 1 else set())


# --- from a module to its chain of steps -------------------------------------------------------


class _Unfit(Exception):
    """Why a module is no shallow network; never leaves this module."""


class _Affine(NamedTuple):
    """z = weight h + bias; a weight of one dimension is a diagonal."""

    weight: Tensor
    bias: Tensor


class _Leak(NamedTuple):
    """An activation: its slope below 0, one for all units or one each."""

    slope: Tensor


_Step = _Affine | _Leak | None


def _traced(forward: Forward) -> fx.GraphModule:
    if not isinstance(forward, nn.Module):
        raise _Unfit(
            f"a {type(forward).__name__} in place of a module, whose layers cannot be read"
        )
    if isinstance(forward, torch.jit.ScriptModule):
        raise _Unfit("a TorchScript program, whose layers cannot be read")
    for name, module in forward.named_modules():
        if has_hooks(module):
            raise _Unfit(f"a hook on `{name or type(module).__name__}`")
    try:
        # a bare layer is then a leaf, not its insides
        return fx.symbolic_trace(nn.Sequential(forward))
    except Exception as error:  # the module's own code runs on proxies and may raise anything
        raise _Unfit(f"a forward that torch.fx cannot trace ({type(error).__name__})") from error


def _steps(traced: fx.GraphModule) -> list[_Step]:
    """What each node of a straight chain does, in order."""
    chain = _chain(traced.graph)
    kept = [node for node in chain if node.op in ("call_module", "call_function", "call_method")]
    last = max(
        (i for i, node in enumerate(kept) if isinstance(_operation(traced, node), nn.Linear)),
        default=0,
    )
    return [
        _step(traced, node, " after the last layer" if i > last else "")
        for i, node in enumerate(kept)
    ]


def _chain(graph: fx.Graph) -> list[fx.Node]:
    """Nodes from input to output, each fed by the one before alone. Reads of a shape are not part
    of it.
    """
    nodes = [
        n
        for n in graph.nodes
        if not _reads_shape(n) and not (n.op == "placeholder" and not n.users)
    ]
    for before, node in zip([None, *nodes], nodes, strict=False):
        if node.op == "get_attr":
            raise _Unfit(f"`{str(node.target).removeprefix('0.')}` used outside of a layer")
        fed_by = [n for n in node.all_input_nodes if not _reads_shape(n)]
        if fed_by != ([] if before is None else [before]):
            raise _Unfit(f"a forward that is no straight chain of layers (at `{node.name}`)")
    return nodes


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and _reads_shape(node.args[0])
    )


def _operation(traced: fx.GraphModule, node: fx.Node) -> nn.Module | Callable[..., object] | str:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def _step(traced: fx.GraphModule, node: fx.Node, place: str) -> _Step:
    operation = _operation(traced, node)
    if isinstance(operation, nn.Module):
        for kind, read in _LAYERS.items():
            if (
                isinstance(operation, kind)
                and getattr(operation.forward, "__func__", None) is kind.forward
            ):
                return read(operation)
        raise _Unfit(type(operation).__name__ + place)
    name = (
        operation if isinstance(operation, str) else getattr(operation, "__name__", str(operation))
    )
    if name in _CALLS and (isinstance(operation, str) or operation in _FUNCTIONS):
        return _CALLS[name](_Call(node))
    raise _Unfit(name + place)


# --- what a layer or a call does ---------------------------------------------------------------


def _double(tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float64):
        raise _Unfit(f"weights in {str(tensor.dtype).removeprefix('torch.')}")
    return tensor.detach().double().cpu()


def _linear(layer: nn.Linear) -> _Affine:
    weight = _double(layer.weight)
    return _Affine(
        weight,
        (
            torch.zeros(len(weight), dtype=torch.float64)
            if layer.bias is None
            else _double(layer.bias)
        ),
    )


def _batch_norm(layer: nn.BatchNorm1d) -> _Affine:
    if layer.training:
        raise _Unfit("BatchNorm1d in train mode")
    if layer.running_mean is None or layer.running_var is None:
        raise _Unfit("BatchNorm1d without running statistics")
    gain = (_double(layer.running_var) + layer.eps).rsqrt() * (
        1 if layer.weight is None else _double(layer.weight)
    )
    shift = 0 if layer.bias is None else _double(layer.bias)
    return _Affine(gain, shift - _double(layer.running_mean) * gain)


def _dropout(layer: nn.Module) -> None:
    if layer.training:
        raise _Unfit("active dropout")


def _flatten(start: object, end: object) -> None:
    if (start, end) != (1, -1):
        raise _Unfit(f"flatten from dimension {start} to {end}")


def _leak(slope: float) -> _Leak:
    return _Leak(torch.tensor(float(slope), dtype=torch.float64))


_LAYERS: dict[type[nn.Module], Callable[..., _Step]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.ReLU: lambda layer: _leak(0),
    nn.LeakyReLU: lambda layer: _leak(layer.negative_slope),
    nn.PReLU: lambda layer: _Leak(_double(layer.weight)),
    nn.Dropout: _dropout,
    nn.AlphaDropout: _dropout,
    nn.Flatten: lambda layer: _flatten(layer.start_dim, layer.end_dim),
    nn.Identity: lambda layer: None,
}


@dataclass(frozen=True)
class _Call:
    """The arguments of a functional form after its tensor."""

    node: fx.Node

    def argument(self, place: int, name: str, default: object) -> object:
        given = self.node.args[place] if len(self.node.args) > place else default
        return self.node.kwargs.get(name, given)


def _call_leaky_relu(call: _Call) -> _Leak:
    slope = call.argument(1, "negative_slope", 0.01)
    if not isinstance(slope, float | int):
        raise _Unfit("a leaky_relu whose slope is computed")
    return _leak(slope)


def _call_dropout(call: _Call) -> None:
    if call.argument(2, "training", True) is not False:
        raise _Unfit("active dropout")


def _call_squeeze(call: _Call) -> None:
    if call.argument(1, "dim", None) not in (1, -1):
        raise _Unfit("squeeze of another dimension than the last")


def _call_view(call: _Call) -> None:
    """Rows must stay rows whatever their number is; widths that do not fit show when layers are put
    together.
    """
    sizes = call.node.args[1:]
    rows = (sizes[0] if isinstance(sizes[0], tuple | list) else sizes)[0] if sizes else None
    if rows != -1 and not (
        isinstance(rows, fx.Node) and rows.args[1:] == (0,) and _reads_shape(rows)
    ):
        raise _Unfit("a view that may mix rows")


_FUNCTIONS = {
    F.relu,
    torch.relu,
    torch.relu_,
    F.leaky_relu,
    F.dropout,
    torch.flatten,
    torch.squeeze,
    torch.reshape,
}
_CALLS: dict[str, Callable[[_Call], _Step]] = {
    "relu": lambda call: _leak(0),
    "relu_": lambda call: _leak(0),
    "leaky_relu": _call_leaky_relu,
    "dropout": _call_dropout,
    "flatten": lambda call: _flatten(
        call.argument(1, "start_dim", 0), call.argument(2, "end_dim", -1)
    ),
    "squeeze": _call_squeeze,
    "view": _call_view,
    "reshape": _call_view,
    "contiguous": lambda call: None,
}


# --- from steps to layers ----------------------------------------------------------------------


def _network(steps: list[_Step]) -> ShallowNetwork:
    """Fold what lies between two activations into one layer each."""
    layers: list[Layer] = []
    pending: list[_Affine] = []
    for step in steps:
        if isinstance(step, _Affine):
            pending.append(step)
        elif isinstance(step, _Leak):
            layers.append(_layer(pending, step.slope, layers))
            pending = []
    output = _layer(pending, torch.ones((), dtype=torch.float64), layers)
    if len(layers) > MOST_HIDDEN:
        raise _Unfit(f"{len(layers)} hidden layers, more than {MOST_HIDDEN}")
    return ShallowNetwork(tuple(layers), output)


def _layer(affine: list[_Affine], slope: Tensor, before: list[Layer]) -> Layer:
    """One layer from the affine maps in front of an activation; after a layer, none or diagonal
    ones will do.
    """
    if before:
        width = len(before[-1].bias)
        ones = torch.ones(width, dtype=torch.float64)
        zeros = torch.zeros(width, dtype=torch.float64)
        affine = [_Affine(ones, zeros), *affine]
    if not affine or (all(a.weight.ndim == 1 for a in affine) and not before):
        raise _Unfit("no Linear layer before the first activation")
    weight, bias = reduce(_compose, affine)
    if slope.ndim and len(slope) not in (1, len(bias)):
        raise _Unfit(f"{len(slope)} slopes for {len(bias)} units")
    return Layer(
        torch.diag(weight) if weight.ndim == 1 else weight.contiguous(),
        bias,
        slope.expand(len(bias)).clone(),
    )


def _compose(first: _Affine, second: _Affine) -> _Affine:
    """second ∘ first."""
    if len(first.bias) != second.weight.shape[-1]:
        raise _Unfit(
            f"a layer of width {len(first.bias)} before one of width {second.weight.shape[-1]}"
        )
    if second.weight.ndim == 1:
        gain = second.weight if first.weight.ndim == 1 else second.weight[:, None]
        return _Affine(gain * first.weight, second.weight * first.bias + second.bias)
    weight = (
        second.weight * first.weight if first.weight.ndim == 1 else second.weight @ first.weight
    )
    return _Affine(weight, second.weight @ first.bias + second.bias)
