"""Eval batch norm folded into the convolution or linear layer before it, where nothing else sees
what lies between.

Which layer feeds which batch norm is recorded from one real forward pass, at the level of torch
functions, so a model that no tracer can follow is folded too. Names of pairs, not modules, are what
a plan can freeze.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.overrides import TorchFunctionMode

from integrand.workers.models.hooks import has_hooks
from integrand.workers.models.outputs import on_copies

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_Layer = nn.Linear | _ConvNd
_LAYER_CALLS = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
_VALUE_READS = (
    *(
        getattr(Tensor, name)
        for name in (
            "item",
            "tolist",
            "numpy",
            "__array__",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
            "__complex__",
            "__contains__",
            "is_nonzero",
            "equal",
            "allclose",
        )
    ),
    torch.is_nonzero,
    torch.equal,
    torch.allclose,
)


@dataclass(frozen=True)
class Pair:
    """Names, within one model, of a layer and of the batch norm that alone reads its output."""

    layer: str
    norm: str


def foldable_pairs(
    module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor] = ()
) -> tuple[Pair, ...]:
    """Pairs that can be folded, in the order of their calls in a forward pass over the given rows.

    None in a model whose Python reads tensor values: on other rows it may take another way through
    its layers. What the pass cannot show (modules kept outside the registry, forwards of many
    shapes) is left to a comparison of results.
    """
    if not any(map(_is_norm, module.modules())):
        return ()
    with torch.no_grad(), _Recorder() as tape:
        on_copies(module, *inputs, *forward_args)
    if tape.reads_values:
        return ()
    uses = Counter(id(t) for call in tape.calls for t in call.reads)
    layers = {id(m.weight): name for name, m in module.named_modules() if _is_layer(m)}
    norms = {id(m.running_mean): name for name, m in module.named_modules() if _is_norm(m)}
    made = {id(call.out): call for call in tape.calls if call.function in _LAYER_CALLS}
    found = []
    for call in tape.calls:
        before = made.get(id(call.reads[0])) if call.function is F.batch_norm else None
        pair = before and _pair(layers, norms, before, call)
        if (
            pair
            and _fits(module, pair, call.reads[0])
            and all(uses[id(t)] == 1 for t in _read(module, pair, call))
        ):
            found.append(pair)
    return tuple(found)


def fold(module: nn.Module, pairs: Sequence[Pair]) -> nn.Module:
    """A copy of an eval `module` whose pairs are folded: the layer carries both, the batch norm is
    the identity.

    Products are formed in float64 and rounded once to the layer's dtype. The module itself is not
    touched.
    """
    folded = copy.deepcopy(module)
    for pair in pairs:
        layer = cast(_Layer, folded.get_submodule(pair.layer))
        norm = cast(_BatchNorm, folded.get_submodule(pair.norm))
        weight, bias = _fused(layer, norm)
        layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
        _replace(folded, norm, nn.Identity().eval())
    return folded


def _fused(layer: _Layer, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = _double(layer.weight), _double_or_none(layer.bias)
    mean, var = _double(norm.running_mean), _double(norm.running_var)
    gain, shift = _double_or_none(norm.weight), _double_or_none(norm.bias)
    if isinstance(layer, nn.Linear):  # whose fusion takes no layer without them
        gain = torch.ones_like(mean) if gain is None else gain
        shift = torch.zeros_like(mean) if shift is None else shift
        return fuse_linear_bn_weights(weight, bias, mean, var, norm.eps, gain, shift)
    transposed = isinstance(layer, _TRANSPOSED)
    return fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gain, shift, transposed)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _double_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _double(tensor)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under every name, since a model may register one module twice."""
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


# --- what a forward pass shows -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Call:
    function: Callable[..., object]
    reads: tuple[Tensor, ...]
    out: object


class _Recorder(TorchFunctionMode):
    """Every torch function that takes tensors and returns some. It keeps them all alive, so that
    ids stay unique.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.reads_values = False

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = function(*args, **(kwargs or {}))
        self.reads_values |= function in _VALUE_READS
        if any(True for _ in _tensors(out)):  # x.dim() and the like say nothing of values
            self.calls.append(_Call(function, tuple(_tensors((args, kwargs or {}))), out))
        return out


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _pair(layers: dict[int, str], norms: dict[int, str], layer: _Call, norm: _Call) -> Pair | None:
    """The modules that own the weight of one call and the running mean of the other; a computed
    weight has no owner.
    """
    owners = [layers[id(t)] for t in layer.reads[1:] if id(t) in layers]
    readers = [norms[id(t)] for t in norm.reads[1:] if id(t) in norms]
    if not owners or not readers:
        return None
    return Pair(owners[0], readers[0])


def _fits(module: nn.Module, pair: Pair, between: Tensor) -> bool:
    """Whether channels are dim 1 for both. BatchNorm1d takes [rows, length, features] of a Linear
    by its length.
    """
    layer = module.get_submodule(pair.layer)
    return between.ndim == (2 if isinstance(layer, nn.Linear) else layer.weight.ndim)


def _read(module: nn.Module, pair: Pair, norm: _Call) -> Iterator[Tensor]:
    """Tensors that fold changes the meaning of: nothing else may read them."""
    yield norm.reads[0]
    for owner in (module.get_submodule(pair.layer), module.get_submodule(pair.norm)):
        yield from (
            t
            for name, t in (*owner.named_parameters(), *owner.named_buffers())
            if name != "num_batches_tracked"
        )


def _is_layer(module: nn.Module) -> bool:
    # torch's fusion does not know these
    grouped = isinstance(module, _TRANSPOSED) and module.groups > 1
    return isinstance(module, _LAYERS) and not grouped and not has_hooks(module)


def _is_norm(module: nn.Module) -> bool:
    """Subclasses may do more in their forward (an activation, say), so only torch's own counts."""
    return (
        type(module) in _NORMS
        and not module.training
        and module.running_mean is not None
        and not has_hooks(module)
    )
