"""The map of the code is right: it names every wing in its order, and whatever file or folder the
documentation names is there.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "workers", "service", "tests")
DOCUMENTS = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "README.md",
    *(f"{folder}/README.md" for folder in FOLDERS),
)
MAP, RECIPES = (
    (ROOT / "CONTRIBUTING.md")
    .read_text(encoding="utf-8")
    .split(f"## {title}\n")[1]
    .split("\n## ")[0]
    for title in ("The map, in reading order", "Recipes")
)
ROWS = [line.split("|")[1:3] for line in MAP.splitlines() if line.startswith("| `")]
PARAGRAPHS = [" ".join(t.split()) for t in RECIPES.split("\n\n") if t.startswith("**")]
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.*][\w./*-]*\.(?:py|toml|txt|lock|html|md)")
FOLDER = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w/]*")


def paths_in(text: str) -> list[str]:
    """Files and folders of the repository that a text names as code; of a test, its file."""
    named = [code.split("::")[0] for code in CODE.findall(text)]
    return [name for name in named if FILE.fullmatch(name) or FOLDER.fullmatch(name)]


def wings() -> dict[str, tuple[str, ...]]:
    """By package, from the ground up: as the test of the wings has them."""
    place = ROOT / "tests/packaging/test_wings.py"
    found = importlib.util.spec_from_file_location("wings", place)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.WINGS


@pytest.mark.parametrize("package", ["workers", "service"])
def test_the_map_names_every_wing_in_its_order(package: str):
    folders = [CODE.findall(where)[0] for where, _ in ROWS]
    named = [folder for folder in folders if re.fullmatch(rf"{package}/\w+/", folder)]
    assert named == [f"{package}/{wing}/" for wing in wings()[package]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_a_row_of_the_map_names_files_of_its_folder(row: list[str]):
    where, what = row
    folder = ROOT / CODE.findall(where)[0]
    assert paths_in(what)
    assert [name for name in paths_in(what) if not (folder / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_is_there(document: str):
    text = (ROOT / document).read_text(encoding="utf-8").replace(MAP, "")
    assert [name for name in paths_in(text) if not is_there(name, document)] == []


def is_there(name: str, document: str) -> bool:
    """From the root or from the document's own folder; a star stands for any name."""
    return any(any(place.glob(name)) for place in (ROOT, (ROOT / document).parent))


@pytest.mark.parametrize("recipe", PARAGRAPHS, ids=lambda recipe: recipe[2:30])
def test_what_a_recipe_names_stands_in_a_file_that_it_names(recipe: str):
    files = [ROOT / name for name in paths_in(recipe)]
    assert files
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    names = [code for code in CODE.findall(recipe) if re.fullmatch(r"[A-Za-z_]\w*", code)]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("recipe", PARAGRAPHS, ids=lambda recipe: recipe[2:30])
def test_a_recipe_is_short_and_ends_with_its_test(recipe: str):
    assert len(re.findall(r"\.(?: |$)", recipe)) <= 3
    how, test = recipe.split(" Test: ")
    assert paths_in(how)
    assert any(name.startswith("tests/") for name in paths_in(test))
