"""The map from the three short folders to `integrand.*` forgets nothing, and one version is
named.
"""

import importlib.metadata
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("schemas", "workers", "service")
# Home folders, and where build machines keep checkouts. The brackets keep this line from matching
# itself.
MACHINE_PATHS = "[/](home|Users)/[A-Za-z]|[/](root|work|workspace)/|[/]tmp/[a-z]/"


def test_every_folder_with_python_files_is_a_listed_package():
    folders = {
        path.parent.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {".".join(("integrand", *folder.parts)) for folder in folders} == listed_packages()


def test_listed_packages_are_what_setuptools_finds():
    found = [f"{folder}.{name}" for folder in FOLDERS for name in find_packages(str(ROOT / folder))]
    assert {f"integrand.{name}" for name in (*FOLDERS, *found)} == listed_packages()


def test_every_listed_package_maps_to_its_own_folder():
    expected = {
        name: name.removeprefix("integrand.").replace(".", "/") for name in listed_packages()
    }
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == expected


def test_the_version_is_the_same_everywhere():
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    assert (
        changelog[1] == PYPROJECT["project"]["version"] == importlib.metadata.version("integrand")
    )


def test_constraints_pin_what_a_checkout_installs_to_public_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    extras = PYPROJECT["project"]["optional-dependencies"]
    named_by_dev = re.search(r"integrand\[(.*?)]", " ".join(extras["dev"]))[1].split(",")
    required = chain(
        PYPROJECT["project"]["dependencies"], *(extras[name] for name in ("dev", *named_by_dev))
    )
    assert {canonical(name) for name in required} - {"integrand"} <= {
        canonical(name) for name in pins
    }
    assert [name for name, version in pins.items() if "+" in version] == []


@pytest.mark.needs_tool("git")
def test_no_file_names_a_place_on_someones_machine():
    command = ["git", "grep", "--no-index", "--exclude-standard", "-nIE", MACHINE_PATHS, "--", "."]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr


def listed_packages() -> set[str]:
    return set(PYPROJECT["tool"]["setuptools"]["packages"])


def canonical(requirement: str) -> str:
    """The name alone, in the one spelling that package indexes compare."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~]", requirement)[0]).lower()
