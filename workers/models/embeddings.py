"""Category and token ids, attributed at the output of the modules that embed them.

An id has no gradient; its embedding has. So the path from baseline to input runs through the
outputs of named modules. `at_embedding` opens a model there, with one attribution for each element
of an embedding. Jobs want one number per id: `IdsModel` takes one coordinate s per id, which puts
its embedding at e' + s (e − e'). On the straight path from s = 0 to s = 1 all embeddings move
straight from e' to e together, and ∂f/∂s = Σ_d (e − e')_d ∂f/∂e_d by the chain rule: the integral
over s is the sum over d of what `at_embedding` gives, and gap and error estimate are those of the
numbers that are reported. The zero vector as the baseline of text is that of Sundararajan, Taly &
Yan 2017, §3.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.specs.inputs import EmbeddedInput, Input, ids_of
from integrand.workers.data.inputs.ids import PADDING
from integrand.workers.models.outputs import Forward, on_copies, plain_model

Lookup = Callable[..., Tensor | tuple[Tensor, ...]]
Replace = Callable[[str, Tensor], Tensor]


class _AllSeen(BaseException):
    """Ends a forward pass early. No Exception: a model that catches those must not catch this."""


# --- tensors -----------------------------------------------------------------------------------


def at_embedding(model: nn.Module, *modules: str) -> tuple[Lookup, nn.Module]:
    """Open `model` at the outputs of named modules: `(lookup, forward)`, to attribute ids in a
    notebook.

    lookup(*arguments)              the model's arguments → the module's output, `[rows, length,
                                    dim]` or `[rows, dim]`; a tuple of them, in the order named, if
                                    there are several modules
    forward(*embedded, *arguments)  the model's output with the modules' outputs replaced by
                                    `embedded`

        lookup, forward = at_embedding(model, "encoder.embeddings.word_embeddings")
        result = attribute(forward, lookup(ids, mask), target=1, forward_args=(ids, mask))
        per_token = result.attributions.sum(-1)

    The baseline is zeros or, for one id throughout, `lookup(torch.full_like(ids, pad), mask)`.
    Numbers beside the ids are inputs too; whoever calls puts them where the model takes them:

        lookup, forward = at_embedding(model, "plan", "region")
        inputs = (*lookup(plan, region, amounts), amounts)
        attribute(lambda p, r, x, *ids: forward(p, r, *ids, x), inputs, forward_args=(plan, region))

    Raises SpecError for a name that the model lacks and, when run, for a module that is called
    never or more than once, or whose output is not one floating tensor with rows first; DataError
    for ids outside an nn.Embedding.
    """
    opened = _Opened(model, find_modules(model, modules))

    def lookup(*arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        for name, row, seen in ids_outside(model, opened.named, arguments):
            raise DataError(
                f"row {row}",
                expected=_known_ids(name, opened.named[name]),
                seen=str(seen),
                next_step="fix the ids, or take the model that they were made for",
            )
        found = look_up(model, opened.named, arguments)
        return found[modules[0]] if len(modules) == 1 else tuple(found[name] for name in modules)

    return lookup, opened


class _Opened(nn.Module):
    """The forward half of `at_embedding`: a module, so that whoever runs it sees train mode and
    parameters.
    """

    def __init__(self, model: nn.Module, named: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.named = model, named
        self.training = model.training

    def forward(self, *arguments: Tensor) -> Tensor:
        embedded = dict(zip(self.named, arguments, strict=False))

        def replace(name: str, output: Tensor) -> Tensor:
            if embedded[name].shape != output.shape:
                raise SpecError(
                    f"embedded `{name}`",
                    expected=f"shape {list(output.shape)}, as the module gives it",
                    seen=f"{list(embedded[name].shape)}",
                    next_step="pass what lookup(...) returned",
                )
            return embedded[name].clone()  # models add to embeddings in place, which a leaf refuses

        return _run(self.model, self.named, replace, arguments[len(self.named) :])


def find_modules(
    model: nn.Module, names: Sequence[str], *, what: str = "embedding"
) -> dict[str, nn.Module]:
    """The modules of these dotted names, and what they are to be. Raises SpecError with the nearest
    name for one that is not there.
    """
    known = dict(model.named_modules())
    for name in names:
        if not name or name not in known:
            near = difflib.get_close_matches(name, list(known), 3, 0.5)
            near = (
                near
                or [n for n, m in known.items() if isinstance(m, nn.Embedding)][:3]
                or list(known)[1:4]
            )
            raise SpecError(
                f"{what} `{name}`",
                expected="a module of the model",
                seen="no module of this name",
                next_step=f"did you mean {' or '.join(f'`{n}`' for n in near)}?",
            )
    return {name: known[name] for name in names}


def look_up(
    model: nn.Module, named: dict[str, nn.Module], arguments: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Outputs of the named modules; the pass ends with the last of them. Raises SpecError like
    `at_embedding`.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        found[name] = output.clone()  # models add to embeddings in place
        if len(found) == len(named):
            raise _AllSeen
        return output

    with torch.no_grad(), suppress(_AllSeen):
        _run(model, named, keep, [a.clone() for a in arguments])  # models write into masks too
    return found


def ids_outside(
    model: nn.Module, named: dict[str, nn.Module], arguments: Sequence[Tensor]
) -> list[tuple[str, int, int]]:
    """Module, row and id of what has no row in an nn.Embedding, one per module and row. The pass
    ends with the last.
    """
    awaited = {name: module for name, module in named.items() if isinstance(module, nn.Embedding)}
    found: list[tuple[str, int, int]] = []

    def hook(name: str, size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def judged(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            ids, *others = given
            outside = (ids < 0) | (ids >= size)
            for row in outside.reshape(len(ids), -1).any(1).nonzero().flatten().tolist():
                found.append((name, row, int(ids[row][outside[row]][0])))
            awaited.pop(name, None)
            if not awaited:
                raise _AllSeen
            return (ids.masked_fill(outside, 0), *others)

        return judged

    if awaited:
        with torch.no_grad(), suppress(_AllSeen), ExitStack() as handles:
            for name, module in awaited.items():
                handles.callback(
                    module.register_forward_pre_hook(hook(name, module.num_embeddings)).remove
                )
            on_copies(model, *arguments)
    return found


def _known_ids(name: str, module: nn.Module) -> str:
    assert isinstance(module, nn.Embedding)
    return f"ids from 0 to {module.num_embeddings - 1} at `{name}`"


def _run(
    model: nn.Module, named: dict[str, nn.Module], replace: Replace, arguments: Sequence[Tensor]
) -> Tensor:
    """The model's output while each named module's passes through `replace`, once."""
    called: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, object, object], Tensor]:
        def replaced(module: nn.Module, _: object, output: object) -> Tensor:
            if name in called:
                raise SpecError(
                    f"embedding `{name}`",
                    expected="one call in a forward pass",
                    seen="a second call",
                    next_step="name a module that embeds all ids at once",
                )
            called.add(name)
            return replace(name, _floating(name, output, arguments))

        return replaced

    with ExitStack() as handles:
        for name, module in named.items():
            handles.callback(module.register_forward_hook(hook(name)).remove)
        out: Tensor = model(*arguments)
    missed = [name for name in named if name not in called]
    if missed:
        raise SpecError(
            f"embedding `{missed[0]}`",
            expected="one call in a forward pass",
            seen="none",
            next_step="name a module that the model calls; compiled and scripted ones hide theirs",
        )
    return out


def _floating(name: str, output: object, arguments: Sequence[Tensor]) -> Tensor:
    rows = arguments[0].shape[0]
    if (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and output.ndim > 1
        and output.shape[0] == rows
    ):
        return output
    seen = (
        f"{output.dtype} of shape {list(output.shape)}"
        if isinstance(output, Tensor)
        else type(output).__name__
    )
    raise SpecError(
        f"embedding `{name}`",
        expected=f"one floating tensor with its {rows} rows first",
        seen=seen,
        next_step="name the module whose output is one vector per id",
    )


# --- jobs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a module embeds ids: the number of its input of ids, and the column that it alone
    embeds, if one.
    """

    ids: int
    column: int | None

    def of(self, values: Tensor) -> Tensor:
        return values if self.column is None else values[:, self.column]


