"""What is wrong with a spec, in the words its author used. Parts and kinds are read off the unions
themselves.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from pydantic_core import ErrorDetails

from integrand.schemas.specs.part import Part, branches_of

# Names that pydantic gives to the branches of a plain union, such as `constrained-int` or
# `literal['auto']`.
_BRANCH = re.compile(r"(constrained-)?(str|int|float|bool)|.*\[.*")


def explain(problem: ErrorDetails, spec: type[Part]) -> str:
    """One of pydantic's errors about a `spec`: the place, what is wrong there, and the nearest good
    word.
    """
    place = _find(problem["loc"], spec)
    if problem["type"] == "extra_forbidden":
        field = str(problem["loc"][-1])
        fields = [name for part in place.parts for name in part.model_fields]
        return f"{place}: unknown field{_nearest(field, fields, spec)}"
    if problem["type"] == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        kinds = list(place.branches)
        return f"{place}: unknown kind `{tag}`{_nearest(tag, kinds, spec)}"
    if problem["type"] == "union_tag_not_found":
        return f"{place}: needs `kind`: one of {', '.join(place.branches)}"
    got = "" if problem["type"] == "missing" else f" (got {problem.get('input')!r:.80})"
    return f"{place}: {problem['msg']}{got}"


@dataclass(frozen=True)
class _Place:
    """A place in a spec: the words that lead there, and the parts that may stand there, by kind."""

    words: tuple[str, ...]
    branches: dict[str, type[Part]]

    @property
    def parts(self) -> tuple[type[Part], ...]:
        return tuple(self.branches.values())

    def __str__(self) -> str:
        return ".".join(self.words) or "spec"


def _find(loc: tuple[int | str, ...], spec: type[Part]) -> _Place:
    """An error's place without the union tags and branches that pydantic puts into its location."""
    words: list[str] = []
    around: dict[str, type[Part]] = {}
    here = {"": spec}
    for word in loc:
        if word in here:  # the tag of a union
            around, here = {}, {"": here[str(word)]}
            continue
        if (isinstance(word, str) and _BRANCH.fullmatch(word)) or word == "count":
            continue
        words.append(str(word))
        if any(word in part.model_fields for part in here.values()):  # else a key of a mapping
            around, here = here, _below(here, str(word))
    return _Place(tuple(words), here or around)


def _below(parts: dict[str, type[Part]], field: str) -> dict[str, type[Part]]:
    found: dict[str, type[Part]] = {}
    for part in parts.values():
        if field in part.model_fields:
            found |= branches_of(part.model_fields[field].annotation)
    return found


def _nearest(word: str, known: list[str], spec: type[Part]) -> str:
    """The closest known word, else all of them; a field of another part where it fits no better."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    if not near:
        anywhere = sorted(_all_fields(spec))
        near = difflib.get_close_matches(word, anywhere, 1, 0.75)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known here: {', '.join(known)}"


def _all_fields(part: type[Part]) -> set[str]:
    fields = set(part.model_fields)
    for field in part.model_fields.values():
        for below in branches_of(field.annotation).values():
            fields |= _all_fields(below)
    return fields
