"""Wings import downwards alone, and no room of a wing imports, by any way round, what
imports it.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WINGS = {
    "schemas": ("specs",),
    "workers": (
        "quadrature",
        "storage",
        "data",
        "reason_codes",
        "models",
        "baselines",
        "rewriting",
        "closed_form",
        "engine",
        "methods",
        "shards",
    ),
    "service": ("pools", "runs", "planning", "running", "checks", "reports", "demos", "cli"),
}
"""From the ground up: each may import itself and those before it."""

FOLDERS = [(house, wing) for house, wings in WINGS.items() for wing in wings]


@pytest.mark.parametrize("house", WINGS)
def test_every_folder_is_a_wing(house: str):
    assert {p.parent.name for p in (ROOT / house).glob("*/__init__.py")} == set(WINGS[house])


@pytest.mark.parametrize(("house", "wing"), FOLDERS)
def test_a_wing_imports_itself_and_those_before_it(house: str, wing: str):
    later = WINGS[house][WINGS[house].index(wing) + 1 :]
    upwards = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in (ROOT / house / wing).rglob("*.py")
        for module in imported(file)
        if module.startswith(tuple(f"integrand.{house}.{name}." for name in later))
    }
    assert upwards == set()


@pytest.mark.parametrize("house", ["workers", "service"])
def test_what_lies_beside_the_wings_imports_none_of_them(house: str):
    files = [file for file in (ROOT / house).glob("*.py") if file.name != "__init__.py"]
    wings = tuple(f"integrand.{house}.{name}." for name in WINGS[house])
    assert [m for file in files for m in imported(file) if m.startswith(wings)] == []


@pytest.mark.parametrize(("house", "wing"), FOLDERS)
def test_a_wings_own_init_holds_its_docstring_alone(house: str, wing: str):
    """So that reading results through one file of a wing loads no torch through another."""
    body = ast.parse((ROOT / house / wing / "__init__.py").read_text()).body
    assert len(body) == 1 or (house, wing) in {("service", "cli"), ("service", "demos")}
    assert isinstance(body[0], ast.Expr)


def test_no_module_imports_in_a_circle():
    files = [
        file
        for house in WINGS
        for file in (ROOT / house).rglob("*.py")
        if file.name != "__init__.py"
    ]
    graph = {name_of(file): {m for m in imported(file) if m != name_of(file)} for file in files}
    in_order = list(TopologicalSorter(graph).static_order())  # CycleError names a circle
    assert set(graph) <= set(in_order)


def name_of(file: Path) -> str:
    return ".".join(("integrand", *file.relative_to(ROOT).with_suffix("").parts))


def imported(file: Path) -> set[str]:
    """Modules that a file imports anywhere, also inside functions and for type checkers alone."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module
    }
