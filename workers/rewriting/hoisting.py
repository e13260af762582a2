"""The affine prefix of a model taken out of the integral: h(x' + α·d) = h(x') + α·(h(x) − h(x'))
for any affine h.

The prefix h then runs once per row instead of once per node, and the attributions are d ⊙ Jᵀ Σ w
∂f/∂h(α) with the one Jacobian J of h. Its nodes are found in a torch.fx trace: each is constant in
α, affine, or neither, and whatever the table below does not know is neither. A trace may misread
Python, so its users compare results with the model's.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from integrand.workers.models.gradients import gradients_of
from integrand.workers.models.outputs import Forward
from integrand.workers.rewriting.folding import has_hooks

WORTH = 0.85
"""A hoisted row may cost at most this share of the plain one's FLOPs."""


@dataclass(frozen=True)
class Work:
    """What a row is taken to cost: its nodes, and vectors pulled back through the prefix."""

    nodes: int
    pulls: int


JUDGED_WORK = Work(nodes=7, pulls=8)
"""An adaptive row that is certified at 7 nodes: two integrals, four coefficients, and what judging
them costs.
"""


def fixed_work(nodes: int) -> Work:
    """A row of a plain rule: one sum."""
    return Work(nodes, pulls=1)


@dataclass(frozen=True, eq=False)
class Hoisted:
    """A model as tail(prefix(x)).

    prefix    (*inputs, *forward_args) → tuple of hidden tensors [rows, ...], affine in all inputs
              together
    tail      (*hidden, *forward_args) → the model's output
    frontier  names of the hidden tensors in the model's trace
    like      one row of zeros for each input, [1, ...]
    """

    prefix: Callable[..., tuple[Tensor, ...]]
    tail: Forward
    frontier: tuple[str, ...]
    like: tuple[Tensor, ...]

    def transpose(
        self, rows: int, forward_args: Sequence[Tensor] = ()
    ) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        """Jᵀ for that many rows, as a function to be called any number of times: cotangents like
        hidden → like inputs.

        Rows do not mix, so k vectors of one row are k rows, with `forward_args` repeated likewise.
        """
        with torch.enable_grad():
            points = [
                zero.expand(rows, *zero.shape[1:]).clone().requires_grad_() for zero in self.like
            ]
            hidden = self.prefix(*points, *forward_args)

        def pull(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(gradients_of(hidden, points, cotangents, keep_graph=True))

        return pull

    def pull(
        self, cotangents: Sequence[Tensor], forward_args: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Gradients with respect to the inputs, from those with respect to hidden: one `transpose`,
        used once.
        """
        return self.transpose(cotangents[0].shape[0], forward_args)(cotangents)


def hoist(
    module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor] = ()
) -> Hoisted | None:
    """Split an eval `module` at the end of its affine prefix; None where it cannot be traced or
    split.

    `inputs` and `forward_args` hold any number of valid rows; 2 and 3 are run, to tell what depends
    on their number.
    """
    if has_hooks(module):  # a trace leaves them out
        return None
    try:
        trace = _Trace(module, inputs, forward_args)
    except Exception:  # noqa: BLE001 - the model's own Python meets proxies here, and may raise anything
        return None
    labels = trace.labels()
    return (
        _Split(trace, labels).hoisted(tuple(torch.zeros_like(x[:1]) for x in inputs))
        if labels
        else None
    )


def worthwhile(
    module: nn.Module,
    hoisted: Hoisted,
    inputs: Sequence[Tensor],
    forward_args: Sequence[Tensor] = (),
    work: Work = JUDGED_WORK,
) -> bool:
    """Whether a row gets cheaper: a function of FLOPs and shapes alone, with hidden no larger than
    the inputs.

    Plain: a forward and a backward pass per node. Hoisted: those of the tail per node, the prefix
    at x and at x', and the pulls. At 7 judged nodes this asks for a prefix of at least half the
    model's FLOPs, at 50 plain ones for a seventh.
    """
    with torch.no_grad():
        hidden = hoisted.prefix(*inputs, *forward_args)
    if sum(h.numel() for h in hidden) > sum(x.numel() for x in inputs):
        return False
    plain = _flops(module, inputs, forward_args)
    tail = _flops(hoisted.tail, hidden, forward_args)
    prefix = (plain - tail) / 2
    return plain > 0 and work.nodes * tail + (2 + work.pulls) * prefix <= WORTH * work.nodes * plain


def _flops(forward: Forward, points: Sequence[Tensor], forward_args: Sequence[Tensor]) -> int:
    """FLOPs of one gradient, counted and not timed; none for a forward that only hands its argument
    on.
    """
    # loads a tree of modules that only a plan needs
    from torch.utils.flop_counter import (
        FlopCounterMode,
    )

    leaves = [p.detach().clone().requires_grad_() for p in points]
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        # its hooks fail on gradients to a module's own argument
        out = forward(*[p * 1 for p in leaves], *[a.clone() for a in forward_args])
        torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    return int(counter.get_total_flops())


# --- what is affine ----------------------------------------------------------------------------


class _Label(Enum):
    constant = "the same for every α"
    read = "a shape, dtype or device of an affine tensor: no tensor itself"
    affine = "affine in the inputs, rows first"
    other = "neither"


_ADDED = {"add", "sub", "subtract"}
_JOINED = {"cat", "concat", "concatenate", "stack"}
_MULTIPLIED = {"mul", "multiply", "matmul", "mm", "bmm"}
_CAST = {"to", "float", "double", "type", "type_as"}
_FIRST = {
    "truediv",
    "div",
    "divide",
    "true_divide",
    "neg",
    "negative",
    "linear",
    "batch_norm",
    "dropout",
    *(
        f"{name}{n}d"
        for name in ("conv", "conv_transpose", "avg_pool", "adaptive_avg_pool")
        for n in (1, 2, 3)
    ),
    "alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "interpolate",
    "upsample",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "fold",
    "unfold",
    "sum",
    "mean",
    "cumsum",
    "flatten",
    "unflatten",
    "reshape",
    "view",
    "view_as",
    "reshape_as",
    "ravel",
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "t",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "broadcast_to",
    "repeat",
    "repeat_interleave",
    "tile",
    "contiguous",
    "clone",
    "getitem",
    "narrow",
    "select",
    "index_select",
    "gather",
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "flip",
    "roll",
    "masked_fill",
    "diff",
    *_CAST,
}
_BROADCAST = {
    "truediv",
    "div",
    "divide",
    "true_divide",
    "expand",
    "expand_as",
    "broadcast_to",
    "repeat",
    "tile",
    "masked_fill",
}
_ACTIVE = {
    "batch_norm": 5,
    "dropout": 2,
    "dropout1d": 2,
    "dropout2d": 2,
    "dropout3d": 2,
    "alpha_dropout": 2,
    "feature_alpha_dropout": 2,
}
"""Functions that are affine only where they do not train, and the place of that argument."""
_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Fold,
    nn.Unfold,
    *(
        getattr(nn, f"{kind}Pad{n}d")
        for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
        for n in (1, 2, 3)
    ),
)


@dataclass(frozen=True)
class _Tensor:
    """What a node gave for one number of rows."""

    shape: torch.Size
    dtype: torch.dtype


class _Trace:
    """A module as a graph, with what every node gave for 2 and for 3 rows. Raises whatever the
    module raises.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor]
    ) -> None:
        self.graph = _Tracer(len(inputs) + len(forward_args)).trace(module)
        self.module = fx.GraphModule(module, self.graph)
        self.graph = self.module.graph
        self.placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.inputs = self.placeholders[: len(inputs)]
        self.output = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.two, self.three = (
            self._run([t[torch.arange(rows) % len(t)] for t in (*inputs, *forward_args)])
            for rows in (2, 3)
        )

    @torch.no_grad()
    def _run(self, arguments: Sequence[Tensor]) -> dict[fx.Node, object]:
        interpreter = _Interpreter(self.module)
        interpreter.run(*arguments)
        return interpreter.seen

    def labels(self) -> dict[fx.Node, _Label] | None:
        """A label for each node; None where the graph changes tensors in place or ends in something
        else than one tensor.
        """
        if not isinstance(self.output, fx.Node) or any(map(_in_place, self.graph.nodes)):
            return None
        labels: dict[fx.Node, _Label] = {}
        for node in self.graph.nodes:
            labels[node] = _Label.affine if node in self.inputs else self._label(node, labels)
        return labels

    def _label(self, node: fx.Node, labels: dict[fx.Node, _Label]) -> _Label:
        found = {labels[n] for n in node.all_input_nodes}
        if _Label.other in found:
            return _Label.other
        if _Label.affine not in found:
            return _Label.constant
        if not any(True for _ in _described(self.two[node])):
            return _Label.read
        affine = [n for n in _operands(node) if labels[n] is _Label.affine]
        return (
            _Label.affine
            if self._is_affine(node, affine) and self._rows_first(node)
            else _Label.other
        )

    def _is_affine(self, node: fx.Node, operands: list[fx.Node]) -> bool:
        if node.op == "output":
            return True
        if node.op == "call_module":
            return _is_affine_module(self.module.get_submodule(str(node.target)))
        name = _name(node)
        if name in _JOINED:
            return True
        if name in _ADDED:
            return self._aligned(node, operands)
        if name in _MULTIPLIED:
            return len(operands) == 1 and self._aligned(node, operands)
        first = node.args[0] if node.args else node.kwargs.get("input")
        if len(operands) != 1 or first is not operands[0]:
            return False
        return name in _FIRST and self._is_plain(node, name, operands[0])

    def _is_plain(self, node: fx.Node, name: str, operand: fx.Node) -> bool:
        """Whether a call's options leave it affine."""
        if name in _ACTIVE:
            training = node.kwargs.get("training", name != "batch_norm")
            return not (node.args[_ACTIVE[name]] if len(node.args) > _ACTIVE[name] else training)
        if name in _CAST:
            return self.two[node] == self.two[operand]
        if name in _BROADCAST:
            return node.kwargs.get("rounding_mode") is None and self._aligned(node, [operand])
        return True

    def _aligned(self, node: fx.Node, operands: list[fx.Node]) -> bool:
        """Whether broadcasting leaves rows in front: no operand gets dimensions before its own."""
        tensors = [self.two[n] for n in (node, *operands)]
        return (
            all(isinstance(t, _Tensor) for t in tensors)
            and len({len(t.shape) for t in tensors}) == 1
        )

    def _rows_first(self, node: fx.Node) -> bool:
        """2 for 2 rows and 3 for 3: no fixed dimension can pass for the rows."""
        return all(
            t.shape[:1] == (rows,)
            for rows, seen in ((2, self.two), (3, self.three))
            for t in _described(seen[node])
        )


