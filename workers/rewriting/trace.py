"""A module as a torch.fx graph, with what every node gave for two and for three rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class TensorType:
    """What is remembered of a tensor that a node gave."""

    shape: torch.Size
    dtype: torch.dtype


Seen = Mapping[fx.Node, object]
"""Of every node its tensors' types, in lists where it gave several; any other value as it is."""


class Trace:
    """A module's graph, and what its nodes gave. Raises whatever the module raises."""

    def __init__(
        self, module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor]
    ) -> None:
        arguments = (*inputs, *forward_args)
        self.module = fx.GraphModule(module, _Tracer(len(arguments)).trace(module))
        self.graph = self.module.graph
        self.placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.inputs = self.placeholders[: len(inputs)]
        self.output = next(n for n in self.graph.nodes if n.op == "output").args[0]
        self.two = self._run(arguments, 2)
        self.three = self._run(arguments, 3)

    @torch.no_grad()
    def _run(self, arguments: Sequence[Tensor], rows: int) -> Seen:
        interpreter = _Interpreter(self.module)
        interpreter.run(*[a[torch.arange(rows) % len(a)] for a in arguments])
        return interpreter.seen

    def writes(self) -> bool:
        """Whether the graph changes tensors in place."""
        return any(map(_in_place, self.graph.nodes))

    def gives_tensors(self, node: fx.Node) -> bool:
        return any(True for _ in _types(self.two[node]))

    def rows_first(self, node: fx.Node) -> bool:
        """2 for 2 rows and 3 for 3: no fixed dimension can pass for the rows."""
        return all(
            t.shape[:1] == (rows,)
            for rows, seen in ((2, self.two), (3, self.three))
            for t in _types(seen[node])
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
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.seen[n] = _type_of(result)
        return result


def _type_of(value: object) -> object:
    if isinstance(value, Tensor):
        return TensorType(value.shape, value.dtype)
    if isinstance(value, torch.Size) or not isinstance(value, tuple | list):
        return value
    return [_type_of(part) for part in value]


def _types(value: object) -> Iterator[TensorType]:
    if isinstance(value, TensorType):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _types(part)


def _in_place(node: fx.Node) -> bool:
    if node.target in (operator.setitem, setattr) or "out" in node.kwargs:
        return True
    if node.op not in ("call_method", "call_function"):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")
