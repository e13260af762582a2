"""A labelled trace cut in two: what is affine in the inputs, and all that follows."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx

from integrand.workers.rewriting.affine import Label
from integrand.workers.rewriting.trace import TensorType, Trace

Argument = fx.node.Argument


class UnknownSize(Exception):
    """A size that depends on the rows in a way that 2 and 3 of them do not show."""


class Split:
    """A trace cut at its frontier: the affine tensors that something not affine, or the output,
    reads.
    """

    def __init__(self, trace: Trace, labels: dict[fx.Node, Label]) -> None:
        self.trace, self.labels = trace, labels
        self.frontier = [
            n
            for n in trace.graph.nodes
            if labels[n] is Label.affine and any(self._leaves(user) for user in n.users)
        ]

    def possible(self) -> bool:
        """Whether there is a frontier, and one of tensors alone."""
        types = [self.trace.two[n] for n in self.frontier]
        return bool(types) and all(isinstance(t, TensorType) for t in types)

    def prefix(self) -> fx.GraphModule:
        """(*inputs, *forward_args) → tuple of the frontier's tensors."""
        graph = fx.Graph()
        env: dict[fx.Node, Argument] = {
            n: graph.placeholder(n.name) for n in self.trace.placeholders
        }
        self._copy(graph, env, self.frontier)
        graph.output(tuple(env[n] for n in self.frontier))
        # the shells that it makes for nested names train
        return fx.GraphModule(self.trace.module, graph).eval()

    def tail(self) -> fx.GraphModule:
        """(*hidden, *forward_args) → output. Raises UnknownSize."""
        graph = fx.Graph()
        hidden = [graph.placeholder(f"hidden_{i}") for i in range(len(self.frontier))]
        env: dict[fx.Node, Argument] = dict(zip(self.frontier, hidden, strict=True))
        for given in self.trace.placeholders[len(self.trace.inputs) :]:
            env[given] = graph.placeholder(given.name)
        for node in self.trace.graph.nodes:
            if self.labels[node] is Label.read and any(map(self._needed_by_tail, node.users)):
                env[node] = self._sized(graph, hidden[0], node)
        output = cast(fx.Node, self.trace.output)
        self._copy(graph, env, [output])
        graph.output(env[output])
        return _out_of_place(fx.GraphModule(self.trace.module, graph).eval())

    def _leaves(self, user: fx.Node) -> bool:
        return user.op == "output" or self.labels[user] is Label.other

    def _needed_by_tail(self, user: fx.Node) -> bool:
        """A constant made of sizes may be meant for either half."""
        label = self.labels[user]
        if label is Label.constant:
            return any(map(self._needed_by_tail, user.users))
        return label is Label.other

    def _sized(self, graph: fx.Graph, hidden: fx.Node, node: fx.Node) -> Argument:
        """What a size was for any number of rows, from the first hidden tensor instead of the
        input.
        """
        two, three = self.trace.two[node], self.trace.three[node]
        if two == three:
            return cast(Argument, two)
        if (two, three) == (2, 3):
            return graph.call_method("size", (hidden, 0))
        if not isinstance(two, torch.Size) or not isinstance(three, torch.Size):
            raise UnknownSize
        if two[1:] != three[1:] or (two[0], three[0]) != (2, 3):
            raise UnknownSize
        return graph.call_function(_rows_of, (hidden, tuple(two[1:])))

    def _copy(
        self, graph: fx.Graph, env: dict[fx.Node, Argument], wanted: Iterable[fx.Node]
    ) -> None:
        """Add to `graph` what `wanted` needs beyond what `env` has, in the trace's order."""
        needed: set[fx.Node] = set()
        waiting = [n for n in wanted if n not in env]
        while waiting:
            node = waiting.pop()
            needed.add(node)
            waiting += [n for n in node.all_input_nodes if n not in env and n not in needed]
        for node in self.trace.graph.nodes:
            if node in needed:
                env[node] = graph.node_copy(node, env.__getitem__)


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
        if node.op == "call_module":
            _replace_by_twin(tail, node)
    tail.recompile()
    return tail


def _replace_by_twin(tail: fx.GraphModule, node: fx.Node) -> None:
    module = tail.get_submodule(str(node.target))
    if getattr(module, "inplace", False):
        twin: Any = copy.copy(module)
        twin.inplace = False
        node.target = f"out_of_place_{node.name}"
        tail.add_module(node.target, twin)
