"""What differs by kind stands with the kind: nobody else asks which one it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from integrand.schemas.specs.models import Model
from integrand.schemas.specs.part import branches_of
from integrand.schemas.specs.targets import Target

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("union", "owner"),
    [(Target, "workers/models/targets"), (Model, "workers/models/kinds")],
    ids=["targets", "models"],
)
def test_a_kind_is_known_to_its_file_and_its_table_alone(union: object, owner: str):
    kinds = {part.__name__ for part in branches_of(union).values()}
    strangers = {
        f"{file.relative_to(ROOT)}: {name}"
        for house in ("workers", "service")
        for file in (ROOT / house).rglob("*.py")
        if not file.is_relative_to(ROOT / owner)
        for name in kinds & names_in(file)
    }
    assert strangers == set()


def names_in(file: Path) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