class _Tracer(fx.Tracer):
    """Calls the module with positional proxies only, so that what has a default keeps it."""

    proxy_buffer_attributes = True  # or buffer.expand(rows, ...) meets a size it does not know

    def __init__(self, arguments: int) -> None:
        super().__init__()
        self.arguments = arguments

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        proxies = [
            self.create_proxy("placeholder", f"argument_{i}", (), {}) for i in range(self.arguments)
        ]
        return root_fn, [self.root, *proxies]


class _Interpreter(fx.Interpreter):
    """Remembers of every node its tensors' shapes and dtypes, and any other value as it is."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.seen[n] = _describe(result)
        return result


def _describe(value: object) -> object:
    if isinstance(value, Tensor):
        return _Tensor(value.shape, value.dtype)
    if isinstance(value, torch.Size) or not isinstance(value, tuple | list):
        return value
    return [_describe(part) for part in value]


def _described(value: object) -> Iterator[_Tensor]:
    if isinstance(value, _Tensor):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _described(part)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments, as often as they occur."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)
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


def _in_place(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    changes = (
        node.op in ("call_method", "call_function")
        and name.endswith("_")
        and not name.endswith("__")
    )
    return changes or node.target in (operator.setitem, setattr) or "out" in node.kwargs


def _is_affine_module(module: nn.Module) -> bool:
    statistics = (
        not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is not None
    )
    return type(module) in _MODULES and not module.training and statistics and not has_hooks(module)


# --- the two halves ----------------------------------------------------------------------------


class _Split:
    """A labelled trace cut at its frontier: the affine tensors that something not affine, or the
    output, reads.
    """

    def __init__(self, trace: _Trace, labels: dict[fx.Node, _Label]) -> None:
        self.trace, self.labels = trace, labels
        self.frontier = [
            n
            for n in trace.graph.nodes
            if labels[n] is _Label.affine and any(self._leaves(user) for user in n.users)
        ]

    def _leaves(self, user: fx.Node) -> bool:
        return user.op == "output" or self.labels[user] is _Label.other

    def hoisted(self, like: tuple[Tensor, ...]) -> Hoisted | None:
        """None where the frontier is not made of tensors, or a size that the tail needs cannot be
        told.
        """
        if not self.frontier or not all(
            isinstance(self.trace.two[n], _Tensor) for n in self.frontier
        ):
            return None
        try:
            return Hoisted(self._prefix(), self._tail(), tuple(n.name for n in self.frontier), like)
        except _Unknown:
            return None

    def _prefix(self) -> fx.GraphModule:
        graph = fx.Graph()
        env: dict[fx.Node, fx.node.Argument] = {
            n: graph.placeholder(n.name) for n in self.trace.placeholders
        }
        self._copy(graph, env, self.frontier)
        graph.output(tuple(env[n] for n in self.frontier))
        # the shells that it makes for nested names train
        return fx.GraphModule(self.trace.module, graph).eval()

    def _tail(self) -> fx.GraphModule:
        graph = fx.Graph()
        env: dict[fx.Node, fx.node.Argument] = {
            n: graph.placeholder(f"hidden_{i}") for i, n in enumerate(self.frontier)
        }
        rows = env[self.frontier[0]]
        given = self.trace.placeholders[len(self.trace.inputs) :]
        env |= {n: graph.placeholder(n.name) for n in given}
        env |= {
            n: self._sized(graph, rows, n)
            for n in self.trace.graph.nodes
            if self.labels[n] is _Label.read and any(map(self._needed_by_tail, n.users))
        }
        self._copy(graph, env, [self.trace.output])
        graph.output(env[self.trace.output])
        return _out_of_place(fx.GraphModule(self.trace.module, graph).eval())

    def _needed_by_tail(self, user: fx.Node) -> bool:
        """A constant made of sizes may be meant for either half."""
        label = self.labels[user]
        return label is _Label.other or (
            label is _Label.constant and any(map(self._needed_by_tail, user.users))
        )

    def _sized(self, graph: fx.Graph, hidden: fx.Node, node: fx.Node) -> fx.node.Argument:
        """What a size was for any number of rows, from the first hidden tensor instead of the
        input.
        """
        two, three = self.trace.two[node], self.trace.three[node]
        if two == three:
            return two
        if isinstance(two, torch.Size) and two[1:] == three[1:] and (two[0], three[0]) == (2, 3):
            return graph.call_function(_rows_of, (hidden, tuple(two[1:])))
        if (two, three) == (2, 3):
            return graph.call_method("size", (hidden, 0))
        raise _Unknown

    def _copy(
        self, graph: fx.Graph, env: dict[fx.Node, fx.node.Argument], wanted: Iterable[fx.Node]
    ) -> None:
        """Add to `graph` what `wanted` needs beyond what `env` has, in the trace's order."""
        needed, waiting = set(), [n for n in wanted if n not in env]
        while waiting:
            node = waiting.pop()
            needed.add(node)
            waiting += [n for n in node.all_input_nodes if n not in env and n not in needed]
        for node in self.trace.graph.nodes:
            if node in needed:
                env[node] = graph.node_copy(node, env.__getitem__)


class _Unknown(Exception):
    """A size that depends on the rows in a way that 2 and 3 of them do not show."""


def _rows_of(hidden: Tensor, rest: tuple[int, ...]) -> torch.Size:
    return torch.Size((hidden.shape[0], *rest))


def _out_of_place(tail: fx.GraphModule) -> fx.GraphModule:
    """Hidden tensors are leaves of the gradient, which nothing may change in place:
    ReLU(inplace=True) gets a twin.
    """
    hidden = {n for n in tail.graph.nodes if n.op == "placeholder"}
    for node in [n for n in tail.graph.nodes if hidden.intersection(n.all_input_nodes)]:
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.op == "call_module" and getattr(
            tail.get_submodule(str(node.target)), "inplace", False
        ):
            twin = copy.copy(tail.get_submodule(str(node.target)))
            twin.inplace = False
            node.target = f"out_of_place_{node.name}"
            tail.add_module(str(node.target), twin)
    tail.recompile()
    return tail
