"""A second build is held against the first: by what it holds, then by what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
import torch
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.models import ExportedModel, FactoryModel, Model
from integrand.schemas.specs.part import branches_of
from integrand.workers.models.kinds.base import Built, Loaded
from integrand.workers.models.kinds.table import KINDS
from integrand.workers.models.outputs import Forward
from integrand.workers.models.rebuilding import build_again, check_outputs
from integrand.workers.models.state import State

MODEL = FactoryModel(entrypoint="toys:build")
X = torch.ones(2, 3)


def loaded(forwards: Iterator[Forward], bits: Iterator[str]) -> Loaded:
    def build() -> Built:
        return Built(next(forwards), State({"w": next(bits)}, {}))

    first = build()
    return Loaded(first.forward, first.state, build=build)


def times(factor: float) -> Forward:
    return lambda x: x * factor


def same(value: str = "a") -> Iterator[str]:
    return iter([value] * 4)


def on_rows(forward: Forward) -> Tensor:
    return forward(X)


def test_every_kind_of_the_spec_is_listed() -> None:
    assert set(KINDS) == set(branches_of(Model).values())


def test_a_program_is_built_once() -> None:
    assert build_again(ExportedModel(uri="m.pt2"), Loaded(times(1))) is None


def test_a_second_model_that_holds_something_else_is_refused() -> None:
    found = loaded(iter([times(1)] * 2), iter("ab"))
    with pytest.raises(SpecError, match=r"toys:build(.|\n)*`w` with other values"):
        build_again(MODEL, found)


def test_a_second_model_that_says_something_else_is_refused() -> None:
    found = loaded(map(times, count(1.0)), same())
    second = build_again(MODEL, found)
    assert second is not None
    with pytest.raises(SpecError, match="other outputs of the second one"):
        check_outputs(MODEL, found, second, on_rows)


def test_models_alike_pass_and_so_does_one_that_counts_its_calls() -> None:
    def counting() -> Forward:
        calls = count(1)
        return lambda x: x * next(calls)

    makers: list[Callable[[], Forward]] = [lambda: times(2.0), counting]
    for make in makers:
        found = loaded((make() for _ in range(4)), same())
        second = build_again(MODEL, found)
        assert second is not None
        found.forward(X)  # planning has run the first one already
        check_outputs(MODEL, found, second, on_rows)
