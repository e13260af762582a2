"""Whether what is grouped in the output fits the inputs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from integrand.schemas.specs.inputs import (
    ColumnsInput,
    IdsInput,
    ImageInput,
    InputPart,
    TensorInput,
    TextInput,
)
from integrand.schemas.specs.output import (
    ChannelSumStore,
    InputGroups,
    MapGroups,
    Output,
    PooledStore,
    WordGroups,
)


def unfit(output: Output, inputs: Sequence[InputPart]) -> str | None:
    """Why groups do not fit the inputs, as far as that is known without the data."""
    features = [name for one in inputs for name in named_features(one)]
    for group, asked in output.feature_groups.items():
        for name in asked.features:
            if name not in features:
                return f"output.groups.{group}: no feature `{name}`{_nearest(name, features)}"
    by_name = {one.name: one for one in inputs}
    for name, groups in output.input_groups.items():
        if name not in by_name:
            return f"output.groups.{name}: no input of this name{_nearest(name, list(by_name))}"
        wrong = _unfit_input(groups, by_name[name])
        if wrong:
            return f"output.groups.{name}: {wrong}"
    return _clash(output, inputs, features) or _stored_twice(output, inputs)


def named_features(one: InputPart) -> tuple[str, ...]:
    """Columns that may be features by their own names; whether one column of ids is one, the data
    say.
    """
    if isinstance(one, ColumnsInput):
        return one.columns
    return one.columns if isinstance(one, IdsInput) else ()


def _unfit_input(groups: InputGroups, one: InputPart) -> str | None:
    if isinstance(one, ColumnsInput):
        return "this input has named features: group them by a list of their columns"
    if isinstance(one, TextInput):
        return None if isinstance(groups, WordGroups) else "a text is grouped by `words: true`"
    if isinstance(groups, WordGroups):
        return "words are those of an input of texts: `text: ...`"
    if isinstance(one, IdsInput):
        if not isinstance(groups, MapGroups):
            return "ids are grouped by a column of numbers: `column: ...`"
        named = isinstance(one.ids, tuple)
        return "ids of several columns are grouped by a list of these" if named else None
    if isinstance(groups, MapGroups) and groups.count is None:
        return "a map of a tensor needs `count`, the groups that every row has"
    return None


def _clash(output: Output, inputs: Sequence[InputPart], features: Sequence[str]) -> str | None:
    """A group whose column another feature or input has."""
    grouped = {name for group in output.feature_groups.values() for name in group.features}
    others = {one.name for one in inputs if not isinstance(one, ColumnsInput)}
    taken = others | (set(features) - grouped)
    for group in output.feature_groups:
        if group in taken:
            return f"output.groups.{group}: a feature or an input outside of it has this name"
    return None


def _stored_twice(output: Output, inputs: Sequence[InputPart]) -> str | None:
    """A store that would group what is grouped already, or that has nothing to group."""
    if not isinstance(output.store, ChannelSumStore | PooledStore):
        return None
    tensors = [one.name for one in inputs if isinstance(one, TensorInput | ImageInput)]
    kind = output.store.kind
    if not tensors:
        return f"output.store: {kind} is for tensor inputs, and there is none"
    twice = sorted(set(tensors) & output.input_groups.keys())
    if twice:
        return f"output.store: {kind} and output.groups.{twice[0]} both group `{twice[0]}`"
    return None


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean `{near[0]}`?" if near else ""