@dataclass(frozen=True, eq=False)
class _Called:
    """What an IdsModel is called with; `baseline_ids` of every input of ids, which are the ids
    themselves where the baseline is zero.
    """

    inputs: Sequence[Tensor]
    ids: Sequence[Tensor]
    baseline_ids: Sequence[Tensor]
    forward_args: Sequence[Tensor]


class IdsModel(nn.Module):
    """A model with inputs of ids as a function of real numbers: `forward(*inputs, *ids,
    *baseline_ids, *forward_args)`.

    inputs        one per input of the spec; for one of ids, s per id: 0 is its baseline, 1 the id
                  itself
    ids           one int64 tensor per input of ids, PADDING where there is no id; the model gets
                  `pad` there, and its embedding stays what it is, so that padding earns exactly
                  nothing
    baseline_ids  like ids, for those of these inputs whose baselines are ids of each row
    forward_args  as the spec says

    The baseline e' of an id is a zero vector, or the embedding in the same place of a constant id
    or of that among the baseline ids. Raises SpecError like `at_embedding`, and where a module does
    not give one vector per id.

    inputs        parts of the spec, each with its baseline; without one it is zero
    """

    def __init__(self, model: nn.Module, inputs: tuple[Input, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.ids_inputs = inputs, ids_of(inputs)
        self.places = {
            module: _Place(i, j if isinstance(one.embedding, tuple) else None)
            for i, one in enumerate(self.ids_inputs)
            for j, module in enumerate(one.modules)
        }
        find_modules(_plain(model), list(self.places))
        self.training = model.training

    @property
    def named(self) -> dict[str, nn.Module]:
        """By name in the model as it is now: its parts may have been rewritten since."""
        model = _plain(self.model)
        return {name: model.get_submodule(name) for name in self.places}

    def forward(self, *arguments: Tensor) -> Tensor:
        called = self._split(arguments)
        ids = called.ids
        shares = [x for x, one in zip(called.inputs, self.inputs, strict=True) if one.modules]
        baseline = self._baseline(called)

        def move(name: str, output: Tensor) -> Tensor:
            place = self.places[name]
            real = place.of(ids[place.ids]) != PADDING
            if output.shape[: real.ndim] != real.shape or output.ndim == real.ndim:
                raise SpecError(
                    f"embedding `{name}`",
                    expected=f"one vector for each id: {[*real.shape, 'dim']}",
                    seen=f"shape {list(output.shape)}",
                    next_step="name the module that embeds each id",
                )
            share = torch.where(real, place.of(shares[place.ids].reshape(ids[place.ids].shape)), 1)
            share = share.reshape(*real.shape, *[1] * (output.ndim - real.ndim))
            return (
                output * share
                if name not in baseline
                else torch.lerp(baseline[name], output, share)
            )

        return _run(self.model, self.named, move, self._arguments(called))

    def unknown_ids(self, *arguments: Tensor) -> list[str | None]:
        """Why a row cannot be embedded, if it cannot: an id beyond an nn.Embedding, its own or its
        baseline's. The model is run up to there.

        Raises SpecError if the id of a constant baseline is.
        """
        called = self._split(arguments)
        reasons: list[str | None] = [None] * called.inputs[0].shape[0]
        for name, row, seen in ids_outside(self.model, self.named, self._arguments(called)):
            holds = f"{self._input_of(name).name} holds {seen}"
            reasons[row] = reasons[row] or f"{holds}: expected {self._known_ids(name)}"
        at_baseline = self._arguments(called, at_baseline=True)
        for name, row, seen in ids_outside(self.model, self._with_baseline_ids(), at_baseline):
            one = self._input_of(name)
            if not one.baseline_per_row:
                raise SpecError(
                    f"baseline of input `{one.name}`",
                    expected=self._known_ids(name),
                    seen=str(seen),
                    next_step="name an id that the embedding has",
                )
            holds = f"the baseline of {one.name} holds {seen}"
            reasons[row] = reasons[row] or f"{holds}: expected {self._known_ids(name)}"
        return reasons

    def _input_of(self, module: str) -> EmbeddedInput:
        return self.ids_inputs[self.places[module].ids]

    def _known_ids(self, module: str) -> str:
        return _known_ids(module, self.named[module])

    def _split(self, arguments: Sequence[Tensor]) -> _Called:
        rest = list(arguments)
        inputs, rest = rest[: len(self.inputs)], rest[len(self.inputs) :]
        ids, rest = rest[: len(self.ids_inputs)], rest[len(self.ids_inputs) :]
        baseline_ids = []
        for one, its_ids in zip(self.ids_inputs, ids, strict=True):
            baseline_ids.append(self._baseline_ids(one, its_ids, rest))
        return _Called(inputs, ids, baseline_ids, rest)

    def _baseline_ids(self, one: EmbeddedInput, ids: Tensor, rest: list[Tensor]) -> Tensor:
        """What stands for the absence of these ids; taken off the `rest` of the arguments where
        each row has its own.
        """
        if one.baseline_per_row:
            return rest.pop(0)
        constant = one.baseline_id
        return ids if constant is None else torch.full_like(ids, constant)

    def _arguments(self, called: _Called, at_baseline: bool = False) -> list[Tensor]:
        """What the model itself takes: ids in the places of their inputs, padding filled up."""
        values = list(called.inputs)
        embedded = [place for place, one in enumerate(self.inputs) if one.modules]
        taken = called.baseline_ids if at_baseline else called.ids
        for k, (place, one) in enumerate(zip(embedded, self.ids_inputs, strict=True)):
            values[place] = taken[k].masked_fill(called.ids[k] == PADDING, one.pad or 0)
        return [*values, *called.forward_args]

    def _baseline(self, called: _Called) -> dict[str, Tensor]:
        """Embeddings of the baseline ids, for those modules that have some."""
        named = self._with_baseline_ids()
        if not named:
            return {}
        return look_up(self.model, named, self._arguments(called, at_baseline=True))

    def _with_baseline_ids(self) -> dict[str, nn.Module]:
        """The modules whose input has baseline ids: one constant, or those of each row."""
        found = {}
        for name, module in self.named.items():
            one = self._input_of(name)
            if one.baseline_per_row or one.baseline_id is not None:
                found[name] = module
        return found


def through_embeddings(forward: Forward, inputs: tuple[Input, ...]) -> Forward:
    """What attributes these inputs: the model itself, or an IdsModel around it. Raises
    SpecError like that.
    """
    if not ids_of(inputs):
        return forward
    model = plain_model(forward)
    if not isinstance(forward, nn.Module) or not isinstance(model, nn.Module):
        raise SpecError(
            "model",
            expected="a torch.nn.Module, for inputs of ids",
            seen=type(model).__name__,
            next_step="use a model of kind factory",
        )
    return IdsModel(forward, inputs)


def _plain(model: nn.Module) -> nn.Module:
    """The model that has the modules a spec names."""
    found = plain_model(model)
    assert isinstance(found, nn.Module), "only modules are opened"
    return found
