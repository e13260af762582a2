"""What may be a reason: each feature, or those together that have one code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from integrand.schemas.records import InputShape, Plan, ReasonCodes
from integrand.schemas.specs.output import Output
from integrand.schemas.specs.reasons import Reasons

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One code and its features, by their places among all; without a code and a text where the
    feature is `prohibited`.
    """

    code: str | None
    text: str | None
    members: tuple[int, ...]
    prohibited: bool = False


@dataclass(frozen=True, eq=False)
class Candidates:
    """All that may be reasons of a row, in the order in which their features first stand.

    features  names of all features, in the order of the output
    k         most reasons
    sign      +1 where reasons push the output higher, −1 where lower
    """

    features: tuple[str, ...]
    each: tuple[Candidate, ...]
    k: int
    sign: int

    def pushes(self, attributions: Floats) -> Floats:
        """Attributions `[rows, features]` as contributions towards the side asked for, `[rows,
        candidates]`. Added up feature by feature: bits depend on the row alone.
        """
        found = np.zeros((len(attributions), len(self.each)))
        for place, candidate in enumerate(self.each):
            for member in candidate.members:
                found[:, place] += self.sign * attributions[:, member]
        return found

    def first(self, attributions: Floats) -> NDArray[np.int64]:
        """The candidate of each row that pushes most, the earlier one of equals; −1 where none
        does.
        """
        pushes = self.pushes(attributions)
        largest = pushes.argmax(axis=1)
        pushing = np.take_along_axis(pushes, largest[:, None], axis=1)[:, 0] > 0
        return np.where(pushing, largest, -1)

    def moved(self, moved: Flags) -> Flags:
        """Whether any feature of each candidate is, `[rows, candidates]`."""
        found = [moved[:, list(candidate.members)].any(1) for candidate in self.each]
        return np.stack(found, axis=1) if found else np.zeros((len(moved), 0), bool)

    def matrix(self) -> Floats:
        """What `pushes` does, as a matrix `[features, candidates]`."""
        found = np.zeros((len(self.features), len(self.each)))
        for place, candidate in enumerate(self.each):
            found[list(candidate.members), place] = self.sign
        return found


def named_features(shapes: Sequence[InputShape]) -> tuple[str, ...] | None:
    """The features of all inputs in the order of the output; None where some have no names."""
    if not all(shape.named for shape in shapes):
        return None
    return tuple(name for shape in shapes for name in shape.columns)


def candidates(features: Sequence[str], asked: Reasons, codes: ReasonCodes | None) -> Candidates:
    """What may be a reason among these features. `codes` is None where each is its own."""
    never = {*asked.exclude, *asked.prohibited}
    code_of = {name: name for name in features if name not in never}
    text_of: dict[str, str | None] = {}
    if codes is not None:
        code_of = {line.feature: line.code for line in codes.lines if line.feature not in never}
        text_of = {line.code: line.text for line in codes.lines}
    members: dict[str, list[int]] = {}
    for place, name in enumerate(features):
        if name in code_of:
            members.setdefault(code_of[name], []).append(place)
    found = [Candidate(c, text_of.get(c), tuple(places)) for c, places in members.items()]
    for place, name in enumerate(features):
        if name in asked.prohibited:
            found.append(Candidate(None, None, (place,), prohibited=True))
    found.sort(key=lambda candidate: candidate.members)
    return Candidates(
        features=tuple(features),
        each=tuple(found),
        k=asked.k,
        sign=1 if asked.toward == "higher" else -1,
    )


def planned_candidates(plan: Plan) -> Candidates | None:
    """What may be a reason in a run; None where it gives none."""
    return candidates_of(plan.spec.output, plan.inputs, plan.reason_codes)


def candidates_of(
    output: Output, shapes: Sequence[InputShape], codes: ReasonCodes | None
) -> Candidates | None:
    """What may be a reason among the features of inputs; None where none are asked for."""
    features = named_features(shapes)
    if output.reasons is None or features is None:
        return None
    asked, lines = of_features(output, output.reasons, codes)
    return candidates(features, asked, lines)


def of_features(
    output: Output, asked: Reasons, codes: ReasonCodes | None
) -> tuple[Reasons, ReasonCodes | None]:
    """The same, with the features of each group in place of its name."""

    def features(name: str) -> tuple[str, ...]:
        group = output.feature_groups.get(name)
        return (name,) if group is None else group.features

    def each(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(feature for name in names for feature in features(name))

    named = {"exclude": each(asked.exclude), "prohibited": each(asked.prohibited)}
    if codes is not None:
        lines = []
        for line in codes.lines:
            lines += [line.model_copy(update={"feature": own}) for own in features(line.feature)]
        codes = codes.model_copy(update={"lines": tuple(lines)})
    return asked.model_copy(update=named), codes
