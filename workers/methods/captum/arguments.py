"""Arguments of a Captum class as a spec gives them, held against its signature."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.workers.methods.captum.classes import PROVIDED, AttributionClass

Place = Literal["constructor", "attribute"]
IDLE = ("device_ids", "return_input_shape", "show_progress", "verbose")
"""Arguments about other things than attributions of rows."""
_WORDS = MappingProxyType(
    {
        bool: "true or false",
        int: "a whole number from 1",
        float: "a number from 0",
        str: "a text",
        NoneType: "null",
        Tensor: "a list of numbers",
        nn.Module: "the dotted name of a module",
    }
)
"""What a spec may give for a type."""


@dataclass(frozen=True)
class _Known:
    """A parameter of a class, and which of its two functions takes it."""

    place: Place
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a class is called with beside what a job gives itself.

    constructor, attribute  by name; modules by their dotted names, tensors as nested tuples
    modules, tensors        the names of these
    values                  all by name, with the defaults of those that are not given
    """

    constructor: Mapping[str, Any]
    attribute: Mapping[str, Any]
    modules: frozenset[str]
    tensors: frozenset[str]
    values: Mapping[str, Any]

    @property
    def features(self) -> int | None:
        """Sets of features that a mask names; None where there is no mask."""
        mask = self.values.get("feature_mask")
        return None if mask is None else len(set(_numbers(mask)))


def bound(class_: AttributionClass, given: Mapping[str, Any]) -> Arguments:
    """The arguments by the function that takes them. Raises SpecError for names and types that the
    signature does not have.
    """
    known = _parameters(class_.made)
    for name, value in given.items():
        _check(class_, known, name, value)
    for name, parameter in known.items():
        if parameter.required and name not in given:
            raise SpecError(
                f"{class_.where}: arguments.{name}",
                expected=_in_words(parameter.hint),
                seen="nothing",
                next_step=f"add `arguments: {{{name}: …}}`",
            )

    def taken_by(place: Place) -> dict[str, Any]:
        return {name: value for name, value in given.items() if known[name].place == place}

    defaults = {name: parameter.default for name, parameter in known.items()}
    return Arguments(
        constructor=taken_by("constructor"),
        attribute=taken_by("attribute"),
        modules=frozenset(name for name in given if _admits(known[name].hint, nn.Module)),
        tensors=frozenset(name for name in given if _admits(known[name].hint, Tensor)),
        values=defaults | dict(given),
    )


def _parameters(made: type[Any]) -> dict[str, _Known]:
    """Those of the constructor and of `attribute` that a job does not give itself."""
    found = {}
    functions: tuple[tuple[Place, Callable[..., Any]], ...] = (
        ("constructor", made.__init__),
        ("attribute", made.attribute),
    )
    for place, function in functions:
        hints = get_type_hints(function)
        for name, parameter in signature(function).parameters.items():
            named = parameter.kind is not Parameter.VAR_KEYWORD and name != "self"
            if named and name not in PROVIDED:
                found[name] = _Known(place, hints.get(name, object), parameter.default)
    return found


def _check(class_: AttributionClass, known: Mapping[str, _Known], name: str, value: object) -> None:
    offered = [n for n, p in known.items() if n not in IDLE and _in_words(p.hint)]
    if name not in offered:
        near = difflib.get_close_matches(name, offered, 1, 0.5)
        raise SpecError(
            f"{class_.where}: arguments.{name}",
            expected=f"an argument among {', '.join(offered)}" if offered else "no arguments",
            seen=_why_not(name, known),
            next_step=f"did you mean `{near[0]}`?" if near else "leave it out",
        )
    hint = known[name].hint
    if not _fits(value, hint):
        raise SpecError(
            f"{class_.where}: arguments.{name}",
            expected=_in_words(hint),
            seen=repr(value)[:80],
            next_step="see the class's documentation in Captum",
        )


def _why_not(name: str, known: Mapping[str, _Known]) -> str:
    if name in PROVIDED:
        return f"`{name}`, which the job gives itself: see `baseline`, `target` and `forward_args`"
    if name in IDLE:
        return f"`{name}`, which is no matter of rows"
    if name in known:
        return f"`{name}`, which takes what a spec cannot hold"
    return f"`{name}`, which the class does not have"


# --- types ---------------------------------------------------------------------------------------


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of a spec is what a parameter of this type takes; counts are from 1, other
    numbers from 0.
    """
    branches = _branches(hint)
    if branches:
        return any(_fits(value, branch) for branch in branches)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(one, inner) for one in value)
    if hint is Tensor:
        return isinstance(value, tuple) and all(_is_numbers(one) for one in value)
    if hint is nn.Module:
        return isinstance(value, str)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return hint in _WORDS and isinstance(value, hint)


def _is_numbers(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_numbers(one) for one in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> Iterator[Any]:
    """Those in nested tuples."""
    for one in value:
        if isinstance(one, tuple):
            yield from _numbers(one)
        else:
            yield one


def _admits(hint: Any, sought: type[Any]) -> bool:
    """Whether a type is this one, or may be."""
    return hint is sought or any(_admits(branch, sought) for branch in _branches(hint))


def _branches(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or those that a type variable stands for."""
    if isinstance(hint, TypeVar):
        return hint.__constraints__
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else ()


def _in_words(hint: Any) -> str:
    """What a spec may give; empty where it can give nothing but the default."""
    branches = _branches(hint)
    if branches:
        words = [_in_words(branch) for branch in branches if branch is not NoneType]
        return " or ".join(dict.fromkeys(filter(None, words)))
    if get_origin(hint) is tuple:
        inner = _in_words(get_args(hint)[0])
        return f"a list ({inner} each)" if inner else ""
    return _WORDS.get(hint, "")
